"""Types of arguments whose mistakes say what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kubealign_components.config import did_you_mean
from kubealign_pipelines.own_pipelines import is_own


class PipelineName(click.Choice[str]):
    """A pipeline by name, that of a run file that comes along, or the file of a pipeline of one's own."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """``value``; a file is looked at when it is needed."""
        return value if is_own(value) else super().convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so, or else files."""
        return super().shell_complete(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:  # noqa: ARG002
        """What stands after "Invalid value for"; other files and assignments have options of their own."""
        text = str(value)
        if text.endswith((".yaml", ".yml")) or Path(text).is_file():
            return f"{text!r} is no pipeline; give a run file with -f: -f {text}"
        if "=" in text:
            return f"{text!r} is no pipeline; give a setting with --set: --set {text}"
        return f"{text!r} is none of {', '.join(self.choices)}{did_you_mean(text, self.choices)}"


class LocalPath(click.Path):
    """A path on this machine, which the URI of a store is not.

    Args:
        instead: what is added where it is one.
    """

    def __init__(self, instead: str = "") -> None:
        super().__init__(path_type=Path)
        self._instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        text = str(value)
        if "://" in text or "\0" in text or not text.strip():
            self.fail(f"{text!r}: expected a path on this machine{self._instead}", param, ctx)
        return super().convert(value, param, ctx)
