"""A sequence-classification reward model: one fp32 score for a whole conversation."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kubealign_components.data.models import ModelFiles
from kubealign_components.errors import EngineError

Message = dict[str, Any]


class RewardModel:
    """A reward model with its own tokenizer and chat template.

    Args:
        files: the model; ``AutoModelForSequenceClassification`` with one label.
        dtype: of the weights: auto (as saved), float32, bfloat16 or float16. The head and the scores
            are fp32 in any case.
        max_length: most tokens of a conversation; 0 for what the model was made for.
        token_budget: most tokens, padding included, in one forward pass.

    Raises:
        EngineError: not a reward model, or one without a chat template.
    """

    def __init__(
        self, files: ModelFiles, *, dtype: str = "auto", max_length: int = 0, token_budget: int = 16384
    ) -> None:
        self.name = files.name
        self._token_budget = token_budget
        self._tokenizer = _load_tokenizer(files)
        self._model = _load_model(files, dtype)
        self.max_length = max_length or _own_limit(self._model.config, self._tokenizer)
        self._folds_system = not self._takes_system()

    def tokenise(self, chat: Sequence[Message]) -> list[int]:
        """Token ids of a plain chat under the model's own template, with at most one leading BOS.

        Args:
            chat: turns with ``role`` (system, user, assistant) and text ``content``.

        Raises:
            EngineError: the template refuses the chat.
        """
        turns = _fold_system(chat) if self._folds_system else list(chat)
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, TypeError, ValueError) as error:
            roles = " ".join(turn["role"] for turn in turns)
            raise EngineError(
                f"the chat template of {self.name} refuses turns of {roles}: {error}"
            ) from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        bos = self._tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    @torch.inference_mode()
    def score(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """One fp32 score for each token sequence, in order; equal ones are scored once.

        Scores do not depend on what else is scored: padding is on the right, masked, and the score is
        read at the last token of the sequence itself.

        Raises:
            EngineError: the device is out of memory.
        """
        scores: dict[tuple[int, ...], float] = {}
        for batch in batches({tuple(ids) for ids in token_ids}, self._token_budget):
            try:
                scores.update(zip(batch, self._forward(batch)))
            except torch.OutOfMemoryError as error:
                raise EngineError(
                    f"out of memory scoring {len(batch)} conversations of up to {len(batch[0])} tokens with "
                    f"{self.name}; lower token_budget={self._token_budget}"
                ) from error
        return [scores[tuple(ids)] for ids in token_ids]

    def _forward(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        lengths = torch.tensor([len(ids) for ids in batch])
        # What stands in the padding does not matter, as it is masked: so no pad token is needed.
        input_ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        device = self._model.device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
        head = getattr(self._model, "score", None)
        if head is None:  # an encoder: it reads its own classification token, at a fixed place
            return self._model(**inputs).logits[:, 0].float().tolist()  # type: ignore[no-any-return]
        # A decoder's own pooling finds the last token by comparing with the pad token, which is wrong
        # when that is also the end of a turn, and refused when there is none.
        hidden = self._model.base_model(**inputs, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(batch), device=hidden.device), lengths.to(hidden.device) - 1]
        return head(last.float())[:, 0].tolist()  # type: ignore[no-any-return]

    def _takes_system(self) -> bool:
        probe = [
            {"role": "system", "content": "kubealign-probe"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "!"},
        ]
        try:
            return "kubealign-probe" in self._tokenizer.apply_chat_template(probe, tokenize=False)
        except (TemplateError, TypeError, ValueError):
            return False


def batches(
    sequences: set[tuple[int, ...]] | Sequence[tuple[int, ...]], token_budget: int
) -> Iterator[list[tuple[int, ...]]]:
    """Sequences of similar length together, longest first, at most ``token_budget`` padded tokens each.

    A sequence that is over the budget alone is a batch of its own.
    """
    batch: list[tuple[int, ...]] = []
    for ids in sorted(sequences, key=lambda ids: (-len(ids), ids)):
        if batch and (len(batch) + 1) * len(batch[0]) > token_budget:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def free_memory() -> None:
    """Give back to the device what models that are no longer referenced held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_tokenizer(files: ModelFiles) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.path)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load the tokenizer of {files.path}: {error}") from error
    if not tokenizer.chat_template:
        raise EngineError(
            f"the tokenizer of reward model {files.name} has no chat template; save the one that it was "
            f"trained with as chat_template in {files.path}"
        )
    return tokenizer


def _load_model(files: ModelFiles, dtype: str) -> Any:
    on_gpus = torch.cuda.device_count()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            files.path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map="auto" if on_gpus > 1 else None,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load reward model {files.path}: {error}") from error
    if model.config.num_labels != 1:
        raise EngineError(
            f"{files.name} has {model.config.num_labels} labels, expected a reward model with one"
        )
    if missing := sorted(report["missing_keys"]):
        raise EngineError(f"{files.name} is no reward model: its checkpoint lacks {', '.join(missing)}")
    if on_gpus == 1:
        model.to("cuda")
    if hasattr(model, "score"):
        model.score.float()
    return model.eval()


def _own_limit(config: Any, tokenizer: Any) -> int:
    """Positions that the model was made for, or what the tokenizer says if that is less."""
    positions = (
        getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    )
    return int(min(positions, tokenizer.model_max_length))


def _fold_system(chat: Sequence[Message]) -> list[Message]:
    """The chat with its system turns put before the text of the next turn."""
    folded: list[Message] = []
    pending = ""
    for turn in chat:
        if turn["role"] == "system":
            pending += f"{turn['content']}\n\n"
        else:
            folded.append(turn | {"content": pending + turn["content"]})
            pending = ""
    return folded
