"""Files as users give them: pairs, and what is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from kubealign_components.data.withdrawals import Withdrawal, withdrawal_text


def write_pairs(path: Path, count: int) -> str:
    """``count`` questions, each with the better and the worse of two answers, as JSON lines; the path."""
    rows = [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_withdrawal(path: Path, *, prompts: Iterable[str] = (), sources: Iterable[str] = ()) -> str:
    """A withdrawal of the prompts of these ids and of what came from ``sources``; the path."""
    withdrawal = Withdrawal(prompt_ids=frozenset(prompts), sources=frozenset(sources))
    path.write_text(withdrawal_text(withdrawal))
    return str(path)
