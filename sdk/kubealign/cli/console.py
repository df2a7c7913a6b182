"""The console, and tables of what there is: results, parameters, settings."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from kubealign.local.results import Results, StageRow
from kubealign_components.printable import for_people
from kubealign_pipelines.checking.describe import Setting
from kubealign_pipelines.graph import Parameter

PIPE_WIDTH = 120
"""Columns of a table that goes to a file."""


class PlainConsole(Console):
    """A console on which texts do nothing but stand there: control characters in them are written out."""

    def render_str(self, text: str, **settings: Any) -> Text:
        """``text`` with its markup, as it is measured and shown."""
        return super().render_str(for_people(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Segments whose texts are those of ``renderable``; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(for_people(segment.text), segment.style)


def standard_console(*, stderr: bool = False) -> Console:
    """A console on today's standard output, which stays the same while prints are redirected."""
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else max(int(columns) if columns.isdecimal() else PIPE_WIDTH, 1)
    return PlainConsole(file=stream, highlight=False, width=width)


def stage_table(results: Results) -> Table:
    """Rows in, out and dropped by stage."""
    table = Table(title=f"{results.pipeline}, {duration(results.seconds)}", title_justify="left")
    table.add_column("stage")
    for name in ("in", "out", "reused", "time"):
        table.add_column(name, justify="right")
    table.add_column("dropped")
    for row in results.stages:
        reused = "" if row.reused is None else str(row.reused)
        table.add_row(
            row.title, str(row.rows_in), str(row.rows_out), reused, duration(row.seconds), drop_text(row)
        )
    return table


def drop_text(row: StageRow) -> str:
    """What a stage dropped, and why, on one line."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in row.dropped.items())


def number_table(title: str, numbers: Mapping[str, float]) -> Table:
    """Names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, text in number_texts(numbers).items():
        table.add_row(name.replace("_", " "), text)
    return table


def parameter_table(parameters: Sequence[Parameter]) -> Table:
    """Names, defaults and meanings."""
    table = Table()
    table.add_column("parameter")
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning", overflow="fold")
    for parameter in parameters:
        default = "[bold]required[/]" if parameter.required else escape(json.dumps(parameter.default))
        table.add_row(parameter.name, default, escape(parameter.description))
    return table


def setting_table(settings: Sequence[Setting]) -> Table:
    """Every setting as a run file has it: type, default, allowed values, meaning."""
    table = Table()
    table.add_column("setting", no_wrap=True)
    table.add_column("type")
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning and allowed values", overflow="fold")
    for setting in settings:
        required = setting.default is dataclasses.MISSING
        default = "[bold]required[/]" if required else escape(json.dumps(setting.default, default=str))
        allowed = f" One of {', '.join(setting.choices)}." if setting.choices else ""
        table.add_row(escape(setting.name), setting.type, default, escape(setting.meaning + allowed))
    return table


def format_number(value: Any) -> str:
    """Four significant digits; whole numbers whole."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def number_texts(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Each number in words, its interval beside it where ``numbers`` has its ends, ``name_low`` and
    ``name_high``; by name."""
    ends = {name: (f"{name}_low", f"{name}_high") for name in numbers}
    intervals = {name: both for name, both in ends.items() if numbers.keys() >= {*both}}
    within = {end for both in intervals.values() for end in both}
    texts = {name: format_number(value) for name, value in numbers.items()}
    for name, (low, high) in intervals.items():
        texts[name] += f" [{texts[low]}, {texts[high]}]"
    return {name: text for name, text in texts.items() if name not in within}


def reuse_text(results: Results) -> str:
    """How many chunks and rows were taken from earlier runs, or nothing when none were."""
    parts = [
        f"{row.title} {row.counts['chunks_reused']} of {row.counts['chunks']} chunks ({row.reused} of "
        f"{row.rows_out} rows)"
        for row in results.stages
        if row.reused
    ]
    return f"Reused from earlier runs: {'; '.join(parts)}." if parts else ""


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
