"""Sources at second 0: is there something, can its rows be read, how many prompts do they make.

Small local sources are imported as the stage imports them, so that what is told is what a run would tell, and
prompts have the ids by which they are split. Of a large one the first rows are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.seeds import held_out
from kubealign_components.errors import ConfigError, KubeAlignError
from kubealign_components.json_types import JsonObject
from kubealign_components.named_paths import kind_at, named_path
from kubealign_components.sources.file_readers import read_rows
from kubealign_components.sources.locate import SourceFiles, find_files
from kubealign_components.sources.scales import NoVerdicts
from kubealign_components.store import scheme_of
from kubealign_pipelines.checking.findings import Finding, error_at, warning_at
from kubealign_pipelines.checking.reach import in_time, near_path, unserved
from kubealign_pipelines.checking.stages import Checked, Stage, positions
from kubealign_pipelines.checking.volumes import is_below
from kubealign_pipelines.checking.withdrawals import without_unread

if TYPE_CHECKING:
    from kubealign_components.sources.locate import SourceFile
    from kubealign_components.sources.source_settings import SourceSettings

SMALL_BYTES = 8 * 2**20
"""Sources up to this size are imported whole."""
FIRST_ROWS = 64
"""Rows of a larger one that are imported."""
FETCHED_BYTES = 256 * 2**20
"""A file elsewhere that is larger is not fetched for its first rows: a check must not take minutes."""
_TELLING = re.compile(
    r"not_understood|without_a_verdict|decided_by_scores|against_their_labels|repeat_their_prompt|"
    r"marks_of_a_chat|json_chats|rows_read_as"
)
"""Names of what is noticed of rows that a user would want to know before a run."""
PROMPT_STAGES = ("import_prompts", "clean_prompts")
"""Stages that make prompts of sources alone."""


@dataclass(slots=True)
class Prompts:
    """The prompts that could be read."""

    rows: list[JsonObject] = field(default_factory=list)
    """Of the prompts' dataset."""
    complete: bool = True
    """Whether these are all that a run would have."""
    kept: list[JsonObject] | None = None
    """Those that ``filter`` keeps, one for all variants of a sweep; None before that was looked at."""

    def held_out(self, fraction: float, seed: int) -> int:
        """How many of them the validation split holds out."""
        return sum(held_out([row["prompt_id"] for row in self.rows], fraction, seed))


@dataclass(frozen=True, slots=True)
class _Usable:
    """A source that has files."""

    position: int
    """In the list of the run file."""
    source: SourceSettings
    files: SourceFiles

    @property
    def is_elsewhere(self) -> bool:
        """Whether its files are to be fetched."""
        return self.files.hub is not None or scheme_of(self.source.uri) != "file"

    @property
    def is_small(self) -> bool:
        """Whether it is imported whole."""
        return self.files.hub is None and sum(file.size or 0 for file in self.files.files) <= SMALL_BYTES


def check_sources(
    checked: Checked, *, here: bool, unseen: Collection[str] = ()
) -> tuple[Prompts, list[Finding]]:
    """The prompts of a run as far as they are at hand, and findings on every source.

    Args:
        checked: the settings.
        here: whether the run is on this machine, and must find them here.
        unseen: folders that are not mounted here, but in pods of the run.
    """
    prompts, findings = Prompts(), []
    for stage in checked.stages:
        usable: list[_Usable] = []
        sources = getattr(stage.config, "sources", ())
        for position, source in zip(positions(stage, ("sources",), sources), sources):
            if is_below(source.uri, unseen):
                prompts.complete = False
                continue
            files = _locate(stage, position, source, here=here)
            if isinstance(files, Finding):
                prompts.complete = False
                findings.append(files)
            else:
                usable.append(_Usable(position, source, files))
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


def _locate(stage: Stage, position: int, source: SourceSettings, *, here: bool) -> SourceFiles | Finding:
    """Where the files of a source are, else why there are none: a warning where that is not certain."""
    path, local = stage.path(("sources", position, "uri")), scheme_of(source.uri) == "file"

    def find() -> SourceFiles:
        return find_files(source.uri, split=source.split, revision=source.revision, subset=source.subset)

    if expected := unserved(source.uri):
        return error_at(path, source.uri, expected)
    if local and (kind_at(named_path(source.uri)) or not _is_hub_id(source.uri)):
        try:
            return find()
        except KubeAlignError as error:
            finding = _unreadable(stage, position, source, error)
            near = near_path(Path(source.uri)) if finding.path == path else ""
            return replace(finding, expected=f"{finding.expected}{near}")
    answer = in_time(find)
    if isinstance(answer, SourceFiles):
        return answer
    if local:
        text = "a file, a folder, or a dataset of the hub that this machine has or can fetch"
        return replace(error_at(path, source.uri, f"{text}{near_path(Path(source.uri))}"), warning=not here)
    return warning_at(path, source.uri, f"could not be looked at from here ({answer})")


def _is_hub_id(uri: str) -> bool:
    return uri.count("/") <= 1 and not uri.startswith((".", "/", "~")) and "." not in uri.rpartition("/")[2]


