"""What a local run left behind: outputs, counts by stage, and the numbers of the evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import yaml

from kubealign.local.runs import DIRECTORIES, RunInfo, find_run, numbered
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_components.data.choice_rows import CHOICE, ENDED, ChoiceRow
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import NotFound
from kubealign_components.variant import VARIANT
from kubealign_pipelines.graph import Graph, Task
from kubealign_pipelines.halving import rung_of
from kubealign_pipelines.rounds import round_of
from kubealign_pipelines.variants import VARIANTS

V = TypeVar("V")

USUAL_NAMES = {
    "import_prompts": "prompts",
    "clean_prompts": "prompts",
    "filter": "tokenized",
    "sample": "samples",
    "judge": "judged",
    "aggregate": "preferences",
    "clean_pmp": "human_preferences",
    "train_reward_model": "reward_model",
    "rewards": "rewarded",
    "rank": "rewarded",
    "draw_more": "unresolved",
    "join_draws": "drawn",
    "next_round": "round_prompts",
    "join_rounds": "joined",
    "select": "selected",
    "logprobs": "scored",
    "mix": "training",
    "rl_prompts": "rl_prompts",
    "train": "model",
    "train_ppo": "model",
    "evaluate": "evaluation",
    "benchmark": "benchmark",
    "choose": "choice",
}
"""What a reader looks for in a run's folder, by the stage that makes it."""
_CHOSEN = frozenset(
    name for stage in ("train", "evaluate", "benchmark") for name in (stage, USUAL_NAMES[stage])
)
"""Names of what a round has that another one may be chosen for."""
CHOOSE = "choose"
"""How the names of tasks begin that choose among variants, or among rounds."""
METRICS = "system.Metrics"
_ITERATION = re.compile(r"-iteration-(\d+)$")
"""How the folder of what one iteration of a loop makes is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One output artifact of a task."""

    task: str
    """Name of the task in the graph."""
    title: str
    """The task as the UI shows it."""
    output: str
    """Name of the output."""
    type: str
    """Such as ``system.Dataset``."""
    path: Path
    metadata: dict[str, object]

    @property
    def iteration(self) -> int:
        """Which iteration of a loop made it, from 1, such as which variant; 0 outside of loops."""
        number = _ITERATION.search(self.path.parent.parent.name)
        return 1 + int(number[1]) if number else 0

    @property
    def rung(self) -> int:
        """At which rung of successive halving it was made, from 1; 0 at the last, and without halving."""
        return rung_of(self.task)

    @property
    def round(self) -> int:
        """In which round of alignment it was made, from 1."""
        return round_of(self.task)

    @property
    def exists(self) -> bool:
        """Whether the task made it; metrics live in the metadata alone."""
        if self.type == METRICS:
            return bool(self.metadata)
        return (self.path / MANIFEST).is_file() if self.type in DIRECTORIES else self.path.is_file()


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """What one stage did in a run."""

    stage: str
    title: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    """Rows dropped, by reason."""
    counts: dict[str, int]
    """Other things counted, such as chunks and completions."""
    numbers: dict[str, float]
    """Measured values."""
    seconds: float
    """From the start of its first task to the end of its last."""
    iteration: int = 0
    """Which iteration of a loop it is, from 1, such as which variant; 0 outside of loops."""
    rung: int = 0
    """At which rung of successive halving, from 1; 0 at the last one, and without halving."""
    round: int = 1
    """In which round of alignment, from 1."""

    @property
    def reused(self) -> int | None:
        """Rows taken from earlier work, or None for a stage that has no chunks."""
        return self.counts.get("rows_reused")


