"""What a reward function is called with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


class Refused(Exception):
    """Raised by a reward function for a completion that it cannot reward, through no fault of the completion.

    Args:
        reason: the name under which such completions are counted; they are left out.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardInput:
    """What a reward function sees of one completion."""

    messages: list[Message]
    """The prompt: the chat up to the turn to complete."""
    completion: list[Message]
    """The assistant's messages."""
    text: str
    """What the assistant wrote, as plain text."""
    answers: list[str] = field(default_factory=list)
    """Verifiable answers of the prompt, possibly none."""
    tools: list[dict[str, Any]] | None = None
    """Tool definitions of the prompt."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The source's own fields."""
    num_tokens: int = 0
    """Tokens of the completion under the policy's tokenizer, end-of-turn included."""
    finish_reason: str = "stop"
    """``stop``, ``length`` (cut at max_new_tokens) or ``offline``."""
    principles: list[dict[str, str]] | None = None
    """What a reward model scores it by, each with ``name`` and ``text``; null for the spec's principles."""
