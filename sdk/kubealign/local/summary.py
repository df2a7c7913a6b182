"""A local run on one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kubealign.cli.console import drop_text, duration, format_number, reuse_text
from kubealign.local.results import Results, StageRow
from kubealign_components.reports.html import render
from kubealign_components.reports.lineage import to_html
from kubealign_components.whole_file import write_whole

MANY = 0.1
"""Share of cut completions from which a reader is told that they were kept."""


def write_summary(results: Results, path: Path, *, failure: str = "") -> None:
    """Write ``results`` as one HTML page that needs nothing beside itself; ``failure`` says why the run ended
    early."""
    page = render(
        "kubealign/local/summary.html",
        results=results,
        failure=failure,
        duration=duration(results.seconds),
        reuse=reuse_text(results),
        notes=notes_on(results),
        stages=[_stage(row) for row in results.stages],
        evaluation=[(name.replace("_", " "), format_number(n)) for name, n in results.evaluation.items()],
        counted=[
            [row.title, name.replace("_", " "), format_number(n)]
            for row in results.stages
            for name, n in sorted(row.counts.items())
        ],
        pages=list(_pages(results)),
        parameters=sorted(
            (name, json.dumps(value, ensure_ascii=False)) for name, value in results.parameters.items()
        ),
    )
    write_whole(path, page)


def _stage(row: StageRow) -> list[str]:
    reused = "" if row.reused is None else str(row.reused)
    return [row.title, str(row.rows_in), str(row.rows_out), reused, drop_text(row), str(row.seconds)]


def notes_on(results: Results) -> list[str]:
    """What a reader of the numbers must know about completions that were cut at max_new_tokens."""
    notes = []
    for row in results.stages:
        sampled = row.counts.get("sampled_completions", 0)
        dropped, kept = row.counts.get("truncated_dropped", 0), row.counts.get("truncated_kept", 0)
        if dropped:
            notes.append(
                f"{dropped} of {sampled} sampled completions were dropped because they were cut at "
                "sample_max_new_tokens. Long answers are missing from the reference rewards, which biases "
                "quantile rewards and pairs towards short ones. Raise sample_max_new_tokens, or keep them."
            )
        if kept > sampled * MANY:
            notes.append(
                f"{kept} of {sampled} sampled completions were cut at sample_max_new_tokens and kept: their "
                "rewards are those of unfinished texts. Raise sample_max_new_tokens if that is not meant."
            )
    return notes


def _pages(results: Results) -> Iterator[tuple[str, str]]:
    """Titles and texts of the pages to embed: the stages' reports, then the lineage of the last result."""
    for output in results.outputs_of("system.HTML"):
        if output.output != "lineage" and output.exists:
            yield f"{output.title}: {output.output.replace('_', ' ')}", output.path.read_text()
    if results.last:
        yield "Lineage", to_html(results.last)
