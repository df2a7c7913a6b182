"""What code of a user's own has raised, in one line. Every command imports this: it must cost nothing."""

from __future__ import annotations

import traceback


def where(error: BaseException, file: str) -> str:
    """What ``error`` says, with the last line of ``file`` that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    said = str(error)
    if isinstance(error, SyntaxError) and error.filename == file:
        lines, said = [error.lineno], error.msg
    text = (said.strip() or "no reason given").splitlines()[0]
    location = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {text}{location}"
