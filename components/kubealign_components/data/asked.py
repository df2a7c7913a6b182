"""Which prompts a round samples, where it samples a share of them."""

from __future__ import annotations

from dataclasses import dataclass

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.seeds import is_held_out, unit_interval

_EVERY = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedPrompts:
    """The prompts of one round: those that are held out, by which all rounds are compared, and a share of the
    others.

    A prompt's id places it on a circle, of which each round takes the next ``share``: every prompt is taken
    before one is taken again, and none has to know of another.
    """

    share: float
    """Of the prompts that are not held out, above 0 and at most 1."""
    number: int
    """Of the round, from 1."""
    validation_fraction: float
    """Share that is held out, as in ``mix``."""
    split_seed: int
    """Of the split, as in ``mix``."""

    def __contains__(self, prompt_id: str) -> bool:
        if self.share == _EVERY or is_held_out(prompt_id, self.validation_fraction, self.split_seed):
            return True
        position = unit_interval(self.split_seed, "rounds", prompt_id)
        return (position - (self.number - 1) * self.share) % 1.0 < self.share


def round_of(prompts: Dataset) -> int:
    """The number of the round that ``prompts`` are asked in, from 1; those that more is drawn of are asked in
    the round of the others."""
    step = prompts.manifest.provenance.step
    while step["stage"] == "draw_more":
        step = prompts.manifest.recipe[step["inputs"]["prompts"]]
    return int(step["params"]["number"]) if step["stage"] == "next_round" else 1
