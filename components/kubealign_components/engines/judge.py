"""Judging pairs of responses by principles: every pair under every principle, in both orders.

The mean of the two orders is free of a preference for a position, and how often the two agree says how
much the judge's opinion is worth. What runs the model is :mod:`.judge_model`; under a principle that a
reward function measures, that function judges in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.chat import TemplateConfig, TemplateSettings, stored_settings
from kubealign_components.data.chat.settings import DATE
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.models import ModelFiles, find_adapter, find_model, with_weights
from kubealign_components.data.origins import note_origin
from kubealign_components.data.principles import JUDGE, PrincipleSet, load_principles
from kubealign_components.data.templates import load_judge_template
from kubealign_components.engines.chat_endpoint import ChatEndpoint
from kubealign_components.engines.comparison import Comparison
from kubealign_components.engines.dtypes import DTYPES, resolved_dtype
from kubealign_components.engines.endpoint_judge import EndpointJudge
from kubealign_components.engines.judging_functions import FunctionJudge, JudgingFunction
from kubealign_components.engines.reward_functions import require_one_of_each_name
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.store import last_part

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset
    from kubealign_components.engines.judge_model import Judge


ANSWER_TOKENS = 16
"""Most tokens of an endpoint's answer, unless it reasons first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSpec(TemplateConfig):
    """Who judges, by what, and how it is asked."""

    judge: str
    """Model directory, URI or hub id of the policy that judges; with an endpoint the model's name there."""
    endpoint: str = ""
    """Base of an OpenAI-compatible API whose model judges, such as ``http://judge:8000/v1``; empty for one
    that is loaded here. It is asked for a letter, whose log-probability counts where the server gives it."""
    answer_tokens: int = ANSWER_TOKENS
    """Most tokens of an answer of the endpoint's; one that reasons first needs more."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    adapter: str = ""
    """Folder or URI of a PEFT adapter of that policy, which judges unmerged; empty for none."""
    quantise: bool = False
    """Load the policy's linear layers in 4 bits (nf4), which needs a CUDA device."""
    principles: str = "judging"
    """A shipped set of principles, or path or URI of one's own."""
    principle_names: tuple[str, ...] = ()
    """Which of them; all that are for the judge when empty."""
    functions: tuple[JudgingFunction, ...] = ()
    """Reward functions that judge in the policy's place, each under the principle that it names: the
    difference of both rewards stands for the log-odds, in both orders. No model is loaded where every
    principle has one."""
    template: str = "judge"
    """The shipped question, or path or URI of one's own."""
    max_length: int = 0
    """Most tokens of a question; pairs with a longer one are left out and counted, nothing is cut. 0 for what
    the model was made for."""
    dtype: str = "auto"
    """Of the judge: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32)."""
    token_budget: int = execution(8192)
    """Tokens in one forward pass, what questions share counted once."""
    key_variable: str = execution("KUBEALIGN_JUDGE_API_KEY")
    """Environment variable with the endpoint's key; none is sent where it is not set."""
    seconds: float = execution(120.0)
    """For one answer of the endpoint."""
    patience: float = execution(900.0)
    """Seconds for one question in all, while the endpoint is busy."""

    def __post_init__(self) -> None:
        self.check_template()
        require(bool(self.judge), "judge", self.judge, "a model directory, URI or hub id")
        require(self.answer_tokens > 0, "answer_tokens", self.answer_tokens, "a positive number")
        expected = f"{ANSWER_TOKENS} without an endpoint: a model that is loaded here writes no answer"
        used = bool(self.endpoint) or self.answer_tokens == ANSWER_TOKENS
        require(used, "answer_tokens", self.answer_tokens, expected)
        if self.endpoint:
            self.server()
            for name, default in _OF_LOADED.items():
                value = getattr(self, name)
                require(value == default, name, value, f"{default!r} with an endpoint, which has its own")
        require_choice("dtype", self.dtype, DTYPES)
        require_one_of_each_name(self.functions)
        require(self.max_length >= 0, "max_length", self.max_length, "0 or a number of tokens")
        require(self.token_budget > 0, "token_budget", self.token_budget, "a positive number")

    @property
    def why_none(self) -> str:
        """Why a pair has no judgement, in the names of counts."""
        return "without_answer" if self.endpoint else "over_length"

    def server(self) -> ChatEndpoint:
        """Where the endpoint's model is asked; asks nothing yet."""
        return ChatEndpoint(
            url=self.endpoint,
            model=self.judge,
            key_variable=self.key_variable,
            seconds=self.seconds,
            patience=self.patience,
        )


