"""A sequence-classification reward model: fp32 values for a whole conversation, and one score of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from kubealign_components.data.chat.rendering import (
    ANSWER,
    USER,
    Message,
    Renderer,
    TemplateMismatch,
    without_reasoning,
)
from kubealign_components.data.chat.tokenizer import check_ids, load_tokenizer, one_bos
from kubealign_components.data.models import ModelFiles, read_object
from kubealign_components.engines.last_token import LastTokens, Tokens, batches, out_of_memory_named, padded
from kubealign_components.engines.loading import HEAD_KEY, context_length, load_checkpoint
from kubealign_components.engines.reward_labels import DECLARED, OBJECTIVES, Labels
from kubealign_components.errors import EngineError

Values = tuple[float, ...]
"""What a model gives for a conversation: one number for each of its labels."""

HEAD_BIAS = "score.bias"
"""What some checkpoints of reward models hold beside the weights of the head, (C,)."""
HEAD_FILE = "score.safetensors"
"""The scalar head beside them, fp32."""


class RewardModel:
    """A reward model with its own tokenizer and chat template.

    Args:
        files: the model; an ``AutoModelForSequenceClassification``.
        dtype: of the weights: saved (as they are), float32, bfloat16 or float16. The head and the scores
            are fp32 in any case.
        max_length: most tokens of a conversation; 0 for what the model was made for.
        token_budget: most tokens in one forward pass; what conversations share counts once, padding
            counts too.
        label_weights: which of several labels make the score, and their weights.
        label_activation: what the values of labels go through first, see :mod:`.reward_labels`. The score of
            a model with one label, and no weights, is its value as it comes.

    Raises:
        ConfigError: none of several labels is chosen, or there is no such label.
        EngineError: not a reward model, or one without a chat template.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        dtype: str = "saved",
        max_length: int = 0,
        token_budget: int = 16384,
        label_weights: Mapping[str, float] | None = None,
        label_activation: str = DECLARED,
    ) -> None:
        self.name = files.name
        self._token_budget = token_budget
        self._tokenizer = _load_tokenizer(files)
        self._chat = RewardChat(self._tokenizer, files.name)
        self._model = _load_model(files, dtype)  # first: what is no reward model is refused as such
        labels = Labels.of(read_object(files.path / "config.json"))
        self._weights = labels.weighted(label_weights or {})
        self._activation = labels.activation_for(label_activation) if label_weights else "none"
        self.max_length = max_length or context_length(self._model.config, self._tokenizer)
        self._decoder = self._read_decoder()

    def tokenise(
        self, chat: Sequence[Message], principles: Sequence[Mapping[str, str]] | None = None
    ) -> list[int]:
        """Token ids of a plain chat under the model's own template, see :meth:`RewardChat.tokenise`."""
        ids = self._chat.tokenise(chat, principles)
        check_ids([ids], self._model.get_input_embeddings().weight.shape[0], self.name)
        return ids

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """One fp32 score for each token sequence, in order: the weighted sum of its :meth:`values`.

        Raises:
            EngineError: the device is out of memory.
        """
        return [self.weigh(values) for values in self.values(token_ids)]

    def weigh(self, values: Values) -> float:
        """The score that the ``values`` of a conversation make."""
        return sum(weight * values[index] for index, weight in self._weights)

    @torch.inference_mode()
    def values(self, token_ids: Sequence[Sequence[int]]) -> list[Values]:
        """The model's fp32 values for each token sequence, in order; equal ones are read once.

        They do not depend on what else is read, beyond rounding: no sequence sees another, and a decoder is
        read at the last token of the sequence itself.

        Raises:
            EngineError: the device is out of memory.
        """
        sequences = [tuple(ids) for ids in token_ids]
        unique = sorted(set(sequences))
        read = self._decoder.read(unique) if self._decoder is not None else self._read_encoder(unique)
        activated = dict(zip(unique, self._activated([read[ids] for ids in unique])))
        return [activated[ids] for ids in sequences]

    def _read_encoder(self, unique: Sequence[Tokens]) -> dict[Tokens, list[float]]:
        read: dict[Tokens, list[float]] = {}
        for batch in batches(unique, self._token_budget):
            with out_of_memory_named(self.name, batch, self._token_budget):
                # An encoder reads its own classification token, at a fixed place.
                inputs, _ = padded(batch, self._model.device)
                read.update(zip(batch, self._model(**inputs).logits.float().tolist(), strict=True))
        return read

    def _activated(self, read: Sequence[Sequence[float]]) -> list[Values]:
        """What the outputs (N, C) of the model say, (N, C)."""
        if self._activation == "none" or not read:
            return [tuple(outputs) for outputs in read]
        outputs_NC = torch.tensor(read, dtype=torch.float64)
        softmax = self._activation == "softmax"
        values_NC = outputs_NC.softmax(dim=1) if softmax else outputs_NC.sigmoid()
        return [tuple(values) for values in values_NC.tolist()]

    def _read_decoder(self) -> LastTokens | None:
        """How a decoder is read; None for an encoder, which has no ``score`` head."""
        model = self._model
        if not hasattr(model, "score"):
            return None
        return LastTokens(
            model,
            model.base_model,
            lambda hidden_KH: model.score(hidden_KH.float()),
            name=self.name,
            token_budget=self._token_budget,
            longest=self.max_length,
        )


