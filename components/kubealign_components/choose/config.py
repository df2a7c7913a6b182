"""Settings of ``choose``."""

from __future__ import annotations

from dataclasses import dataclass

from kubealign_components.config import execution, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ChooseConfig:
    """Settings of ``choose``."""

    max_kl: float | None = None
    """Most nats a completion that the chosen model may be away from its reference, by the upper end of its
    interval; null for any number."""
    max_length_ratio: float | None = None
    """Most tokens of a completion of the chosen model, in those of its reference, by the upper end of its
    interval; null for any number."""
    reduction_factor: int = 0
    """Of successive halving: choose one variant in so many, to be trained further; 0 to choose the one of
    all."""
    rounds: int = 0
    """Of rounds of alignment, which are chosen among as variants of a sweep are: how many there were to be.
    The bounds hold for all of these, whichever was the last one. 0 of variants."""
    seed: int = 0
    """Of the bootstrap."""
    min_gain: float | None = execution(None)
    """Fail the run when the lower bound of the chosen model's gain is below; null to only report."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these evaluations, is taken."""

    def __post_init__(self) -> None:
        for name in ("max_kl", "max_length_ratio"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "a positive number, or null")
        factor = self.reduction_factor
        require(factor == 0 or factor > 1, "reduction_factor", factor, "2 or more, or 0")
        require(self.rounds == 0 or self.rounds > 1, "rounds", self.rounds, "2 or more, or 0")
        require(not (factor and self.rounds), "reduction_factor", factor, "0 with rounds: none goes on")

    @property
    def kind(self) -> str:
        """What is chosen among, in words."""
        return "round" if self.rounds else "variant"