_OF_LOADED: Mapping[str, object] = {
    "revision": None,
    "adapter": "",
    "quantise": False,
    "max_length": 0,
    "dtype": "auto",
    "chat_template": None,
    "chat_template_kwargs": {},
    "chat_template_date": DATE,
}
"""Settings of a judge that is loaded here, and their defaults."""
_OF_ENDPOINT = ("endpoint", "answer_tokens")


class Pair(NamedTuple):
    """Two responses to one conversation."""

    messages: Sequence[Mapping[str, Any]]
    first: str
    second: str
    inputs: tuple[RewardInput, RewardInput] | None = None
    """The two as a reward function sees them; needed where functions judge."""


class Judgement(NamedTuple):
    """A pair under one principle; values are log-odds in nats, above 0 where ``first`` is preferred."""

    principle: str
    s12: float
    """With ``first`` shown as (a)."""
    s21: float
    """With ``second`` shown as (a)."""

    @property
    def score(self) -> float:
        """The mean of both orders, in which a preference for a position cancels."""
        return (self.s12 + self.s21) / 2

    @property
    def consistent(self) -> bool:
        """Whether both orders prefer the same response."""
        return self.s12 * self.s21 > 0


class PairJudge:
    """Judges pairs as ``spec`` says; the model is loaded at the first pair.

    Args:
        spec: the policy, the principles and the question.
        judged: the dataset that it judges. Where its token ids are of the same policy, the settings that they
            were made with stand for those that ``spec`` leaves at their defaults.

    Raises:
        ConfigError: principles, template, model or adapter that cannot be used.
    """

    def __init__(self, spec: JudgeSpec, judged: Dataset | None = None) -> None:
        self.spec = spec
        self.principles = judging_principles(spec)
        self._functions = FunctionJudge(spec.functions, self.principles.names)
        self._asked = [one for one in self.principles if one.name not in self._functions]
        self._files = None if spec.endpoint else find_model(spec.judge, spec.revision, weights=False)
        self._adapter = find_adapter(spec.adapter, "adapter") if spec.adapter else None
        self._template = load_judge_template(spec.template)
        self._settings = _template_settings(spec, self._files, judged)
        self._judge: Judge | None = None
        self._endpoint: EndpointJudge | None = None
        if spec.endpoint:
            self._endpoint = EndpointJudge(spec.server(), self._template, answer_tokens=spec.answer_tokens)

    @property
    def name(self) -> str:
        """Who judges, in a word: the model, and the functions."""
        model = [last_part(self.spec.judge)] if self.asks_model else []
        return ", ".join([*model, *(function.name for function in self.spec.functions)])

    @property
    def asks_model(self) -> bool:
        """Whether there is a principle that no function judges by."""
        return bool(self._asked)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in memory; 0 where none is loaded here."""
        if self._files is None or not self.asks_model:
            return 0
        return (2 if self.spec.dtype == "float32" else 1) * self._files.weight_bytes()

    def fetch(self) -> None:
        """Bring the weights of a model that is loaded here onto this machine, where they are not yet."""
        if self._files is not None and self.asks_model:
            with_weights(self._files)

    @cached_property
    def params(self) -> dict[str, Any]:
        """The settings that determine judgements of given pairs.

        Of the principles only what the judge is shown, so that judgements still hold when weights or
        negative statements have been edited.
        """
        asked = self._params_of_model() if self.asks_model else {}
        return asked | self._functions.params() | {"principles": self.principles.statements()}

    def _params_of_model(self) -> dict[str, object]:
        if self.spec.endpoint:
            names = ("judge", *_OF_ENDPOINT)
            return {name: getattr(self.spec, name) for name in names} | {
                "template": self._template.identity()
            }
        named = ("judge", "revision", "adapter", "principles", "principle_names", "functions", "template")
        own = (*named, *_OF_ENDPOINT)
        settings = {k: v for k, v in semantic_params(self.spec).items() if k not in own}
        return (
            settings
            | {"dtype": resolved_dtype(self.spec.dtype)}
            | self._settings.params()
            | {"template": self._template.identity()}
        )

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """Which model judges, byte for byte, as a recipe has it: none where functions alone judge, or where
        an endpoint does, which the settings name."""
        if self._files is None or not self.asks_model:
            return {}
        identity: dict[str, Any] = self._files.identity() | {"tokenizer": self._files.tokenizer_digest()}
        if self._adapter is not None:
            identity["adapter"] = self._adapter.adapter_identity()
        return {"judge": identity}

    def judge(self, pairs: Sequence[Pair]) -> list[list[Judgement] | None]:
        """For each pair its judgements, one a principle; None where a question is over length, or an endpoint
        gives no answer to it.

        Raises:
            ConfigError: 4 bits are asked for on a machine without CUDA, or the adapter does not fit.
            EngineError: the judge cannot be loaded, or gives no finite number; or a function failed.
        """
        by_model = self._by_model(pairs) if self.asks_model else [{} for _ in pairs]
        fitting = [(pair, own) for pair, own in zip(pairs, by_model, strict=True) if own is not None]
        by_function = iter(self._by_functions([pair for pair, _ in fitting]))
        return [None if own is None else self._in_order(own | next(by_function)) for own in by_model]

    def close(self) -> None:
        """Free the model's memory, and end the functions' processes."""
        self._functions.close()
        if self._judge is not None:
            self._judge.close()
            self._judge = None

    def _by_model(self, pairs: Sequence[Pair]) -> list[dict[str, Judgement] | None]:
        """The judgements that are the model's, by principle; None where a question has no answer."""
        if not pairs:
            return []
        asked = [one for pair in pairs for one in self._comparisons(pair)]
        preferences = self._endpoint.preferences(asked) if self._endpoint else self._from_model(asked)
        of_pair = 2 * len(self._asked)
        each = (preferences[start : start + of_pair] for start in range(0, len(preferences), of_pair))
        return [self._judgements(own) for own in each]

    def _from_model(self, asked: Sequence[Comparison]) -> list[float | None]:
        judge = self._start()
        questions = [judge.tokenise(one) for one in asked]
        fits = [len(ids) <= judge.max_length for ids in questions]
        # All questions of a pair, or none: what is left out is not asked about in part.
        of_pair = 2 * len(self._asked)
        whole = [all(fits[i - i % of_pair : i - i % of_pair + of_pair]) for i in range(len(fits))]
        preferences = iter(judge.preferences([ids for ids, ok in zip(questions, whole) if ok]))
        return [next(preferences) if ok else None for ok in whole]

    def _comparisons(self, pair: Pair) -> Iterator[Comparison]:
        """What the model is asked of ``pair``: under each principle in both orders."""
        for principle in self._asked:
            for first, second in ((pair.first, pair.second), (pair.second, pair.first)):
                yield Comparison(
                    messages=pair.messages,
                    first=first,
                    second=second,
                    principle=principle.name,
                    statement=principle.statement(),
                )

    def _judgements(self, preferences: Sequence[float | None]) -> dict[str, Judgement] | None:
        """Of one pair: a preference in each order by principle, turned in favour of the first response; None
        where one is missing."""
        answered = [value for value in preferences if value is not None]
        if len(answered) < len(preferences):
            return None
        orders = zip(self._asked, answered[::2], answered[1::2], strict=True)
        return {p.name: Judgement(p.name, in_order, -swapped) for p, in_order, swapped in orders}

    def _by_functions(self, pairs: Sequence[Pair]) -> list[dict[str, Judgement]]:
        """The judgements of each pair that are the functions', by principle."""
        of_pairs: list[dict[str, Judgement]] = [{} for _ in pairs]
        inputs = [pair.inputs for pair in pairs if pair.inputs is not None]
        for principle in self._functions:
            assert len(inputs) == len(pairs), "functions judge by what a reward function sees"
            for own, preference in zip(of_pairs, self._functions.preferences(principle, inputs), strict=True):
                own[principle] = Judgement(principle, preference, preference)
        return of_pairs

    def _in_order(self, of_pair: Mapping[str, Judgement]) -> list[Judgement]:
        return [of_pair[name] for name in self.principles.names]

    def _start(self) -> Judge:
        from kubealign_components.engines.judge_model import Judge

        if self._judge is None:
            assert self._files is not None
            spec = self.spec
            self._judge = Judge(
                with_weights(self._files),
                self._template,
                settings=self._settings,
                adapter=self._adapter,
                quantise=spec.quantise,
                dtype=spec.dtype,
                token_budget=spec.token_budget,
                max_length=spec.max_length,
            )
        return self._judge


def _template_settings(spec: JudgeSpec, files: ModelFiles | None, judged: Dataset | None) -> TemplateSettings:
    own = spec.template_settings()
    if files is None or judged is None or own != TemplateSettings():
        return own
    same = judged.manifest.identity.get("policy") == files.identity()["digest"]
    return stored_settings(judged) if same else own


def judging_principles(spec: JudgeSpec) -> PrincipleSet:
    """The principles that ``spec`` judges by.

    Raises:
        ConfigError: a set that cannot be used, or has none of them.
    """
    whole = load_principles(spec.principles)
    chosen = whole.only(spec.principle_names) if spec.principle_names else whole.of_stage(JUDGE)
    require(len(chosen) > 0, "principles", spec.principles, "a set with principles for the judge, or names")
    note_origin(digest(chosen.statements()), spec.principles)
    return chosen
