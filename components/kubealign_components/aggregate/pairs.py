"""The judged pairs of a prompt, in an order that does not depend on which was called first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubealign_components.aggregate.scales import require_finite
from kubealign_components.errors import DataError

if TYPE_CHECKING:
    from kubealign_components.data.schemas import Completion, JudgedRow


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPair:
    """Two completions, the smaller id first, and how the judge scored them under every principle."""

    prompt: str
    completions: tuple[Completion, Completion]
    s12: tuple[float, ...]
    """By position of the principle; above 0 when the first completion is preferred."""
    s21: tuple[float, ...]
    """The same with the second completion shown first."""

    @property
    def ids(self) -> tuple[str, str]:
        """Ids of the completions."""
        first, second = self.completions
        return str(first["completion_id"]), str(second["completion_id"])

    def scores(self, scales: Sequence[float], *, keep_inconsistent: bool = False) -> list[float]:
        """Debiased scores in favour of the first completion, by position of the principle.

        The mean of both orders over the principle's scale; 0 where the orders disagree, since the
        judge then goes by position more than by content, unless ``keep_inconsistent``.
        """
        return [
            (a + b) / 2 / scale if keep_inconsistent or (a > 0 and b > 0) or (a < 0 and b < 0) else 0.0
            for a, b, scale in zip(self.s12, self.s21, scales)
        ]


@dataclass(frozen=True, slots=True)
class Unusable:
    """A pair that no row can be made of, and why."""

    reason: str


def judged_pairs(row: JudgedRow, principles: Sequence[str]) -> Iterator[JudgedPair | Unusable]:
    """The pairs of a ``kubealign.judged/v1`` row.

    Args:
        row: needs ``prompt_id``, ``completions`` and ``judgements``.
        principles: names that every pair must have been judged by.

    Raises:
        DataError: judgements of completions that are not there, of one completion with itself, twice
            of the same pair and principle, or that are not finite.
    """
    prompt, completions = str(row["prompt_id"]), row["completions"]
    by_pair: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    for judgement in row["judgements"] or ():
        first, second, name = judgement["first"], judgement["second"], judgement["principle"]
        if first == second or not (0 <= first < len(completions) and 0 <= second < len(completions)):
            raise DataError(
                f"prompt {prompt}: a judgement of completions {first} and {second}, expected two different "
                f"positions below {len(completions)}"
            )
        s12 = require_finite(judgement["s12"], prompt, name)
        s21 = require_finite(judgement["s21"], prompt, name)
        if completions[first]["completion_id"] > completions[second]["completion_id"]:
            first, second, s12, s21 = second, first, -s21, -s12
        scores = by_pair.setdefault((first, second), {})
        if name in scores:
            raise DataError(f"prompt {prompt}: completions {first} and {second} are judged twice by {name!r}")
        scores[name] = (s12, s21)
    for (first, second), scores in by_pair.items():
        yield _pair(prompt, completions[first], completions[second], scores, principles)


def _pair(
    prompt: str,
    first: Completion,
    second: Completion,
    scores: Mapping[str, tuple[float, float]],
    principles: Sequence[str],
) -> JudgedPair | Unusable:
    if first["completion_id"] == second["completion_id"]:
        return Unusable("identical_completions")
    if any(name not in scores for name in principles):
        return Unusable("missing_principle")
    return JudgedPair(
        prompt=prompt,
        completions=(first, second),
        s12=tuple(scores[name][0] for name in principles),
        s21=tuple(scores[name][1] for name in principles),
    )