Repeated = TypeVar("Repeated", Output, StageRow)
"""What there is of each iteration of a loop."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A finished run."""

    pipeline: str
    folder: Path
    parameters: dict[str, object]
    """All of them, defaults included."""
    seconds: float
    stages: list[StageRow]
    outputs: list[Output] = field(default_factory=list)
    defaults: dict[str, object] = field(default_factory=dict)
    """Of those parameters that have one."""
    price: float = 0.0
    """Of an hour of the machine that it ran on; 0 where that is not known."""

    def cost(self, seconds: float) -> float:
        """What that many seconds of the machine cost."""
        return seconds / 3600 * self.price

    def outputs_of(self, type_name: str) -> Iterator[Output]:
        """The outputs of one type, such as ``system.HTML``, in the order they were made."""
        return (output for output in self.outputs if output.type == type_name)

    @property
    def model(self) -> Path | None:
        """The aligned model's directory, if the pipeline made one; of a sweep the chosen one's, or none; of
        rounds the chosen one's, or while none is chosen the last one's that was trained."""
        made = (one for one in self.outputs_of("system.Model") if not (one.exists and _open(one).ended_early))
        models = self.of_chosen(made)
        return models[-1].path if models else None

    @cached_property
    def choice(self) -> list[ChoiceRow]:
        """The variants of a sweep, or the rounds, of which one may be chosen; none before they are
        compared."""
        choice = self._choice
        return list(choice.iter_rows(of=ChoiceRow)) if choice is not None else []

    @property
    def ended_early(self) -> list[tuple[str, str]]:
        """Variants, or rounds, that ended early and were not chosen from: names and reasons."""
        choice = self._choice
        ended = choice.manifest.extra.get(ENDED, []) if choice is not None else []
        return [(str(name), str(reason)) for name, reason in ended]

    @cached_property
    def _choice(self) -> Dataset | None:
        behind = [output for output in self._kept if output.task.startswith(CHOOSE)]
        made = (_open(output) for output in reversed(behind))  # the last one, or all are another's
        return next((one for one in made if one.manifest.schema == CHOICE), None)

    @cached_property
    def chosen(self) -> int:
        """Which variant of a sweep was chosen, from 1; 0 where none was."""
        names = {row["evaluation"] for row in self.choice if row["chosen"]}
        repeated = [output for output in self._kept if output.iteration] if names else []  # evaluations last
        of_chosen = (one for one in reversed(repeated) if _open(one).manifest.fingerprint in names)
        return next((output.iteration for output in of_chosen), 0)

    @cached_property
    def chosen_round(self) -> int:
        """Which round was chosen, from 1; 0 where none was, and where variants are chosen among."""
        settings = (json.loads(row["settings"]) for row in self.choice if row["chosen"])
        return next((int(own["round"]) for own in settings if own.keys() == {"round"}), 0)

    def of_chosen(self, made: Iterable[Repeated]) -> list[Repeated]:
        """Those of ``made`` that the chosen variant has, none while none is chosen; or those of the chosen
        round; all where nothing is chosen among."""
        listed = list(made)
        repeated = [one for one in listed if one.iteration]
        chosen = [one for one in repeated if one.iteration == self.chosen and not one.rung]
        if repeated:
            return chosen
        return [one for one in listed if self.chosen_round in (0, one.round)]

    @property
    def datasets(self) -> dict[str, Dataset]:
        """What the stages made, by stage; of a stage that stands twice the later ones are numbered. What a
        variant made that was not chosen has the variant's number, such as ``select-1``, and before it that of
        a rung which was not the last, such as ``select-rung-1-1``. Where one of several rounds is chosen,
        models, evaluations and benchmarks of the others have theirs, such as ``train-round-1``."""
        return self._made(lambda made: made.manifest.schema != MODEL)

    @property
    def models(self) -> dict[str, Dataset]:
        """The models that were trained, named as in :attr:`datasets`: ``uri`` is a model's directory, rows
        are its log."""
        return self._made(lambda made: made.manifest.schema == MODEL)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The numbers of each stage, named as in :attr:`datasets`: rows in and out, what was counted and what
        was measured."""
        named = _numbered((self._name(row.stage, row), row) for row in self.stages)
        return {
            stage: {"rows_in": row.rows_in, "rows_out": row.rows_out, **row.counts, **row.numbers}
            for stage, row in named.items()
        }

    def by_usual_name(self) -> dict[str, Path]:
        """The datasets and models that were made, by the names of :data:`USUAL_NAMES`; of a stage that stands
        twice the later ones are numbered. Of a sweep these are the chosen variant's; others have the
        variant's number."""
        return _numbered(
            (self._name(USUAL_NAMES.get(stage, stage), output), output.path)
            for stage, output, made in self._opened()
            if not made.ended_early
        )

    def _made(self, predicate: Callable[[Dataset], bool]) -> dict[str, Dataset]:
        return _numbered(
            (self._name(stage, output), made) for stage, output, made in self._opened() if predicate(made)
        )

    def _name(self, name: str, made: Output | StageRow) -> str:
        if self.chosen_round and name in _CHOSEN:
            return name if made.round == self.chosen_round else f"{name}-round-{made.round}"
        at = f"{name}-rung-{made.rung}" if made.rung else name
        its_own = made.iteration and (made.rung or made.iteration != self.chosen)
        number = self._listed.get((made.rung, made.iteration), made.iteration)
        return f"{at}-{number}" if its_own else at

    @cached_property
    def _listed(self) -> dict[tuple[int, int], int]:
        """Of each rung of successive halving, and each iteration at it, the place of its variant in the run
        file's list, from 1: at later rungs there are fewer. Empty without halving."""
        if not any(output.rung for output in self.outputs):
            return {}
        given = self.parameters.get(VARIANTS)
        variants = given if isinstance(given, list) else []
        compared = (one for one in self._kept if one.iteration and one.task.startswith("evaluate"))
        # Read, since what was 4 may be 4.0 after a loop.
        named = {
            (one.rung, one.iteration): json.loads(str(one.metadata.get(VARIANT, "{}"))) for one in compared
        }
        return {at: variants.index(own) + 1 for at, own in named.items() if own in variants}

    @property
    def _kept(self) -> list[Output]:
        """The datasets and models."""
        return [output for output in self.outputs if output.type in DIRECTORIES and output.exists]

    def _opened(self) -> Iterator[tuple[str, Output, Dataset]]:
        """Stage, output and content of each dataset and model."""
        for output in self._kept:
            made = _open(output)
            yield str(made.manifest.provenance.step["stage"]), output, made

    @property
    def evaluation(self) -> dict[str, float]:
        """The numbers of the comparison, once there is one; of a sweep the chosen variant's, and none while
        no variant is chosen."""
        compared = self.of_chosen(row for row in self.stages if row.stage == "evaluate")
        return compared[-1].numbers if compared else {}

    @cached_property
    def last(self) -> Manifest | None:
        """Manifest of the last dataset or model: its recipe holds the whole run."""
        made = [output for output in self.outputs if output.type in DIRECTORIES]
        return _open(made[-1]).manifest if made else None

    def to_json(self) -> dict[str, object]:
        """Plain values, for ``results.json``; paths are relative to it, so that a run can be moved."""

        def relative(path: Path | None) -> str | None:
            return None if path is None else str(path.relative_to(self.folder))

        return {
            "pipeline": self.pipeline,
            "seconds": round(self.seconds, 1),
            **({"price": self.price, "cost": round(self.cost(self.seconds), 6)} if self.price else {}),
            "model": relative(self.model),
            "evaluation": self.evaluation,
            "stages": [{name: getattr(row, name) for name in StageRow.__slots__} for row in self.stages],
            "outputs": [
                {"task": o.task, "output": o.output, "type": o.type, "path": relative(o.path)}
                | {name: o.metadata[name] for name in (VARIANT,) if name in o.metadata}
                for o in self.outputs
            ],
        }


