"""Rewards of completions: Python functions, a reward model, or both, combined by weights.

A reward function takes a :class:`RewardInput`, and its settings by keyword, and returns a number; one with
TRL's signature is called as TRL calls it. See :mod:`kubealign_components.engines.reward_functions`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.fingerprint import canonical_json, digest, source_json
from kubealign_components.data.models import ModelFiles, find_model, read_object, with_weights
from kubealign_components.data.origins import note_origin
from kubealign_components.data.principles import JUDGE, load_principles
from kubealign_components.engines.dtypes import SAVED
from kubealign_components.engines.reward_functions import (
    LoadedFunction,
    RewardFunctionSpec,
    RewardWords,
    clip,
    require_one_of_each_name,
    require_weight,
)
from kubealign_components.engines.reward_input import Message, Refused, RewardInput
from kubealign_components.engines.reward_labels import ACTIVATIONS, DECLARED, Labels, check_weights
from kubealign_components.errors import DataError, EngineError
from kubealign_components.store import last_part

__all__ = [
    "REWARD",
    "Refused",
    "RewardFunctionSpec",
    "RewardInput",
    "RewardSpec",
    "RewardWords",
    "Rewarder",
    "chosen_principles",
    "flatten_chat",
    "flatten_text",
    "function_params",
    "principles_identity",
    "reward_inputs",
    "reward_params",
    "reward_words",
]

if TYPE_CHECKING:
    from kubealign_components.engines.reward_model import RewardModel


REWARD = {"reward_functions": "functions", "reward_model": "model"}
"""Arguments of components, and the settings of :class:`RewardSpec` that they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSpec:
    """How completions are rewarded: the weighted sum of functions and a reward model."""

    functions: tuple[RewardFunctionSpec, ...] = ()
    """Reward functions; their weighted values are added."""
    model: str = ""
    """Model directory, URI or hub id of a sequence-classification reward model; empty for none."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    model_weight: float = 1.0
    """Factor of the reward model's score in the sum."""
    label_weights: Mapping[str, float] = field(default_factory=dict)
    """Which of the reward model's labels make its score, and their weights: by the names that its config has
    (``id2label``), or by number from 0. Needed of a model with several labels."""
    label_activation: str = DECLARED
    """What the values of weighted labels go through first: what the model's config says (``declared``),
    ``none``, ``sigmoid`` or ``softmax``."""
    principles: str = ""
    """Principles that the reward model scores by, stated positively: a shipped set, or path or URI of one's
    own. Empty for the model's own default."""
    principle_names: tuple[str, ...] = ()
    """Which of them; all but those that are for the judge alone when empty."""
    over_length: str = "drop"
    """A conversation longer than the reward model takes: ``drop`` the completion, or ``fail``."""
    max_length: int = 0
    """Most tokens of a conversation under the reward model's template; 0 for the model's own limit."""
    dtype: str = "saved"
    """Of the reward model's weights: saved (as it is), float32, bfloat16 or float16; scores are fp32."""
    token_budget: int = execution(16384)
    """Most tokens in one forward pass of the reward model, what conversations share counted once."""

    def __post_init__(self) -> None:
        require(
            bool(self.functions or self.model), "reward", None, "a reward function, a reward model, or both"
        )
        require_one_of_each_name(self.functions)
        require_weight("model_weight", self.model_weight)
        check_weights(self.label_weights)
        require_choice("label_activation", self.label_activation, ACTIVATIONS)
        require(
            bool(self.label_weights) or self.label_activation == DECLARED,
            "label_activation",
            self.label_activation,
            f"{DECLARED} without label_weights: no label is weighted",
        )
        require_choice("over_length", self.over_length, ("drop", "fail"))
        require_choice("dtype", self.dtype, SAVED)
        require(self.max_length >= 0, "max_length", self.max_length, "0 or a positive number of tokens")
        require(
            bool(self.model) or not self.max_length,
            "max_length",
            self.max_length,
            "0 without a reward model: reward functions take any length",
        )
        for name, needed, of in (
            ("principles", self.model, "reward model"),
            ("principle_names", self.principles, "set of principles"),
            ("label_weights", self.model, "reward model"),
        ):
            value = getattr(self, name)
            require(bool(needed) or not value, name, value, f"none without a {of}")
        require(self.token_budget > 0, "token_budget", self.token_budget, "a positive number of tokens")

    @property
    def slug(self) -> str:
        """Names of the model and the functions, for a dataset's slug."""
        names = [last_part(self.model)] if self.model else []
        return "_".join([*names, *(f.name for f in self.functions)])


