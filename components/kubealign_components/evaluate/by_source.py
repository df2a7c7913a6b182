"""What changed for the prompts of each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kubealign_components.data.bootstrap import Interval, bootstrap_interval
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, ComparedPrompt

SOURCES = 50
"""Most sources that are told of, the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceGain:
    """The comparison on the prompts of one source."""

    source: str
    prompts: int
    gain: float | None
    """Of the mean reward; None without rewards."""
    interval: Interval | None
    """Of the gain, 95 %; None where a single prompt does not say how sure it is."""
    length_ratio: float
    """Mean tokens of the aligned completions, divided by those of the reference."""

    def cells(self) -> list[str]:
        """As a row of a table."""
        gain = "" if self.gain is None else f"{self.gain:+.4f}"
        interval = "" if self.interval is None else "{:+.4f} to {:+.4f}".format(*self.interval)
        return [self.source, str(self.prompts), gain, interval, f"{self.length_ratio:.2f}"]


def gains_by_source(prompts: Sequence[ComparedPrompt], *, seed: int) -> list[SourceGain]:
    """The comparison by source, the largest first.

    Args:
        prompts: measured, with both sides' completions.
        seed: of the bootstraps.
    """
    by_source: dict[str, list[ComparedPrompt]] = {}
    for prompt in prompts:
        by_source.setdefault(prompt.row["source"], []).append(prompt)
    order = sorted(by_source.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [_gain(source, own, seed) for source, own in order[:SOURCES]]


def _gain(source: str, prompts: Sequence[ComparedPrompt], seed: int) -> SourceGain:
    before, after = (
        float(np.mean([np.mean([c["num_tokens"] for c in prompt.completions(side)]) for prompt in prompts]))
        for side in (REFERENCE, ALIGNED)
    )
    differences = [d for prompt in prompts if (d := prompt.reward_difference) is not None]
    values = np.array(differences) if len(differences) == len(prompts) else None
    return SourceGain(
        source=source,
        prompts=len(prompts),
        gain=None if values is None else float(values.mean()),
        interval=None if values is None else bootstrap_interval(values, seed=seed),
        length_ratio=after / before,
    )