def load_run(run_name: str | Path) -> Results:
    """What a run that ended here left: its datasets, models and numbers.

    Args:
        run_name: its name below ``runs/runs``, its folder, or an output folder for the newest run in it.

    Raises:
        NotFound: there is no such run, or it has left no results yet.
    """
    run = find_run(str(run_name))
    if run is None:
        raise NotFound(f"{run_name}: no run is there, and none below runs/ has that name; see `kubealign ls`")
    if not run.results:
        raise NotFound(f"{run.folder.path}: this run has left no results yet; it is {run.state}")
    return read_results(run)


def read_results(run: RunInfo) -> Results:
    """What the results of ``run`` tell, as far as there are any."""
    folder, content = run.folder, run.results
    return Results(
        pipeline=content.get("pipeline", ""),
        folder=folder.path,
        parameters=yaml.safe_load(folder.parameters.read_text(encoding="utf-8"))
        if folder.parameters.is_file()
        else {},
        seconds=content.get("seconds", 0.0),
        price=content.get("price", 0.0),
        stages=[
            StageRow(**{name: row[name] for name in StageRow.__slots__ if name in row})
            for row in content.get("stages", ())
        ],
        outputs=[
            Output(
                task=made["task"],
                title=made["task"].replace("-", " "),
                output=made["output"],
                type=made["type"],
                path=folder.path / made["path"],
                metadata={name: made[name] for name in (VARIANT,) if name in made},
            )
            for made in run.outputs
        ],
    )


