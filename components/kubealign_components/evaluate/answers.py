"""A held-out prompt with what both models answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from kubealign_components.data.schemas import Completion, EvaluationRow, TokenizedRow

REFERENCE, ALIGNED = "reference", "aligned"
"""The two sides of a comparison, as the columns of ``kubealign.evaluation/v1`` are called."""


@dataclass(slots=True)
class Answers:
    """The completions of one model to one prompt."""

    completions: list[Completion]
    sampled: int
    """How many were sampled, those that were dropped as truncated included."""
    truncated: int
    """How many were cut at max_new_tokens, those that were dropped for it included."""


@dataclass(slots=True)
class ComparedPrompt:
    """A prompt, and the answers of either side as they come to be there."""

    row: TokenizedRow
    sides: dict[str, Answers] = field(default_factory=dict)
    reward_difference: float | None = None
    """Mean aligned reward minus mean reference reward; None before both are measured, and without rewards."""

    def completions(self, side: str) -> list[Completion]:
        """Those of ``side``."""
        return self.sides[side].completions

    def evaluation_row(self) -> EvaluationRow:
        """As the output holds it."""
        return {
            "prompt_id": self.row["prompt_id"],
            "messages": self.row["messages"],
            "reference": self.completions(REFERENCE),
            "aligned": self.completions(ALIGNED),
            "reward_difference": self.reward_difference,
        }
