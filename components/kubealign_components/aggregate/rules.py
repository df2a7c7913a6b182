"""Rules that overrule the judge where it is known to be wrong, or drop a pair.

A rule is a function, named ``module:function`` like a reward function, so that one of the user's own
needs nothing but to be importable. It takes a :class:`RuleInput`, and its settings by keyword, and
returns a :class:`Verdict`; the order of the two completions must mean nothing to it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kubealign_components.config import require
from kubealign_components.data.language import MIN_CONFIDENCE, identifier_version, identify_language
from kubealign_components.engines.reward_functions import import_function
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.json_types import JsonObject

SHIPPED = ("refusal_phrase", "language_mismatch")


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleInput:
    """What a rule sees of a pair."""

    messages: list[JsonObject]
    """The prompt: the chat up to the turn to complete."""
    prompt: str
    """Its last user turn, as plain text."""
    completions: tuple[str, str]
    """What the assistant wrote, as plain text."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a pair."""

    preferred: int | None = None
    """Position of the completion that is better; null when the rule has no opinion."""
    drop: bool = False
    """Whether the pair teaches nothing and goes."""


ABSTAIN = Verdict()
DROP = Verdict(drop=True)
Rule = Callable[[RuleInput], Verdict]


def refusal_phrase(pair: RuleInput, phrases: Sequence[str] = ("As an AI language model",)) -> Verdict:
    """Of two completions of which one has a boilerplate phrase, the other is better.

    Args:
        pair: the pair.
        phrases: texts to look for, in any case.
    """
    has = [any(p.casefold() in text.casefold() for p in phrases) for text in pair.completions]
    return ABSTAIN if has[0] == has[1] else Verdict(preferred=int(has[0]))


def language_mismatch(pair: RuleInput, min_confidence: float = MIN_CONFIDENCE) -> Verdict:
    """The completion in the prompt's language is better; a pair with none in that language goes.

    Nothing is said of texts whose language is not clear, such as very short ones.

    Args:
        pair: the pair.
        min_confidence: least probability that makes a language clear, in [0, 1].
    """
    prompt_language = identify_language(pair.prompt, min_confidence)
    languages = [identify_language(text, min_confidence) for text in pair.completions]
    if prompt_language is None or None in languages:
        return ABSTAIN
    fits = [language == prompt_language for language in languages]
    if fits[0] == fits[1]:
        return ABSTAIN if fits[0] else DROP
    return Verdict(preferred=int(fits[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSpec:
    """One rule, and how far it is trusted."""

    function: str
    """refusal_phrase, language_mismatch, or ``module:function``, importable where the stage runs."""
    probability: float = 1.0
    """How often the rule is asked at all."""
    flip_rate: float = 0.25
    """Label noise of the pairs that the rule decides."""
    settings: JsonObject = field(default_factory=dict)
    """Keyword arguments of the function, plain JSON."""

    def __post_init__(self) -> None:
        formed = ":" in self.function or self.function in SHIPPED
        require(formed, "rules.function", self.function, f"module:function, or one of {', '.join(SHIPPED)}")
        for name in ("probability", "flip_rate"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"rules.{name}", value, "a probability, from 0 to 1")
        # KFP turns integers into floats; the settings enter the recipe and must not depend on the way.
        whole = {
            k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in self.settings.items()
        }
        object.__setattr__(self, "settings", whole)

    @property
    def name(self) -> str:
        """Short name that its pairs are counted under."""
        return self.function.rpartition(":")[2]


PUBLISHED = (
    RuleSpec(function="refusal_phrase", probability=0.5),
    RuleSpec(function="language_mismatch"),
)
"""The rules of the published recipe, in its order: a later rule overrules an earlier one."""


class LoadedRule:
    """A rule ready to be asked.

    Args:
        spec: which rule.

    Raises:
        ConfigError: no such function, or it does not take the settings.
    """

    def __init__(self, spec: RuleSpec) -> None:
        self.spec = spec
        path = spec.function if ":" in spec.function else f"{__name__}:{spec.function}"
        module, _, name = path.rpartition(":")
        self._function = import_function(path, module, name, spec.settings)

    def ask(self, pair: RuleInput) -> Verdict:
        """What the rule says.

        Raises:
            DataError: something other than a :class:`Verdict` on one of the two completions.
        """
        verdict = self._function(pair, **self.spec.settings)
        if not isinstance(verdict, Verdict) or verdict.preferred not in (None, 0, 1):
            raise DataError(
                f"rule {self.spec.function} returned {verdict!r}, expected a Verdict for 0, 1 or None"
            )
        return verdict

    def identity(self) -> str:
        """Digest of the module's source, so that a change of a rule is a change of the recipe."""
        module = inspect.getmodule(self._function)
        try:
            source = inspect.getsource(module) if module else ""
        except (OSError, TypeError) as error:
            raise ConfigError("rules.function", self.spec.function, "a module with source") from error
        return hashlib.sha256(source.encode()).hexdigest()


def rules_identity(rules: Sequence[LoadedRule]) -> dict[str, str]:
    """What a recipe says of the rules beside their settings."""
    identities = {rule.spec.function: rule.identity() for rule in rules}
    if any(rule.spec.function == "language_mismatch" for rule in rules):
        identities["language_identifier"] = identifier_version()
    return identities
