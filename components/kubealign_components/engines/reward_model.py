"""A sequence-classification reward model: one fp32 score for a whole conversation.

Conversations that start alike, as all completions of a prompt do, are packed like the scorer's: what
they share is computed once, and nothing is padded. Encoders, and decoders whose attention is not
reproduced by :mod:`.segments`, run on padded batches of similar length.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kubealign_components.data.models import ModelFiles
from kubealign_components.engines.packing import Group, lay_out, packs
from kubealign_components.engines.segments import SegmentPlan, check_windows, use_segments
from kubealign_components.errors import EngineError

Message = dict[str, Any]
Tokens = tuple[int, ...]

SHORTEST_PREFIX = 16
"""Tokens in common from which on sharing them pays for attending in two parts."""
_PROBE = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 10, 11), (12, 13, 14))
"""What a model is tried on when it is loaded: twentieths of its vocabulary; two start alike."""

log = logging.getLogger(__name__)


class RewardModel:
    """A reward model with its own tokenizer and chat template.

    Args:
        files: the model; ``AutoModelForSequenceClassification`` with one label.
        dtype: of the weights: auto (as saved), float32, bfloat16 or float16. The head and the scores
            are fp32 in any case.
        max_length: most tokens of a conversation; 0 for what the model was made for.
        token_budget: most tokens in one forward pass; what conversations share counts once, padding
            counts too.

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
        self._packs = self._can_pack()

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

        Scores do not depend on what else is scored, beyond rounding: no sequence sees another, and the
        score is read at the last token of the sequence itself.

        Raises:
            EngineError: the device is out of memory.
        """
        unique = sorted({tuple(ids) for ids in token_ids})
        scores = self._packed(unique) if self._packs else self._padded(unique)
        return [scores[tuple(ids)] for ids in token_ids]

    def _packed(self, unique: Sequence[Tokens]) -> dict[Tokens, float]:
        """Scores of sorted sequences."""
        groups = share_prefixes(unique)
        scores: dict[Tokens, float] = {}
        for members in packs(groups, self._token_budget):
            pieces = [
                Group(groups[number].prompt, [groups[number].completions[c] for c in chosen])
                for number, chosen in members
            ]
            sequences = [(*piece.prompt, *rest) for piece in pieces for rest in piece.completions]
            with self._out_of_memory_named(sequences):
                scores.update(zip(sequences, self._forward_pack(pieces), strict=True))
        return scores

    def _padded(self, unique: Sequence[Tokens]) -> dict[Tokens, float]:
        scores: dict[Tokens, float] = {}
        for batch in batches(unique, self._token_budget):
            with self._out_of_memory_named(batch):
                scores.update(zip(batch, self._forward_padded(batch), strict=True))
        return scores

    @contextmanager
    def _out_of_memory_named(self, sequences: Sequence[Tokens]) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory scoring {len(sequences)} conversations of up to "
                f"{max(map(len, sequences))} tokens with {self.name}; lower token_budget={self._token_budget}"
            ) from error

    def _forward_pack(self, groups: Sequence[Group], *, longest: int = 0) -> list[float]:
        """The scores; raises EngineError where ``longest`` tokens would not fit a window that layers keep
        to themselves."""
        tokens, positions, segments = lay_out(groups)
        device, plan = self._model.device, SegmentPlan(tuple(segments))
        hidden = self._model.base_model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            plan=plan,
        ).last_hidden_state[0]
        check_windows(self._model, SegmentPlan(((0, longest, longest, longest),), plan.windows))
        ends = [stop - 1 for *_, first, stop in segments if stop > first]
        last = hidden[torch.tensor(ends, device=hidden.device)]
        return self._model.score(last.float())[:, 0].tolist()  # type: ignore[no-any-return]

    def _forward_padded(self, batch: Sequence[Tokens]) -> list[float]:
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

    @torch.inference_mode()
    def _can_pack(self) -> bool:
        """Give the model the segment attention, if its packed scores are its padded ones."""
        if not hasattr(self._model, "score"):
            return False
        text = self._model.config.get_text_config()
        own, step = text._attn_implementation, text.vocab_size // 20
        probe = [tuple(number * step for number in ids) for ids in _PROBE]
        padded = self._forward_padded(probe)
        try:
            use_segments(self._model)
            packed = self._forward_pack(
                [Group(probe[0][:6], [ids[6:] for ids in probe[:2]]), Group((), probe[2:])],
                longest=self.max_length,
            )
            apart = max(abs(a - b) / (1 + abs(b)) for a, b in zip(packed, padded, strict=True))
            if apart <= (1e-3 if self._model.dtype == torch.float32 else 0.1):
                return True
            problem = f"packed and padded scores differ by {apart:.3g}"
        except (EngineError, TypeError) as error:
            problem = str(error)
        self._model.set_attn_implementation(own)
        log.warning("%s: conversations are padded, their prompts not shared: %s", self.name, problem)
        return False

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


def share_prefixes(sequences: Sequence[Tokens]) -> list[Group]:
    """Sorted, different sequences as prompts with completions: neighbours that start alike are one group.

    A sequence joins the group before it unless that would more than halve the prefix, or it has more than
    twice as much in common with the next one: so the few tokens with which a template opens every
    conversation do not make one group of all.
    """
    common = [0, *(_common_length(a, b) for a, b in pairwise(sequences)), 0]
    groups: list[Group] = []
    start = 0
    while start < len(sequences):
        end, prefix = start + 1, common[start + 1]
        while end < len(sequences):
            shared = min(prefix, common[end])
            if shared < SHORTEST_PREFIX or 2 * shared < max(prefix, common[end + 1]):
                break
            end, prefix = end + 1, shared
        members = sequences[start:end]
        # Of every sequence something must be left: its score is read at its last token.
        prefix = min(prefix, min(map(len, members)) - 1) if len(members) > 1 else 0
        groups.append(Group(members[0][:prefix], [ids[prefix:] for ids in members]))
        start = end
    return groups


def batches(sequences: Sequence[Tokens], token_budget: int) -> Iterator[list[Tokens]]:
    """Sequences of similar length together, longest first, at most ``token_budget`` padded tokens each.

    A sequence that is over the budget alone is a batch of its own.
    """
    batch: list[Tokens] = []
    for ids in sorted(sequences, key=lambda ids: (-len(ids), ids)):
        if batch and (len(batch) + 1) * len(batch[0]) > token_budget:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _common_length(one: Tokens, other: Tokens) -> int:
    """Tokens with which both begin."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


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
