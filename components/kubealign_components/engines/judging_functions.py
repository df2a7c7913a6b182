"""Reward functions that judge in a model's place, each under one principle that it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubealign_components.config import did_you_mean, require
from kubealign_components.engines.reward_functions import LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.engines.rewards import function_params
from kubealign_components.errors import EngineError


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgingFunction(RewardFunctionSpec):
    """A reward function, and the principle under which it judges."""

    principle: str
    """Name of the principle that it measures: of two completions the one with the higher reward is better."""


def check_principle(position: int, specs: Sequence[JudgingFunction], principles: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where the function at ``position`` is of a principle that is not among
    ``principles``, or that a function before it judges by."""
    name = specs[position].principle
    names = f"one of {', '.join(principles)}{did_you_mean(name, principles)}"
    require(name in principles, "functions.principle", name, names)
    earlier = [spec.principle for spec in specs[:position]]
    require(name not in earlier, "functions.principle", name, "one function a principle")


class FunctionJudge:
    """Compares two completions under the principles that have a function.

    Args:
        specs: at most one a principle.
        principles: names of the principles that pairs are judged by.

    Raises:
        ConfigError: a principle that is not among ``principles``, or has two functions; or a function that
            cannot be used.
    """

    def __init__(self, specs: Sequence[JudgingFunction], principles: Sequence[str]) -> None:
        for position in range(len(specs)):
            check_principle(position, specs, principles)
        self._specs = specs
        self._functions = {spec.principle: LoadedFunction(spec) for spec in specs}

    def __contains__(self, principle: str) -> bool:
        return principle in self._functions

    def __len__(self) -> int:
        return len(self._functions)

    def params(self) -> dict[str, object]:
        """What a recipe says of the functions; nothing without any."""
        if not self._specs:
            return {}
        identities = {f.spec.recipe_name: f.identity for f in self._functions.values()}
        return {"functions": function_params(self._specs), "function_identities": identities}

    def preference(self, principle: str, inputs: tuple[RewardInput, RewardInput]) -> float:
        """By how much the first of ``inputs`` has the higher weighted reward.

        Raises:
            EngineError: the function failed, or refused one of the two.
        """
        function = self._functions[principle]
        try:
            first, second = (function(one) for one in inputs)
        except Refused as error:
            raise EngineError(
                f"reward function {function.spec.function} judges by {principle!r} and refused a completion "
                f"({error.reason}); name one that rewards every completion"
            ) from error
        return function.spec.weight * (first - second) or 0.0  # no negative zero

    def close(self) -> None:
        """End the functions' processes."""
        for function in self._functions.values():
            function.close()
