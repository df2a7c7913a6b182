"""The one way by which commands write lines that hold texts of others."""

from __future__ import annotations

import click

from kubealign_components.printable import for_people


def say(text: object = "", *, err: bool = False) -> None:
    """Write ``text`` as a line, without secrets and with control characters written out."""
    click.echo(for_people(str(text)), err=err)


def counted(number: int, word: str) -> str:
    """``number`` of what ``word`` names."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
