"""Whether a reward agrees with people's own verdicts."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from kubealign_components.data.fingerprint import slug_word
from kubealign_components.data.labels import labelled_pairs
from kubealign_components.data.segments import Bools, Floats, Ints


class Agreement:
    """How often a reward prefers what people preferred, by source."""

    def __init__(self) -> None:
        self._won: defaultdict[str, float] = defaultdict(float)
        self._pairs: defaultdict[str, int] = defaultdict(int)

    def add(self, sources: pa.Array, row: Ints, chosen: Bools, rejected: Bools, reward: Floats) -> None:
        """Count the labelled pairs of a batch whose two completions have rewards.

        Args:
            sources: shape (rows,): the source of each prompt.
            row: shape (n,), ascending: the prompt of each completion.
            chosen: shape (n,).
            rejected: shape (n,).
            reward: shape (n,), NaN where there is none.
        """
        members = np.flatnonzero((chosen | rejected) & np.isfinite(reward))
        first, second = labelled_pairs(row[members], chosen[members])
        gap = reward[members[first]] - reward[members[second]]
        names = sources.take(pa.array(row[members[first]])).to_pylist()
        for name, wins in zip(names, ((gap > 0) + 0.5 * (gap == 0)).tolist(), strict=True):
            self._won[name] += wins
            self._pairs[name] += 1

    def numbers(self) -> dict[str, float]:
        """``label_agreement`` over all pairs, ``label_agreement_<source>`` and how many pairs there were."""
        total = sum(self._pairs.values())
        if not total:
            return {}
        by_source = {
            f"label_agreement_{slug_word(name)}": self._won[name] / pairs
            for name, pairs in sorted(self._pairs.items())
        }
        return {
            "label_agreement": sum(self._won.values()) / total,
            "label_pairs": float(total),
            **(by_source if len(by_source) > 1 else {}),
        }

    def warnings(self) -> list[str]:
        """A sentence for each source whose labels the reward contradicts more often than not."""
        return [
            f"the reward prefers the completion that people rejected in {1 - self._won[name] / pairs:.0%} of "
            f"{pairs} labelled pairs of source {name!r}: pairs by reward would train against the labels; "
            "look at the reward, or select with strategy labels"
            for name, pairs in sorted(self._pairs.items())
            if self._won[name] / pairs < 0.5
        ]