def _open(output: Output) -> Dataset:
    return Dataset.open(str(output.path), allow_empty=True)


def _numbered(pairs: Iterable[tuple[str, V]]) -> dict[str, V]:
    """``pairs`` as a mapping; a name that stands again gets a number."""
    named: dict[str, V] = {}
    for name, value in pairs:
        named[next(free for free in numbered(name) if free not in named)] = value
    return named


def find_outputs(graph: Graph, artifacts: Path, runs: Sequence[TaskRun]) -> list[Output]:
    """The output artifacts of the tasks that ended well, in the order of their ends."""
    ended = {run.task: run.ended or 0.0 for run in runs if run.ok}
    outputs: list[Output] = []
    for path in artifacts.rglob("executor_output.json"):
        task = graph.tasks.get(path.parent.name)
        if task is None or task.name not in ended:
            continue
        written = json.loads(path.read_text(encoding="utf-8")).get("artifacts", {})
        for name, kind in task.outputs.items():
            metadata = written.get(name, {}).get("artifacts", [{}])[0].get("metadata", {})
            outputs.append(
                Output(
                    task=task.name,
                    title=task.title,
                    output=name,
                    type=kind,
                    path=path.parent / name,
                    metadata=metadata,
                )
            )
    return sorted(outputs, key=lambda output: (ended[output.task], output.iteration))


def missing_outputs(graph: Graph, artifacts: Path, watcher: Watcher) -> list[Output]:
    """The declared outputs that tasks which ended well did not make.

    KFP's local runner does not look, and one of its runners can take a failure for a success.
    """
    outputs = find_outputs(graph, artifacts, watcher.runs)
    seen = {output.task for output in outputs}
    silent = {run.task: graph.tasks[run.task] for run in watcher.runs if run.ok and run.task not in seen}
    never = [
        Output(task=task.name, title=task.title, output=name, type=kind, path=artifacts, metadata={})
        for task in silent.values()
        for name, kind in task.outputs.items()
    ]
    return [output for output in outputs if not output.exists] + never


def collect(
    graph: Graph,
    folder: Path,
    artifacts: Path,
    watcher: Watcher,
    parameters: Mapping[str, object],
    seconds: float,
    price: float = 0.0,
) -> Results:
    """The results of the run in ``folder``, on a machine that costs ``price`` an hour."""
    outputs = find_outputs(graph, artifacts, watcher.runs)
    times = _times(graph, watcher.runs)
    rows = [
        _row(output, times[_together(graph.tasks[output.task], output.iteration)])
        for output in outputs
        if output.type in DIRECTORIES and output.exists
    ]
    return Results(
        pipeline=graph.name,
        folder=folder,
        parameters=dict(parameters),
        seconds=seconds,
        stages=rows,
        outputs=outputs,
        defaults={name: p.default for name, p in graph.parameters.items() if not p.required},
        price=price,
    )


def _row(output: Output, seconds: float) -> StageRow:
    manifest = _open(output).manifest
    stats = manifest.stats
    stage = manifest.provenance.step["stage"]
    title = output.title.removeprefix("merge ")  # which publishes the rows of a fan-out
    return StageRow(
        stage=stage,
        title=f"{title}{',' if output.rung else ''} {output.iteration}" if output.iteration else title,
        rows_in=stats["rows_in"],
        rows_out=stats["rows_out"],
        dropped=stats["dropped"],
        counts=stats["counts"],
        numbers=manifest.numbers,
        seconds=round(seconds, 1),
        iteration=output.iteration,
        rung=output.rung,
        round=output.round,
    )


def _times(graph: Graph, runs: Sequence[TaskRun]) -> dict[str, float]:
    """Seconds of what works together, from the first start to the last end."""
    spans: dict[str, tuple[float, float]] = {}
    for run in runs:
        name = _together(graph.tasks[run.task], run.iteration)
        start, end = spans.get(name, (run.started, run.started))
        spans[name] = (min(start, run.started), max(end, run.ended or run.started))
    return {name: end - start for name, (start, end) in spans.items()}


def _together(task: Task, iteration: int) -> str:
    """What the workers and the merge of one fan-out have in common, and no other task with them."""
    if "chunk" in task.arguments or task.function == "merge":
        return f"fan-out {task.group}"
    return f"{task.name} {iteration}"
