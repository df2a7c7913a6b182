"""A local run on one page, and the pages of its stages."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from kubealign.cli.console import drop_text, duration, format_number, number_texts, reuse_text
from kubealign.local.results import Results, StageRow
from kubealign.local.rounds import rounds_of, why_stopped
from kubealign.local.runs import DIRECTORIES
from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.lineage import LineageStep, steps_of
from kubealign_components.data.schemas import EVALUATION
from kubealign_components.engines.rewards import REWARD, RewardSpec, RewardWords, reward_words
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.evaluate.audit import decided_numbers
from kubealign_components.evaluate.comparison import warnings
from kubealign_components.evaluate.verdict import verdict
from kubealign_components.gpus import visible_gpus
from kubealign_components.reports.graph import Node, picture
from kubealign_components.reports.html import render
from kubealign_components.reports.lineage import to_html
from kubealign_components.reports.rounds import COLUMNS
from kubealign_components.reports.sides import SidesRow, sides_charts
from kubealign_components.whole_file import write_whole

MANY = 0.1
"""Share of cut completions from which a reader is told that they were kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A page of the run."""

    title: str
    task: str
    """That made what it shows; empty for the lineage."""
    path: str
    """Relative to the summary."""


def write_summary(results: Results, path: Path, *, failure: str = "") -> None:
    """Write ``results`` as one HTML page, and the pages of its stages to ``reports`` beside it.

    Args:
        results: of the run.
        path: of the page.
        failure: why the run ended early.
    """
    links = write_pages(results, path.parent / "reports")
    page = render(
        "kubealign/local/summary.html",
        results=results,
        model=_model(results),
        failure=failure,
        verdict=verdict(results.evaluation),
        reward=_reward(results),
        charts=_charts(results),
        rounds=rounds_of(results),
        round_columns=COLUMNS,
        graph=_graph(results, links),
        links=links,
        duration=duration(results.seconds),
        reuse=reuse_text(results),
        notes=notes_on(results),
        cost=f"{results.cost(results.seconds):.2f}" if results.price else "",
        stages=[_stage(row, results) for row in results.stages],
        evaluation=_facts(decided_numbers(results.evaluation)),
        all_numbers=_facts(results.evaluation),
        counted=[
            [row.title, name.replace("_", " "), format_number(n)]
            for row in results.stages
            for name, n in sorted(row.counts.items())
        ],
        versions=_versions(results),
        changed=[
            [name, value, _default(results, name)] for name, value in _parameters(results, changed=True)
        ],
        parameters=_parameters(results),
        machine=_machine(),
    )
    write_whole(path, page)


def _model(results: Results) -> str:
    """Where the aligned model is: seen from the page where it lies beside it, so that both can be moved."""
    if results.model is None:
        return ""
    inside = results.model.is_relative_to(results.folder)
    return str(results.model.relative_to(results.folder) if inside else results.model)


def _facts(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), text) for name, text in number_texts(numbers).items()]


def _reward(results: Results) -> list[RewardWords]:
    """What was rewarded, in words; nothing where the run was given no reward of its own, or parameters that
    a pipeline of its user's own calls so and that are something else."""
    given = {name: results.parameters.get(argument) for argument, name in REWARD.items()}
    if not any(given.values()):
        return []
    try:
        return reward_words(from_mapping(RewardSpec, {k: v for k, v in given.items() if v}, "reward"))
    except ConfigError:
        return []


def write_pages(results: Results, folder: Path) -> list[Link]:
    """Write the pages of the run's stages to ``folder``, in the order in which they were made."""
    links: list[Link] = []
    for task, stage, what, page in _pages(results):
        folder.mkdir(exist_ok=True)
        name = f"{len(links) + 1:02d}-{re.sub(r'[^a-z0-9]+', '-', stage.lower())}.html"
        write_whole(folder / name, page)
        title = f"{stage[0].upper()}{stage[1:]}{what and f': {what}'}"
        links.append(Link(title=title, task=task, path=f"{folder.name}/{name}"))
    return links