def reward_words(spec: RewardSpec) -> list[RewardWords]:
    """What is rewarded, by the model and by each function, for who reads a report."""
    if not spec.model:
        return [function.words for function in spec.functions]
    name = last_part(spec.model)
    weight = f", weight {spec.model_weight:g}" if spec.model_weight != 1 else ""
    labels = ", ".join(f"{label} × {factor:g}" for label, factor in spec.label_weights.items())
    weight += f", the sum of its labels {labels}" if labels else ""
    principles = (
        f", principles {', '.join(spec.principle_names) or spec.principles}" if spec.principles else ""
    )
    model = RewardWords(f"the score of the reward model {name}", f"{name}{weight}{principles}")
    return [model, *(function.words for function in spec.functions)]


def reward_params(spec: RewardSpec) -> dict[str, object]:
    """The settings of ``spec`` that determine rewards; which model and which principles these are, the
    identity of the :class:`Rewarder` tells."""
    own = ["model", "model_revision", "principles", "principle_names"]
    if spec.dtype == "saved":
        own.append("dtype")  # that of the weights, which the model's identity tells
    if not spec.label_weights:
        own += ["label_weights", "label_activation"]
    params = {k: v for k, v in semantic_params(spec).items() if k not in own}
    return params | {"functions": function_params(spec.functions)}


def function_params(functions: Sequence[RewardFunctionSpec]) -> list[dict[str, object]]:
    """The settings of ``functions`` for a recipe, under names that tell no place."""
    return [function.params for function in functions]


def chosen_principles(source: str, names: Sequence[str] = ()) -> list[dict[str, str]]:
    """Principles as a reward model is shown them: ``name`` and ``text``, stated positively.

    Args:
        source: a shipped set, or path or URI of one's own.
        names: which of them, in the set's order; all but those for the judge alone when empty.

    Raises:
        ConfigError: no such set, it lacks a name, or all of it is for the judge alone.
    """
    shipped = load_principles(source)
    chosen = list(shipped.only(names)) if names else [p for p in shipped if p.stages != (JUDGE,)]
    require(bool(chosen), "principles", source, "a set with principles for a reward model or RL, or names")
    shown = [{"name": p.name, "text": p.statement()} for p in chosen]
    note_origin(digest(principles_identity(shown)), source)
    return shown


