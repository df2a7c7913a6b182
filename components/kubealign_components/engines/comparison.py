"""What a judge is asked, whoever it is: which of two responses is better by one principle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubealign_components.data.templates import JudgeTemplate

LABELS = ("a", "b")
"""What the two responses are called, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two responses, in the order in which they are shown, and what they are compared by."""

    messages: Sequence[Mapping[str, object]]
    first: str
    second: str
    principle: str
    """Its name."""
    statement: str

    def question(self, template: JudgeTemplate) -> str:
        """The user turn that asks."""
        return template.question(
            self.messages, self.first, self.second, name=self.principle, text=self.statement
        )
