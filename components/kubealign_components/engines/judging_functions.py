"""Reward functions that judge in a model's place, each under one principle that it measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kubealign_components.config import did_you_mean, require
from kubealign_components.engines.reward_functions import LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.engines.rewards import function_params
from kubealign_components.errors import EngineError

FUNCTION_IDENTITIES = "function_identities"
"""What a recipe calls what the functions are."""


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

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def params(self) -> dict[str, object]:
        """What a recipe says of the functions; nothing without any."""
        if not self._specs:
            return {}
        identities = {f.spec.recipe_name: f.identity for f in self._functions.values()}
        return {"functions": function_params(self._specs), FUNCTION_IDENTITIES: identities}

    def preferences(self, principle: str, pairs: Sequence[tuple[RewardInput, RewardInput]]) -> list[float]:
        """By how much the first of each pair has the higher weighted reward. What stands in several pairs is
        rewarded once.

        Raises:
            EngineError: the function failed, or refused a completion.
        """
        function = self._functions[principle]
        rewards = self._rewards(principle, function, {id(one): one for pair in pairs for one in pair})
        weight = function.spec.weight  # and no negative zero
        return [weight * (rewards[id(first)] - rewards[id(second)]) or 0.0 for first, second in pairs]

    def _rewards(
        self, principle: str, function: LoadedFunction, inputs: Mapping[int, RewardInput]
    ) -> dict[int, float]:
        try:
            if function.spec.at_once == 1:  # in this thread, whose signals end an endless call
                return {key: function(one) for key, one in inputs.items()}
            with ThreadPoolExecutor(function.spec.at_once, "judge") as threads:
                return dict(zip(inputs, threads.map(function, inputs.values()), strict=True))
        except Refused as error:
            raise EngineError(
                f"reward function {function.spec.function} judges by {principle!r} and refused a completion "
                f"({error.reason}); name one that rewards every completion"
            ) from error

    def close(self) -> None:
        """End the functions' processes."""
        for function in self._functions.values():
            function.close()