def _pages(results: Results) -> Iterator[tuple[str, str, str, str]]:
    """Task, stage, what is shown, and text of every page: of what the stages have drawn, and the lineage."""
    for output in results.outputs_of("system.HTML"):
        if output.output != "lineage" and output.exists:
            stage = output.title.removeprefix("merge ")  # of a fan-out, which has one page of all its chunks
            page = output.path.read_text(encoding="utf-8")
            yield output.task, stage, output.output.replace("_", " "), page
    if results.last:
        yield "", "lineage", "", to_html(results.last)


def _charts(results: Results) -> list[Markup]:
    """Rewards and lengths before and after."""
    made = [output for output in results.outputs_of("system.Dataset") if output.exists]
    opened = [(output, Dataset.open(str(output.path), allow_empty=True)) for output in made]
    compared = [o for o, dataset in opened if dataset.manifest.schema == EVALUATION and dataset.rows]
    shown = results.of_chosen(compared)
    return list(sides_charts(list(Dataset.open(str(shown[-1].path)).iter_rows(of=SidesRow)))) if shown else []


def _graph(results: Results, links: Sequence[Link]) -> Markup:
    """The stages that led to the last result, each with its rows and time and leading to its page."""
    if results.last is None:
        return Markup("")
    made = [output for output in results.outputs if output.type in DIRECTORIES and output.exists]
    names = [Dataset.open(str(output.path), allow_empty=True).manifest.fingerprint for output in made]
    rows = dict(zip(names, results.stages))
    paths = {link.task: link.path for link in links}
    pages = {name: paths.get(output.task, "") for name, output in zip(names, made)}
    steps = steps_of(results.last.fingerprint, results.last.recipe)
    nodes = {
        step.fingerprint: _node(step, rows.get(step.fingerprint), pages.get(step.fingerprint, ""))
        for step in steps
    }
    edges = [(parent, step.fingerprint) for step in steps for parent in step.inputs.values()]
    return picture(nodes, edges, label=f"{len(steps)} stages of the run")


def _node(step: LineageStep, row: StageRow | None, link: str) -> Node:
    lines: tuple[str, ...] = ()
    if row:
        reused = f", {row.reused:,} rows reused" if row.reused else ""
        lines = (f"{row.rows_in:,} to {row.rows_out:,} rows", duration(row.seconds) + reused)
    return Node(title=step.stage.replace("_", " "), lines=lines, link=link)


def _parameters(results: Results, *, changed: bool = False) -> list[tuple[str, str]]:
    """Names and values; with ``changed`` of those alone that are not their defaults."""
    return sorted(
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in results.parameters.items()
        if not changed or name not in results.defaults or results.defaults[name] != value
    )


def _default(results: Results, name: str) -> str:
    return json.dumps(results.defaults[name], ensure_ascii=False) if name in results.defaults else "none"


def _machine() -> list[tuple[str, str]]:
    """What the run had to work with."""
    cards: Sequence[str] = ()
    with suppress(EngineError):  # a driver that hangs is no reason to leave without a page
        cards = visible_gpus().names
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("processor cores", str(os.cpu_count())),
        ("memory", f"{memory:.0f} GiB"),
        *([("GPUs", str(len(cards)))] if cards else []),
        ("system", platform.platform()),
    ]


def _versions(results: Results) -> list[tuple[str, str]]:
    """Of what the stages ran with; several where they differ."""
    origins = results.last.origins.values() if results.last else ()
    versions: dict[str, dict[str, None]] = {}
    for origin in origins:
        for name, version in origin["versions"].items():
            versions.setdefault(name, {})[version] = None
    return [(name, ", ".join(values)) for name, values in versions.items()]


def _stage(row: StageRow, results: Results) -> list[str]:
    reused = "" if row.reused is None else str(row.reused)
    cost = [f"{results.cost(row.seconds):.2f}"] if results.price else []
    return [row.title, str(row.rows_in), str(row.rows_out), reused, drop_text(row), str(row.seconds), *cost]


def notes_on(results: Results) -> list[str]:
    """What a reader of the numbers must know: what looks like no gain, why rounds ended, and completions that
    were cut at max_new_tokens."""
    notes = warnings(results.evaluation) if "length_ratio" in results.evaluation else []
    if reason := why_stopped(results):
        notes.append(f"No further round was sampled or trained: {reason}.")
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
