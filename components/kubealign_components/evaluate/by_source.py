"""What changed for the prompts of each source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kubealign_components.data.bootstrap import bootstrap_interval
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, ComparedPrompt
from kubealign_components.evaluate.controlled import Estimate

SOURCES = 50
"""Most sources that are told of, the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceGain:
    """The comparison on the prompts of one source."""

    source: str
    prompts: int
    gain: Estimate | None
    """Of the mean reward; None without rewards. A single prompt does not say how sure it is."""
    length_ratio: float
    """Mean tokens of the aligned completions, divided by those of the reference."""

    def cells(self) -> list[str]:
        """As a row of a table."""
        gain, interval = "", ""
        if self.gain is not None:
            gain = f"{self.gain.value:+.4f}"
            if self.prompts > 1:
                interval = f"{self.gain.low:+.4f} to {self.gain.high:+.4f}"
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
    gain = None
    if len(differences) == len(prompts):
        values = np.array(differences)
        low, high = bootstrap_interval(values, seed=seed)
        gain = Estimate(value=float(values.mean()), low=low, high=high)
    return SourceGain(source=source, prompts=len(prompts), gain=gain, length_ratio=after / before)
