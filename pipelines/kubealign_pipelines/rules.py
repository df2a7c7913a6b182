"""What holds for a pipeline's parameters beyond the rules of any one stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kubealign_components.config import require


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A setting that decides which stages a graph has, or in which order.

    It stands among a run file's parameters and is fixed when the pipeline is compiled: a condition in the
    graph would hide stages from the page of a run. The compiled pipeline has no parameter of that name.
    """

    name: str
    values: tuple[str, ...] | tuple[int, ...]
    """The first is the default."""
    meaning: str
    has_stages: bool = True
    """Whether other values bring stages, and with them settings, that the default does not have."""

    def allows(self, value: object) -> bool:
        """Whether ``value`` is one of those that can be chosen; Kubeflow hands a task 2.0 for a 2."""
        return not isinstance(value, bool) and value in self.values

    def departs(self, value: object) -> object:
        """``value``, or None where it is the default, with which the stages are what they are without it."""
        return None if value == self.values[0] else value

    @property
    def listed(self) -> str:
        """The values in words."""
        return ", ".join(map(str, sorted(self.values)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Rules that the command line holds parameters to before a run."""

    choices: tuple[Choice, ...] = ()
    """What is chosen by name when the pipeline is compiled."""
    deciding: Mapping[str, Callable[[object], object]] = field(default_factory=dict)
    """Parameters that decide, too, when the pipeline is compiled, and what of their value does; None for one
    that leaves the stages as they are."""
    ranges: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Numbers that may be a mapping, too, which then decides when the pipeline is compiled: its keys, and
    what JSON calls their types."""
    one_of: tuple[tuple[str, ...], ...] = ()
    """Groups of parameters of which at least one must be given and not be empty, in a graph that has them."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The stage whose further settings the parameter ``NAME_options`` holds, by ``NAME``."""

    def shape(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """What of ``parameters`` decides which stages there are: with it alone, the same are built."""
        chosen = {choice.name: choice.departs(parameters.get(choice.name)) for choice in self.choices}
        decided = {name: what(parameters.get(name)) for name, what in self.deciding.items()}
        return {name: value for name, value in {**chosen, **decided}.items() if value is not None}

    def choose(self, parameters: Mapping[str, object]) -> dict[str, str]:
        """Every choice by name, as ``parameters`` have it or by default.

        Raises:
            ConfigError: a value that is none of a choice's.
        """
        made: dict[str, str] = {}
        for choice in self.choices:
            value = parameters.get(choice.name, choice.values[0])
            expected = f"one of {choice.listed}, fixed when the pipeline is compiled"
            require(choice.allows(value), choice.name, value, expected)
            made[choice.name] = str(next(one for one in choice.values if one == value))
        return made


LOGPROBS_ORDER = Choice(
    name="logprobs_order",
    values=("after", "before"),
    meaning="Whether reference log-probabilities are computed after selection, of what is trained on alone, "
    "or before it, so that selections can be tried without scoring again.",
)