class RewardChat:
    """From conversations to what a reward model reads.

    Args:
        tokenizer: of the reward model, with its chat template.
        name: what errors call the model.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._renderer = Renderer(tokenizer, name)

    def tokenise(
        self, chat: Sequence[Message], principles: Sequence[Mapping[str, str]] | None = None
    ) -> list[int]:
        """Token ids of a plain chat under the template, with at most one leading BOS.

        Control tokens that a turn or a principle spells stay text: what is scored cannot end its turn.

        Args:
            chat: turns with ``role`` (system, user, assistant) and text ``content``.
            principles: what the last turn is scored by, each with ``name`` and ``text``, possibly none;
                null for the template's own default.

        Raises:
            EngineError: the template refuses the chat, or does not show its last turn or the principles.
        """
        if principles and not self._shows_principles:
            raise EngineError(
                f"the chat template of {self._name} shows no principles, so its scores could not depend on "
                f"{', '.join(p['name'] for p in principles)}: give a reward model that was trained with "
                "principles, or no principles"
            )
        shown: dict[str, Any] = {} if principles is None else {"principles": [dict(p) for p in principles]}
        try:
            text = self._renderer.render(chat, **shown)
        except TemplateMismatch as error:
            raise EngineError(str(error)) from error
        last = {"role": chat[-1]["role"], "content": without_reasoning(chat[-1].get("content") or "")}
        if self._renderer.missing([last], text):
            raise EngineError(
                f"the chat template of {self._name} does not show what is scored: {last['content'][:200]!r}"
            )
        [ids] = self._renderer.marks.encode([text])
        return one_bos(ids, self._tokenizer.bos_token_id)

    @cached_property
    def _shows_principles(self) -> bool:
        probe = {"name": "probe", "text": "kubealign-probe"}
        try:
            return "kubealign-probe" in self._renderer.render([USER, ANSWER], principles=[probe])
        except TemplateMismatch:
            return False


def _load_tokenizer(files: ModelFiles) -> Any:
    tokenizer = load_tokenizer(files.path)
    if not tokenizer.chat_template:
        raise EngineError(
            f"the tokenizer of reward model {files.name} has no chat template; save the one that it was "
            f"trained with as the file {files.path / 'chat_template.jinja'}"
        )
    return tokenizer


def _load_model(files: ModelFiles, dtype: str) -> Any:
    on_gpus = torch.cuda.device_count()
    bias_C = _head_bias(files)
    model, _ = load_checkpoint(
        files.path,
        "auto" if dtype == "saved" else getattr(torch, dtype),
        kind=AutoModelForSequenceClassification,
        device_map="auto" if on_gpus > 1 else None,
        extra=() if bias_C is None else (HEAD_BIAS,),
        **_regression(files),
    )
    if bias_C is not None and hasattr(model, "score"):
        model.score.bias = nn.Parameter(bias_C.to(model.score.weight.device))
    if on_gpus == 1:
        model.to("cuda")
    if hasattr(model, "score"):
        model.score.float()
    return model.eval()


def _head_bias(files: ModelFiles) -> Tensor | None:
    """(C,), fp32: the bias of a decoder's head, for which transformers' classes have no place."""
    for name in files.weights():
        if name.endswith(".safetensors"):
            with safetensors.safe_open(files.path / name, "pt") as file:
                if HEAD_BIAS in file.keys():  # noqa: SIM118  # no mapping
                    return file.get_tensor(HEAD_BIAS).float()
    return None


def _regression(files: ModelFiles) -> dict[str, Any]:
    """How a model is loaded whose one linear layer regresses several attributes, and whose config has no
    labels for them, as ArmoRM's; its own code, which is not run, would weigh them by the prompt."""
    objectives = read_object(files.path / "config.json").get(OBJECTIVES)
    if not objectives:
        return {}
    return {"num_labels": int(objectives), "key_mapping": {r"^regression_layer\.": "score."}}


def load_head(adapter: Path) -> Tensor:
    """The scalar head beside the adapters in the folder ``adapter``: (1, H), fp32.

    Raises:
        EngineError: there is none, or it is another thing; names the file.
    """
    file = adapter / HEAD_FILE
    if not file.is_file():
        raise EngineError(
            f"{file} is missing: without the head that was trained with them, the adapters' scores mean "
            "nothing; give a model of train_reward_model as a whole"
        )
    weights = safetensors.torch.load_file(file)
    if list(weights) != [HEAD_KEY] or weights[HEAD_KEY].ndim != 2 or len(weights[HEAD_KEY]) != 1:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        raise EngineError(f"{file} holds {shapes}, expected {HEAD_KEY} of shape (1, H)")
    return weights[HEAD_KEY].float()
