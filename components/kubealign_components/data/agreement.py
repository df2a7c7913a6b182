"""Whether a reward agrees with people's own verdicts, counted where both are known.

Each labelled pair whose completions have rewards is a win of the labels (1), a tie (0.5) or a defeat (0).
Their sums stand in a stage's statistics, so that they add up over parts, and pages and logs can read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kubealign_components.data.labels import preferred_pairs, verdicts_of
from kubealign_components.data.schemas import RewardedRow
from kubealign_components.data.segments import Floats, Ints
from kubealign_components.data.stats import Stats

AGREEMENT = "label_agreement"
"""Over all pairs; of one source, under this, an underscore and the source's name, whatever letters it has."""
PAIRS = "label_pairs"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the reward prefers what people preferred."""

    source: str | None
    """None for all together."""
    share: float
    """Of the pairs, in [0, 1]; a tie counts half."""
    pairs: int

    @property
    def warning(self) -> str:
        """What to do about labels that the reward contradicts more often than not; else empty."""
        if self.source is None or self.share >= 0.5:
            return ""
        return (
            f"the reward prefers the completion that people rejected in {1 - self.share:.0%} of "
            f"{self.pairs} labelled pairs of source {self.source!r}: pairs by reward would train against the "
            "labels; look at the reward, or select with strategy labels"
        )


def count_agreement(
    stats: Stats, sources: Sequence[str], row: Ints, pairs: tuple[Ints, Ints], reward: Floats
) -> None:
    """Add the labelled pairs of some prompts, whose two completions have rewards, to ``stats``.

    Args:
        stats: where they are counted.
        sources: of each prompt, shape (rows,).
        row: shape (n,), ascending: the prompt of each completion.
        pairs: of :func:`~kubealign_components.data.labels.preferred_pairs`.
        reward: shape (n,), NaN where there is none.
    """
    first, second = pairs
    gap = reward[first] - reward[second]
    finite = np.isfinite(gap)
    if not finite.any():
        return
    wins = ((gap > 0) + 0.5 * (gap == 0))[finite]
    names = np.array([sources[i] for i in row[first[finite]]])
    stats.counts[PAIRS] += len(wins)
    stats.observe(AGREEMENT, wins.tolist())
    for name in np.unique(names).tolist():
        stats.observe(f"{AGREEMENT}_{name}", wins[names == name].tolist())


def count_agreement_of_rows(rows: Sequence[RewardedRow], stats: Stats) -> None:
    """:func:`count_agreement` of rows that were just rewarded."""
    completions = [c for row in rows for c in row["completions"]]
    counts = np.array([len(row["completions"]) for row in rows], dtype=np.int64)
    of = np.repeat(np.arange(len(rows)), counts)
    reward = np.array([c["reward"] for c in completions], dtype=np.float64)
    pairs = preferred_pairs(verdicts_of(completions), of)
    count_agreement(stats, [row["source"] for row in rows], of, pairs, reward)


def agreements(sums: Mapping[str, Sequence[float]]) -> list[Agreement]:
    """What statistics tell of it: all together first, then source by source; empty where there are no pairs.

    Args:
        sums: sum and count by name, as :class:`Stats` or a manifest's statistics have them.
    """
    return [
        Agreement(name.removeprefix(AGREEMENT).removeprefix("_") or None, total / pairs, int(pairs))
        for name, (total, pairs) in sorted(sums.items())
        if name == AGREEMENT or name.startswith(f"{AGREEMENT}_")
    ]
