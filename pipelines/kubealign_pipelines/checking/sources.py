"""Sources at second 0: is there something, can its rows be read, how many prompts do they make.

Small local sources are imported as the stage imports them, so that what is told is what a run would tell, and
prompts have the ids by which they are split. Of a large one the first rows are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.seeds import held_out
from kubealign_components.errors import KubeAlignError
from kubealign_components.json_types import JsonObject
from kubealign_components.named_paths import kind_at, named_path
from kubealign_components.sources.file_readers import read_rows
from kubealign_components.sources.locate import SourceFiles, find_files
from kubealign_components.store import scheme_of
from kubealign_pipelines.checking.findings import Finding, error_at, warning_at
from kubealign_pipelines.checking.reach import in_time, near_path
from kubealign_pipelines.checking.stages import Checked, Stage, positions

if TYPE_CHECKING:
    from kubealign_components.sources.locate import SourceFile
    from kubealign_components.sources.source_settings import SourceSettings

SMALL_BYTES = 8 * 2**20
"""Sources up to this size are imported whole."""
FIRST_ROWS = 64
"""Rows of a larger one that are imported."""
FETCHED_BYTES = 256 * 2**20
"""A file elsewhere that is larger is not fetched for its first rows: a check must not take minutes."""
PROMPT_STAGES = ("import_prompts", "clean_prompts")
"""Stages that make prompts of sources alone."""


@dataclass(slots=True)
class Prompts:
    """The prompts that could be read."""

    rows: list[JsonObject] = field(default_factory=list)
    """Of the prompts' dataset."""
    complete: bool = True
    """Whether these are all that a run would have."""

    def held_out(self, fraction: float, seed: int) -> int:
        """How many of them the validation split holds out."""
        return sum(held_out([row["prompt_id"] for row in self.rows], fraction, seed))


def check_sources(
    checked: Checked, *, here: bool, mounted: tuple[str, ...] = ()
) -> tuple[Prompts, list[Finding]]:
    """The prompts of a run as far as they are at hand, and findings on every source.

    Args:
        checked: the settings.
        here: whether the run is on this machine, and must find them here.
        mounted: folders that only the pods see.
    """
    prompts, findings = Prompts(), []
    for stage in checked.stages:
        usable: list[tuple[SourceSettings, SourceFiles]] = []
        sources = getattr(stage.config, "sources", ())
        for position, source in zip(positions(stage, ("sources",), sources), sources):
            path = stage.path(("sources", position, "uri"))
            if source.uri.startswith(mounted or ("\0",)):
                prompts.complete = False
                continue
            files, problem, certain = _locate(source, here=here)
            if files is None:
                prompts.complete = False
                finding = error_at(path, source.uri, problem)
                findings.append(finding if certain else replace(finding, warning=True))
            else:
                usable.append((source, files))
        if stage.task.function in PROMPT_STAGES and usable:
            findings += _import(stage, usable, prompts)
    return prompts, findings


def count_rows(uri: str, split: str = "train") -> int | None:
    """Rows of a local source; None where that cannot be said cheaply."""
    try:
        located = find_files(uri, split=split) if scheme_of(uri) == "file" else None
    except KubeAlignError:
        return None
    if located is None or located.hub is not None:
        return None
    return sum(_rows_of(file) for file in located.files)


def _rows_of(file: SourceFile) -> int:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="kubealign-count-") as scratch:
        path = file.fetch(Path(scratch))
        if file.name.endswith(".parquet"):
            return int(pq.ParquetFile(path).metadata.num_rows)
        return sum(1 for _ in read_rows(path, file.name))


def _locate(source: SourceSettings, *, here: bool) -> tuple[SourceFiles | None, str, bool]:
    """Where the files of a source are, else why there are none, and whether that is certain to fail."""
    local = scheme_of(source.uri) == "file"

    def find() -> SourceFiles:
        return find_files(source.uri, split=source.split, revision=source.revision, subset=source.subset)

    answer: SourceFiles | str
    if local and (kind_at(named_path(source.uri)) or not _is_hub_id(source.uri)):
        try:
            return find(), "", True
        except KubeAlignError as error:
            reason = getattr(error, "expected", str(error))
            return None, f"{reason}{near_path(Path(source.uri))}", True
    answer = in_time(find)
    if isinstance(answer, SourceFiles):
        return answer, "", True
    if local:
        text = "a file, a folder, or a dataset of the hub that this machine has or can fetch"
        return None, f"{text}{near_path(Path(source.uri))}", here
    return None, f"could not be looked at from here ({answer})", False


def _is_hub_id(uri: str) -> bool:
    return uri.count("/") <= 1 and not uri.startswith((".", "/", "~")) and "." not in uri.rpartition("/")[2]


def _import(
    stage: Stage, usable: list[tuple[SourceSettings, SourceFiles]], prompts: Prompts
) -> Iterator[Finding]:
    """Import what is usable of the sources of ``stage`` into ``prompts``."""
    run: Callable[..., object] = importlib.import_module(
        f"kubealign_components.{stage.task.function}.stage"
    ).run
    with tempfile.TemporaryDirectory(prefix="kubealign-check-") as scratch:
        sources = []
        for number, (source, files) in enumerate(usable):
            small = files.hub is None and sum(file.size or 0 for file in files.files) <= SMALL_BYTES
            prompts.complete = prompts.complete and small
            elsewhere = files.hub is not None or scheme_of(source.uri) != "file"
            if elsewhere and files.files[0].size > FETCHED_BYTES:
                continue
            sources.append(source if small else _beginning(source, files, Path(scratch), number))
        if not sources:
            return
        # Without the run's work prefix: a check leaves nothing there, and what it imports is of this folder.
        config = replace(stage.config, sources=tuple(sources), work="")
        output = Path(scratch) / "prompts"
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # progress of a second, which nobody waits for
                run(config, output=str(output))
            prompts.rows += list(Dataset.open(str(output), allow_empty=True).iter_rows())
        except KubeAlignError as error:
            prompts.complete = False
            yield error_at(stage.path(("sources",)), [source.uri for source, _ in usable], _reason(error))
    if prompts.complete and not prompts.rows:
        yield error_at(
            stage.path(("sources",)), [source.uri for source, _ in usable], "prompts; all rows were dropped"
        )


def _reason(error: KubeAlignError) -> str:
    expected = getattr(error, "expected", None)
    return (
        f"{getattr(error, 'field', '')}: {expected}"
        if expected
        else f"sources that can be imported ({error})"
    )


def _beginning(source: SourceSettings, files: SourceFiles, scratch: Path, number: int) -> SourceSettings:
    """``source`` with its first rows alone."""
    path = scratch / f"{number}.jsonl"
    file = files.files[0]
    rows = islice(read_rows(file.fetch(scratch), file.name), FIRST_ROWS)
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row, _ in rows))
    return replace(source, uri=str(path), revision=None, split="train", subset=None)


def warn_of_unread(checked: Checked) -> list[Finding]:
    """A warning where no prompt could be read, so that nothing was counted."""
    stage = next((s for s in checked.stages if s.task.function in PROMPT_STAGES), None)
    if stage is None or stage.config is None:
        return []
    uris = [source.uri for source in stage.config.sources]
    return [
        warning_at(stage.path(("sources",)), uris, "not read: prompts, splits and steps were not counted")
    ]
