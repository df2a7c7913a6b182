"""The runs below an output folder: how each lies there, which there are, and what became of them."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from kubealign_components.config import did_you_mean
from kubealign_components.errors import NotFound

log = logging.getLogger(__name__)

RESULTS = "results.json"
"""File of a run's folder: what it made, and its numbers."""
RUNS, WORK = "runs", "work"
"""Folders below the output folder: of the runs, and of the rows that they share."""
DIRECTORIES = ("system.Dataset", "system.Model")
"""Types of the outputs that are folders with a manifest."""
LOCK = ".lock"
"""File of a run's folder that the process which runs in it holds."""
_SHAPE: dict[str, object] = {"pipeline": "", "evaluation": {}, "stages": [], "outputs": [], "failed": ""}
"""Types of what :data:`RESULTS` holds, each by a value of its own."""
_OUTPUT = {"task", "output", "type", "path"}
_STAGE = {"stage", "title", "rows_in", "rows_out", "dropped", "counts", "numbers", "seconds"}
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"
"""States of a run; ``stopped`` is one that nobody can say more of: it was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where things of one run lie."""

    path: Path
    attempt: int = 1
    """How often it was begun, this time included."""

    @classmethod
    def of_next_attempt(cls, path: Path) -> RunFolder:
        """The folder at ``path`` for one attempt more than it has seen."""
        return cls(path=path, attempt=max(_attempts(path), default=0) + 1)

    @classmethod
    def of_last_attempt(cls, path: Path) -> RunFolder:
        """The folder at ``path`` as the last attempt left it."""
        return cls(path=path, attempt=max(_attempts(path), default=1))

    def discard_earlier(self) -> None:
        """Remove what attempts before this one left."""
        for earlier in range(1, self.attempt):
            for folder in ("artifacts", "logs"):
                shutil.rmtree(self.path / folder / str(earlier), ignore_errors=True)

    @property
    def pipeline(self) -> Path:
        """The IR that ran."""
        return self.path / "pipeline.yaml"

    @property
    def parameters(self) -> Path:
        """The parameters, defaults included."""
        return self.path / "parameters.yaml"

    @property
    def artifacts(self) -> Path:
        """Outputs of this attempt's tasks."""
        return self.path / "artifacts" / str(self.attempt)

    @property
    def logs(self) -> Path:
        """One file for each execution of a task in this attempt."""
        return self.path / "logs" / str(self.attempt)

    @property
    def results(self) -> Path:
        """Counts, numbers and places of the outputs."""
        return self.path / RESULTS

    @property
    def progress(self) -> Path:
        """How far the run has come."""
        return self.path / "progress.json"

    @property
    def summary(self) -> Path:
        """The run on one page."""
        return self.path / "summary.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """One run, as its folder tells of it."""

    folder: RunFolder
    state: str
    began: datetime
    """When its last attempt began."""
    results: Mapping[str, Any]
    """Content of ``results.json``; empty where there is none."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.path.name

    @property
    def outputs(self) -> Sequence[Mapping[str, Any]]:
        """Its outputs, in the order in which they were made."""
        outputs: Sequence[Mapping[str, Any]] = self.results.get("outputs", ())
        return outputs

    @property
    def made(self) -> list[Path]:
        """Folders of the datasets and models that it made, in that order."""
        return [self.folder.path / o["path"] for o in self.outputs if o["type"] in DIRECTORIES]

    @property
    def model(self) -> Path | None:
        """Folder of the aligned model, of a sweep the chosen one's, if it made one that is still there."""
        path = self.folder.path / str(self.results.get("model") or "")
        return path if path != self.folder.path and path.is_dir() else None

    @property
    def models(self) -> list[Path]:
        """Folders of the models that it made and that are still there."""
        made = [self.folder.path / o["path"] for o in self.outputs if o["type"] == "system.Model"]
        return [path for path in made if path.is_dir()]


def numbered(name: str) -> Iterator[str]:
    """``name``, and then the names that are taken where it is not free."""
    yield name
    for number in count(2):
        yield f"{name}-{number}"


def is_run(path: Path) -> bool:
    """Whether a run lies at ``path``."""
    return (path / "pipeline.yaml").is_file() and (path / "logs").is_dir()


def runs_below(output: Path) -> list[RunInfo]:
    """The runs of an output folder, newest first.

    Raises:
        NotFound: it is no output folder.
    """
    folder = output / RUNS
    if not folder.is_dir():
        raise NotFound(
            f"{output}: no runs are below it; name the folder that `kubealign run` had as --output"
        )
    runs = [read_run(path) for path in folder.iterdir() if is_run(path)]
    return sorted(runs, key=lambda run: run.began, reverse=True)


