"""A look into a dataset: what it is, what was dropped, and a few rows as a person would read them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kubealign.cli.console import format_number, number_texts
from kubealign_components.data.dataset import Dataset
from kubealign_components.json_types import JsonObject
from kubealign_components.printable import shortened
from kubealign_components.reports.lineage import USE_COLUMNS, use_rows

TEXT = 400
"""Characters of a message that are shown."""
SHOWN = ("label", "finish_reason", "num_tokens", "reward", "quantile_reward", "logprob", "sampler_logprob")


def show(dataset: Dataset, rows: int, console: Console) -> None:
    """Print what ``dataset`` is, its counts, and its first ``rows`` rows."""
    console.print(dataset.uri, markup=False, soft_wrap=True)  # whole, so that it can be copied
    console.print(_facts(dataset))
    counts = _counts(dataset)
    if counts.row_count:
        console.print(counts)
    if uses := use_rows(dataset.manifest):
        console.print(_uses(uses))
    for number, row in enumerate(itertools.islice(dataset.iter_rows(), rows)):
        console.rule(f"row {number}", align="left")
        for line in row_lines(row):
            console.print(line)


def _facts(dataset: Dataset) -> Table:
    manifest = dataset.manifest
    table = Table(show_header=False)
    table.add_column("fact")
    table.add_column("value", overflow="fold")
    size = sum(shard.size for shard in manifest.shards)
    facts = {
        "schema": manifest.schema,
        "rows": f"{manifest.rows:,}",
        "shards": f"{len(manifest.shards)}, {size / 2**20:.1f} MiB",
        "slug": manifest.slug,
        "fingerprint": manifest.fingerprint,
        "made by": manifest.provenance.step["stage"],
        **manifest.identity,
    }
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _counts(dataset: Dataset) -> Table:
    stats = dataset.manifest.stats
    table = Table(show_header=False)
    table.add_column("name")
    table.add_column("value", justify="right")
    for name in ("rows_in", "rows_out"):
        table.add_row(name.replace("_", " "), format_number(stats.get(name, 0)))
    for reason, count in stats.get("dropped", {}).items():
        table.add_row(f"dropped: {reason.replace('_', ' ')}", format_number(count))
    for name, text in number_texts({**stats.get("counts", {}), **stats.get("numbers", {})}).items():
        table.add_row(name.replace("_", " "), text)
    return table


def _uses(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title="What the pods that led here took", title_justify="left")
    for name in USE_COLUMNS:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def row_lines(row: JsonObject) -> Iterator[str]:
    """A row as lines of rich text: the chat, then each completion with its numbers."""
    for name in ("prompt_id", "source", "split", "step", "reward_difference", "metrics", "pairs"):
        if row.get(name) is not None:
            yield f"[dim]{name}[/] {escape(str(row[name]))}"
    if row.get("messages"):
        yield from _messages(row["messages"], "")
    for name in ("completions", "reference", "aligned"):
        for number, completion in enumerate(row.get(name) or ()):
            yield f"[cyan]{name.removesuffix('s')} {number}[/]  [dim]{escape(_numbers(completion))}[/]"
            yield from _messages(completion["messages"], "  ")


def _messages(text: str, indent: str) -> Iterator[str]:
    for message in json.loads(text):
        content = message.get("content")
        said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        yield f"{indent}[bold]{escape(str(message.get('role')))}:[/] {escape(shortened(said, TEXT))}"
        if message.get("tool_calls"):
            calls = shortened(json.dumps(message["tool_calls"], ensure_ascii=False), TEXT)
            yield f"{indent}[bold]calls:[/] {escape(calls)}"


def _numbers(completion: JsonObject) -> str:
    parts = ["reference" if completion["reference"] else str(completion["model"])]
    parts += [
        f"{name} {format_number(completion[name])}" for name in SHOWN if completion.get(name) is not None
    ]
    return ", ".join(parts)