def _import(stage: Stage, usable: Sequence[_Usable], prompts: Prompts) -> Iterator[Finding]:
    """Import what is usable of the sources of ``stage`` into ``prompts``; each that cannot be is told."""
    with tempfile.TemporaryDirectory(prefix="kubealign-check-") as scratch:
        sources, failed = [], []
        for one in usable:
            prompts.complete = prompts.complete and one.is_small
            if one.is_elsewhere and one.files.files[0].size > FETCHED_BYTES:
                continue
            try:
                sources.append((one, one.source if one.is_small else _beginning(one, Path(scratch))))
            except KubeAlignError as error:
                failed.append((one, error))
        whole = _imported(stage, [source for _, source in sources], Path(scratch)) if sources else None
        if isinstance(whole, KubeAlignError):
            alone = [(one, _imported(stage, [source], Path(scratch))) for one, source in sources]
            errors = [(one, error) for one, error in alone if isinstance(error, KubeAlignError)]
            failed += errors or [(sources[0][0], whole)]
        elif whole is not None:
            prompts.rows += whole.iter_rows()
            summaries = whole.manifest.extra.get("sources") or []
            yield from (
                _noticed(stage, one, said) for (one, _), said in zip(sources, summaries) if _telling(said)
            )
    prompts.complete = prompts.complete and not failed
    for one in usable:
        if unread := one.files.unread:
            more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
            yield warning_at(
                stage.path(("sources", one.position, "uri")),
                one.source.uri,
                f"beside split {one.source.split} not read: {', '.join(unread[:3])}{more}; name a file as "
                "a source of its own, or all splits in a card (README.md)",
            )
    for one, refusal in failed:
        finding = _unreadable(stage, one.position, one.source, refusal)
        if isinstance(refusal, NoVerdicts) and not one.is_small:  # which all rows may say otherwise
            expected = f"of its first {FIRST_ROWS} rows: {finding.expected}"
            finding = replace(finding, expected=expected, warning=True)
        yield finding
    if prompts.complete and not prompts.rows:
        uris = [one.source.uri for one in usable]
        yield error_at(stage.path(("sources",)), uris, "prompts; all rows were dropped")


def _imported(stage: Stage, sources: Sequence[SourceSettings], scratch: Path) -> Dataset | KubeAlignError:
    """The prompts that ``stage`` makes of ``sources``, or why it makes none."""
    run: Callable[..., object] = importlib.import_module(
        f"kubealign_components.{stage.task.function}.stage"
    ).run
    # Without the run's work prefix: a check leaves nothing there, and what it imports is of this folder.
    config = replace(without_unread(stage.config), sources=tuple(sources), work="")
    output = tempfile.mkdtemp(dir=scratch)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress of a second, which nobody waits for
            run(config, output=output)
        return Dataset.open(output, allow_empty=True)
    except KubeAlignError as error:
        return error


def _telling(source: Mapping[str, Any]) -> list[str]:
    """What was noticed of a source and may mean that it says more than was read, each with its count."""
    return [f"{name} {count}" for name, count in source["noticed"].items() if _TELLING.search(name)]


def _noticed(stage: Stage, one: _Usable, source: Mapping[str, Any]) -> Finding:
    return warning_at(
        stage.path(("sources", one.position, "uri")),
        one.source.uri,
        f"of {source['rows']} rows read as {source['format']}: {', '.join(_telling(source))}",
    )


def _unreadable(stage: Stage, position: int, source: SourceSettings, error: KubeAlignError) -> Finding:
    """The finding of a source that cannot be imported, at the setting which is at fault."""
    named = error.field.removeprefix(f"sources.{source.name}.") if isinstance(error, ConfigError) else ""
    setting = named if named in _written(stage, position) else "uri"
    expected = error.expected if isinstance(error, ConfigError) else f"rows that can be imported ({error})"
    return error_at(stage.path(("sources", position, setting)), getattr(source, setting), expected)


def _written(stage: Stage, position: int) -> Collection[str]:
    """The settings that a user gave to a source."""
    sources = stage.settings.values.get("sources")
    written = sources[position] if isinstance(sources, (list, tuple)) else None
    return written if isinstance(written, Mapping) else ()


def _beginning(one: _Usable, scratch: Path) -> SourceSettings:
    """The source with its first rows alone."""
    path = scratch / f"{one.position}.jsonl"
    file = one.files.files[0]
    read = read_rows(file.fetch(scratch), file.name, columns=one.source.columns)
    rows = islice(read, FIRST_ROWS)
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row, _ in rows)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return replace(one.source, uri=str(path), revision=None, split="train", subset=None)


def warn_of_unread(checked: Checked) -> list[Finding]:
    """A warning where no prompt could be read, so that nothing was counted."""
    stage = next((s for s in checked.stages if s.task.function in PROMPT_STAGES), None)
    if stage is None or stage.config is None:
        return []
    uris = [source.uri for source in stage.config.sources]
    return [
        warning_at(stage.path(("sources",)), uris, "not read: prompts, splits and steps were not counted")
    ]