def read_run(path: Path) -> RunInfo:
    """What the run's folder at ``path`` tells."""
    folder = RunFolder.of_last_attempt(path)
    results = _content(folder.results) if folder.results.is_file() else {}
    began = folder.pipeline.stat().st_mtime
    ended = folder.results.stat().st_mtime if results else 0.0
    if is_locked(path / LOCK):
        state = RUNNING
    elif ended < began:
        state = STOPPED
    else:
        state = FAILED if results.get("failed") else DONE
    return RunInfo(folder=folder, state=state, began=datetime.fromtimestamp(began), results=results)


def _content(file: Path) -> dict[str, Any]:
    """What ``file`` says of a run; nothing where it is cut, or of another version or hand: the paths in
    it are opened, and removed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if isinstance(content, dict) and all(isinstance(content.get(k, v), type(v)) for k, v in _SHAPE.items()):
        outputs, numbers = content.get("outputs", []), content.get("evaluation", {}).values()
        paths = [content.get("model") or ""]
        paths += [one["path"] for one in outputs if isinstance(one, dict) and one.keys() >= _OUTPUT]
        if (
            len(paths) == 1 + len(outputs)
            and all(isinstance(row, dict) and row.keys() >= _STAGE for row in content.get("stages", []))
            and all(isinstance(number, (int, float)) for number in (content.get("seconds", 0), *numbers))
            and all(isinstance(path, str) and _stays_inside(path) for path in paths)
        ):
            return content
    log.warning("%s is not as this version writes it: of this run no results are read", file)
    return {}


def _stays_inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def find_run(name: str, output: Path = Path(RUNS)) -> RunInfo | None:
    """The run at the path ``name``, the newest below an output folder of that path, or the run of that name
    below ``output``; None where there is no such run on this machine."""
    if "://" in name:
        return None
    for path in (Path(name), output / RUNS / name):
        if is_run(path):
            return read_run(path)
    below = Path(name) / RUNS
    newest = runs_below(Path(name)) if below.is_dir() else []
    return newest[0] if newest else None


def no_such_run(name: str, output: Path = Path(RUNS)) -> str:
    """What is said of a run that is not on this machine."""
    folder = output / RUNS
    names = [path.name for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []
    return f"{name}: no such run here{did_you_mean(name, names)}; `kubealign ls` lists the runs"


def output_path(run: RunInfo, stage: str) -> Path:
    """The dataset or model of ``run`` by its usual name, its task or its title.

    Raises:
        NotFound: the run has none of that name.
    """
    usual = run.folder.path / stage
    if stage and Path(stage).name == stage and usual.is_symlink() and usual.is_dir():
        return usual.resolve()
    made: dict[str, str] = {o["task"]: o["path"] for o in run.outputs if o["type"] in DIRECTORIES}
    task_name = stage.replace("_", "-").replace(" ", "-")
    for task in (task_name, f"merge-{task_name}"):  # of a fan-out, what its parts were merged to
        if task in made and (run.folder.path / made[task]).is_dir():
            return run.folder.path / made[task]
    names = sorted({*(p.name for p in run.folder.path.iterdir() if p.is_symlink()), *made})
    near = did_you_mean(stage, names)
    raise NotFound(f"run {run.name} has no {stage!r}{near}; it has {', '.join(names) or 'nothing yet'}")


def log_files(run: RunInfo, stage: str = "") -> list[Path]:
    """The logs of the last attempt: of ``stage``, else of what failed, else all.

    Raises:
        NotFound: no log of that stage.
    """
    files = sorted(run.folder.logs.glob("*.log"))
    if not stage:
        failed = [file for file in files if str(file) in str(run.results.get("failed", ""))]
        return failed if run.state == FAILED and failed else files
    task_name = stage.replace("_", "-").replace(" ", "-")
    of_stage = [file for file in files if task_of(file) == task_name]
    if not of_stage:
        tasks = dict.fromkeys(map(task_of, files))
        near = did_you_mean(task_name, tasks)
        raise NotFound(f"run {run.name} has no log of {stage!r}{near}; it has those of {', '.join(tasks)}")
    return of_stage


def task_of(log: Path) -> str:
    """The task that a log file is of."""
    return log.stem.partition("-")[2]


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at ``path``."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def files_below(path: Path) -> Iterator[Path]:
    """Files below ``path``, or itself; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        yield path
        return
    for entry in sorted(path.iterdir()):
        yield from files_below(entry)


def size_of(paths: Iterator[Path] | Sequence[Path], seen: set[tuple[int, int]] | None = None) -> int:
    """Bytes on the disk below ``paths``; a file of several names counts once, and not if it was ``seen``."""
    counted = set() if seen is None else seen
    total = 0
    for path in paths:
        for file in files_below(path):
            stat = file.lstat()
            if (stat.st_dev, stat.st_ino) not in counted:
                counted.add((stat.st_dev, stat.st_ino))
                total += stat.st_blocks * 512
    return total


def _attempts(path: Path) -> list[int]:
    folders = [*(path / "artifacts").glob("*"), *(path / "logs").glob("*")]
    return [int(folder.name) for folder in folders if folder.name.isdecimal()]