def principles_identity(principles: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """What a recipe says of principles that were shown: name and digest of the text, in order."""
    return [[p["name"], digest(p["text"])[:32]] for p in principles]


OVER_LENGTH = "over_length"
"""Why a completion has no reward: the reward model cannot take it whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one completion."""

    reward: float | None
    refused: str | None = None
    """Why there is no reward."""
    labels: tuple[float, ...] = ()
    """Of several labels of the reward model the values that are weighted, in the order of names."""


class Rewarder:
    """Scores completions as ``spec`` says; the reward model is loaded at the first completion.

    Args:
        spec: the functions and the model.

    Raises:
        ConfigError: a function that is not there or does not take its settings, or no such model or set of
            principles.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._functions = [LoadedFunction(f) for f in spec.functions]
        self._files = find_model(spec.model, spec.model_revision, weights=False) if spec.model else None
        self._labels = self._label_indices()
        self.principles = (
            chosen_principles(spec.principles, spec.principle_names) if spec.principles else None
        )

    def _label_indices(self) -> list[int]:
        """Of the labels that are weighted, in the order of names; refuses what the model lacks."""
        weights = self.spec.label_weights
        if not self._files or not weights:
            return []
        labels = Labels.of(read_object(self._files.path / "config.json"))
        labels.weighted(weights)
        labels.activation_for(self.spec.label_activation)
        return [labels.index(name) for name in sorted(weights)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in memory; 0 without a model."""
        factor = 2 if self.spec.dtype == "float32" else 1
        return factor * self._files.weight_bytes() if self._files else 0

    def fetch(self) -> None:
        """Bring the model's weights onto this machine, where they are not yet."""
        if self._files is not None:
            with_weights(self._files)

    @property
    def asks_server(self) -> bool:
        """Whether a function asks a server, whose answers take their time and may cost money."""
        return any(function.spec.at_once > 1 for function in self._functions)

    @cached_property
    def identity(self) -> dict[str, object]:
        """What the functions are, and digests of the model's weights, tokenizer and template, and of the
        statements of the principles.

        Weights and settings of the functions are settings of the spec, and not repeated here.
        """
        functions = {f.spec.recipe_name: f.identity for f in self._functions}
        identity: dict[str, object] = {"functions": functions}
        if self._files:
            identity["model"] = _model_identity(self._files)
        if self.principles is not None:
            identity["principles"] = principles_identity(self.principles)
        return identity

    def score(self, items: Sequence[RewardInput]) -> list[float | None]:
        """One reward for each item, in order; None for one that is over length, or that a function refused.

        Raises:
            EngineError: a function raised, a reward is no finite number, or the reward model's template
                shows no principles and there are some; names it and the input.
            DataError: a conversation is over length, and ``over_length`` is ``fail``.
        """
        return [outcome.reward for outcome in self.outcomes(items)]

    def outcomes(self, items: Sequence[RewardInput]) -> list[Outcome]:
        """As :meth:`score`, with the reason where there is no reward."""
        return list(self.each_outcome(items))

    def each_outcome(self, items: Sequence[RewardInput]) -> Iterator[Outcome]:
        """As :meth:`outcomes`, each when it and all before it are there: a server that a function asks takes
        its time, and may stop answering."""
        outcomes: Iterable[Outcome] = [Outcome(reward=0.0) for _ in items]
        if self._files and items:
            outcomes = self._from_model(items)
        for function in self._functions:
            outcomes = self._with_function(function, outcomes, items)
        yield from outcomes

    def _with_function(
        self, function: LoadedFunction, outcomes: Iterable[Outcome], items: Sequence[RewardInput]
    ) -> Iterator[Outcome]:
        def with_item(outcome: Outcome, item: RewardInput) -> Outcome:
            return outcome if outcome.reward is None else self._added(outcome, outcome.reward, function, item)

        if function.spec.at_once == 1:  # in this thread, which alone has the signals that end an endless sum
            yield from map(with_item, outcomes, items)
            return
        with ThreadPoolExecutor(function.spec.at_once, "reward") as threads:
            yield from threads.map(with_item, outcomes, items)

    def _added(self, outcome: Outcome, total: float, function: LoadedFunction, item: RewardInput) -> Outcome:
        try:
            total += function.spec.weight * function(item)
        except Refused as refusal:
            return Outcome(reward=None, refused=refusal.reason)
        if not math.isfinite(total):
            raise EngineError(
                f"the weighted rewards of a completion add up to {total}; lower the weight of "
                f"{function.spec.function}: {clip(item.text)}"
            )
        return replace(outcome, reward=total)

    def close(self) -> None:
        """Free the reward model's memory and end the functions' processes; the next :meth:`score` needs both
        again, and gets them."""
        for function in self._functions:
            function.close()
        if self.__dict__.pop("_model", None) is not None:
            from kubealign_components.engines.loading import free_memory

            free_memory()

    @cached_property
    def _model(self) -> RewardModel:
        from kubealign_components.engines.reward_model import RewardModel

        assert self._files is not None
        return RewardModel(
            with_weights(self._files),
            dtype=self.spec.dtype,
            max_length=self.spec.max_length,
            token_budget=self.spec.token_budget,
            label_weights=self.spec.label_weights,
            label_activation=self.spec.label_activation,
        )

    def _from_model(self, items: Sequence[RewardInput]) -> list[Outcome]:
        model = self._model
        chats = [flatten_chat([*item.messages, *item.completion], item.tools) for item in items]
        shown = [self.principles if item.principles is None else item.principles for item in items]
        ids = [model.tokenise(chat, principles) for chat, principles in zip(chats, shown)]
        fits = [i for i, tokens in enumerate(ids) if len(tokens) <= model.max_length]
        if len(fits) < len(items) and self.spec.over_length == "fail":
            worst = next(i for i, tokens in enumerate(ids) if len(tokens) > model.max_length)
            raise DataError(
                f"a conversation has {len(ids[worst])} tokens under the template of {model.name}, expected "
                f"at most {model.max_length}; raise max_length, filter for shorter ones, or set "
                f"over_length=drop: {clip(items[worst].text)}"
            )
        outcomes = [Outcome(reward=None, refused=OVER_LENGTH)] * len(items)
        for i, values in zip(fits, model.values([ids[i] for i in fits])):
            score = model.weigh(values)
            if not math.isfinite(score):
                raise EngineError(
                    f"reward model {model.name} gave {score} for {clip(items[i].text)}; "
                    "try dtype=float32 or another revision"
                )
            labels = tuple(values[index] for index in self._labels)
            outcomes[i] = Outcome(reward=self.spec.model_weight * score, labels=labels)
        return outcomes


def reward_inputs(row: Mapping[str, Any], completions: Sequence[Mapping[str, Any]]) -> list[RewardInput]:
    """The inputs for ``completions`` of the prompt ``row`` (columns of ``PROMPT_ROW``)."""
    messages = json.loads(row["messages"])
    tools = json.loads(row["tools"]) if row["tools"] else None
    metadata = json.loads(row["metadata"]) if row["metadata"] else {}
    inputs = []
    for completion in completions:
        written = json.loads(completion["messages"])
        inputs.append(
            RewardInput(
                messages=messages,
                completion=written,
                text=flatten_text(written),
                answers=list(row["answers"] or ()),
                tools=tools,
                metadata=metadata,
                num_tokens=completion["num_tokens"],
                finish_reason=completion["finish_reason"],
            )
        )
    return inputs


def flatten_text(completion: Sequence[Message]) -> str:
    """What the assistant wrote in ``completion``, tool calls as text, tool outputs left out."""
    own = [_content(m) for m in completion if m.get("role", "assistant") == "assistant"]
    return "\n\n".join(text for text in own if text)


def flatten_chat(messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None) -> list[Message]:
    """``messages`` as plain system, user and assistant turns with text contents.

    Reward models are trained on plain chats: a tool's output becomes a user turn, tool calls become
    text, tool definitions join the system turn, and neighbouring turns of one role are joined.
    """
    plain: list[Message] = []
    if tools:
        listed = "\n".join(source_json(tool) for tool in tools)
        plain.append({"role": "system", "content": f"Available tools:\n{listed}"})
    for message in messages:
        role = _PLAIN_ROLES.get(message["role"], "user")
        text = _content(message)
        if message["role"] in ("tool", "function", "ipython"):
            text = f"Tool output:\n{text}"
        if plain and plain[-1]["role"] == role:
            plain[-1]["content"] += f"\n\n{text}"
        else:
            plain.append({"role": role, "content": text})
    return plain


_PLAIN_ROLES = {"system": "system", "developer": "system", "assistant": "assistant"}


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else _part(part) for part in content]
        content = "\n".join(part for part in parts if part)
    elif isinstance(content, dict):
        content = canonical_json(content)
    calls = [_tool_call(call) for call in message.get("tool_calls") or ()]
    return "\n".join([*([content] if content else []), *calls])


def _part(part: Mapping[str, object]) -> str:
    text = part.get("text", part.get("content"))
    return text if isinstance(text, str) else canonical_json(part)


def _tool_call(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else source_json(arguments)
    return f"{function.get('name', 'tool')}({text})"


def _model_identity(files: ModelFiles) -> dict[str, str]:
    template = files.path / "chat_template.jinja"
    text = template.read_bytes() if template.is_file() else b""  # else it is in the tokenizer's files
    config = json.loads((files.path / "config.json").read_text(encoding="utf-8"))
    return files.identity() | {
        "tokenizer": files.tokenizer_digest(),
        "template": hashlib.sha256(text).hexdigest(),
        # It is no part of the weights' digest, and what dtype=saved goes by.
        "dtype": str(config.get("dtype") or config.get("torch_dtype") or "of the weights"),
    }
