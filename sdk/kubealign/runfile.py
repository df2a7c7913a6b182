"""Run files: one YAML file that says which pipeline runs, with which parameters, compiled and run how.

Several files are read as one, later ones over earlier ones, and assignments of the command line over all of
them. Everything that is wrong is found at once, with the place where it stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kubealign.grid import with_grid, with_halving
from kubealign.run_paths import SOURCES, beside
from kubealign.yaml_source import MAX_BYTES, Document, forget, is_compiled_pipeline, merge, read_yaml
from kubealign_components import config
from kubealign_components.config import check_mapping, require, require_choice
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.errors import ConfigError
from kubealign_pipelines import PIPELINES
from kubealign_pipelines.checking.findings import (
    PARAMETERS,
    Finding,
    Mark,
    error_at,
    from_problem,
    located,
    require_usable,
)
from kubealign_pipelines.checking.reach import near_path
from kubealign_pipelines.own_pipelines import is_own, load_own
from kubealign_pipelines.registration import RegistrySettings
from kubealign_pipelines.resources import CompileSettings

RUNNERS = ("process", "docker")
SECTIONS = ("compile", "local")
"""Sections that an assignment reaches by their name; all others are parameters."""
SET = "--set"
_POSITION = re.compile(r"\[(\d+)\]")
"""A position in a list as findings write it, ``sources[0].uri``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSettings:
    """The ``local`` section: how the pipeline runs on this machine."""

    runner: str = "process"
    """What a task runs in: "process", here and now, or "docker", a container of its image."""
    container: Mapping[str, object] = field(default_factory=dict)
    """Arguments of docker's ``containers.run`` for the containers, such as network_mode."""
    parallelism: int = 1
    """Chunks of a fan-out that run at once; KFP's local runner takes 2 at most."""
    retries: int = 0
    """How often a failed task is started again."""
    price: float = 0.0
    """What an hour of this machine costs, in a currency of yours: the run's page and results.json say then
    what the run cost. 0: nothing is said."""

    def __post_init__(self) -> None:
        require_choice("runner", self.runner, RUNNERS)
        in_one = self.runner == "docker" or not self.container
        require(in_one, "container", dict(self.container), "runner: docker beside it")
        require(self.parallelism in (1, 2), "parallelism", self.parallelism, "1 or 2")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(0 <= self.price < math.inf, "price", self.price, "0 or more, for an hour of this machine")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """A run file."""

    pipeline: str = "offline_alignment"
    """Which pipeline: by name, or the file of one's own, my_pipeline.py."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Pipeline parameters by name; what is left out keeps its default."""
    compile: CompileSettings = field(default_factory=CompileSettings)
    """What is fixed at compile time: images, retries, parallelism, resources, labels."""
    local: LocalSettings = field(default_factory=LocalSettings)
    """How it runs on this machine."""

    def __post_init__(self) -> None:
        if not is_own(self.pipeline):
            require_choice("pipeline", self.pipeline, PIPELINES)

    @property
    def name(self) -> str:
        """Of the pipeline, without the folders of its file."""
        return Path(self.pipeline).stem if is_own(self.pipeline) else self.pipeline

    def with_parameters(self, assignments: Sequence[str]) -> RunFile:
        """With ``name=value`` assignments on top; values are YAML.

        ``name.key`` sets one key of a mapping, ``name.0`` one item of a list. Sources may be given as their
        places alone: ``sources=pairs.jsonl``, ``sources=[a.csv, b.csv]``.

        Raises:
            ConfigError: not an assignment, or a key or position that is not there.
        """
        parameters = dict(self.parameters)
        for assignment in assignments:
            path, value = _assignment(assignment)
            parameters = _assign(parameters, path, value, assignment)
        return replace(self, parameters=parameters)

    def for_local_run(self) -> RunFile:
        """With the local section's parallelism, retries and price in place of the cluster's, on this one
        machine.

        No task checks the parameters, which are checked before a run here starts, or registers the model,
        which is done when it has ended.
        """
        local = self.local
        stages = {
            name: replace(stage, retries=None, nodes=None) for name, stage in self.compile.stages.items()
        }
        settings = replace(
            self.compile,
            parallelism=local.parallelism,
            max_chunks=MAX_CHUNKS,
            check=False,
            name_images=local.runner == "docker",
            when_nothing_new="repeat",
            model_registry=RegistrySettings(),
            prices={},
            retries=local.retries,
            stages=stages,
        )
        return replace(self, compile=settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sourced:
    """A run file as it was given, with the place of everything in it."""

    run: RunFile | None
    """None where it cannot be used at all; with defaults for sections that cannot be used."""
    document: Document

    def located(self, findings: Sequence[Finding]) -> list[Finding]:
        """``findings`` with their places, after those of the document itself."""
        return located([*self.document.findings, *findings], self.document.marks)

    def with_runner(self, runner: str) -> Sourced:
        """With tasks that run in ``runner`` here, where one is named."""
        if not runner or self.run is None:
            return self
        local = replace(self.run.local, runner=runner)
        return replace(self, run=replace(self.run, local=local))

    def usable(self) -> RunFile:
        """The run file.

        Raises:
            BadSettings: it cannot be used; says all that is wrong with it.
        """
        require_usable(self.located([]))
        assert self.run is not None
        return self.run


def load_run_file(path: Path) -> RunFile:
    """Read the run file at ``path``.

    Raises:
        BadSettings: no such file, no YAML mapping, unknown sections or settings, or bad values.
    """
    return read_run([path]).usable()


def read_run(
    files: Sequence[Path],
    pipeline: str = "",
    assignments: Sequence[str] = (),
    grids: Sequence[str] = (),
    halving: int | None = None,
) -> Sourced:
    """The run of ``files``, later ones over earlier ones, and of what the command line says.

    Args:
        files: run files.
        pipeline: the one to run, whatever the files say.
        assignments: ``name=value``, ``name.key=value``, ``name.0=value``, ``compile.name=value``.
        grids: ``name=value,value``, of which the variants of a sweep are made.
        halving: one variant in so many goes on from a rung of the sweep; None for what the files say.
    """
    document = Document(values={})
    for path in files:
        document = merge(document, _read(path))
    if not isinstance(document.values, Mapping):
        return Sourced(run=None, document=document)
    values = dict(document.values)
    if pipeline:
        values["pipeline"] = pipeline
    for assignment in assignments:
        values = _assigned(document, values, assignment)
    values = with_grid(document, values, grids) if grids else values
    document.values = values = values if halving is None else with_halving(document, values, halving)
    document.findings += _load_own(values.get("pipeline"))
    run, problems = check_mapping(RunFile, values, "run file")
    document.findings += [_of_problem(problem, values) for problem in problems]
    if run is None:
        # What is wrong with the parameters is told beside what is wrong with the sections.
        sections = {name: values[name] for name in ("pipeline", PARAMETERS) if name in values}
        run, _ = check_mapping(RunFile, sections, "run file")
    return Sourced(run=run, document=document)


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        near = near_path(path) if isinstance(error, FileNotFoundError) else ""
        return Document(findings=[_whole(path, f"a file that can be read ({error.strerror}){near}")])
    if len(data) > MAX_BYTES:
        return Document(findings=[_whole(path, f"a run file of at most {MAX_BYTES:,} bytes")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].split(b"\n")
        expected = f"a text file in UTF-8; byte {error.object[error.start]:#04x} is none, save it as UTF-8"
        return Document(findings=[_whole(path, expected, len(before), len(before[-1]) + 1)])
    if is_compiled_pipeline(text):
        expected = "a run file; this is a compiled pipeline: give the file that it was compiled from"
        return Document(findings=[_whole(path, expected)])
    document = read_yaml(text, str(path))
    if not document.findings and not isinstance(document.values, Mapping):
        document.findings.append(_whole(path, "a mapping with pipeline, parameters, compile or local"))
        document.values = None
    if isinstance(document.values, Mapping):
        document.values = beside(document.values, path.parent)
    return document


def _load_own(pipeline: object) -> list[Finding]:
    """Execute the file of a pipeline of one's own, whose stages have settings in the other sections, too."""
    if isinstance(pipeline, str) and is_own(pipeline):
        try:
            load_own(pipeline)
        except ConfigError as error:
            return [error_at(("pipeline",), error.value, error.expected)]
    return []


def _whole(path: Path, expected: str, line: int = 1, column: int = 1) -> Finding:
    mark = Mark(str(path), line, column)
    return Finding(path=("run file",), value=str(path), expected=expected, mark=mark)


def _of_problem(problem: config.Problem, values: object) -> Finding:
    """The finding of a section or setting; a name that is refused is pointed at itself."""
    path, refused = problem.path, problem.error.value
    for name in path:
        values = values[name] if isinstance(values, Mapping) and name in values else None
    if isinstance(values, Mapping) and isinstance(refused, str) and refused in values:
        path = (*path, str(refused))
    if len(path) == 1 and "a setting of run file" in problem.error.expected:
        near = config.near_name(path[0], ("pipeline", PARAMETERS, *SECTIONS))
        expected = f"a section; did you mean {near}?" if near else f"it under {PARAMETERS}, or no such name"
        return error_at(path, refused, expected)
    return from_problem(problem, path)


def _assigned(document: Document, values: dict[str, object], assignment: str) -> dict[str, object]:
    """``values`` with ``assignment``; what is wrong with it is a finding."""
    try:
        path, value = _assignment(assignment)
        require(path != ("pipeline",), SET, assignment, "PIPELINE as an argument, without --set")
        path = path if path[0] in SECTIONS else (PARAMETERS, *path)
        values = _assign({PARAMETERS: {}, **values}, path, value, assignment)
    except ConfigError as error:
        document.findings.append(error_at((SET,), error.value, error.expected))
        return values
    path = tuple(int(part) if isinstance(part, str) and part.isdecimal() else part for part in path)
    forget(document.marks, path)
    document.marks[path] = Mark(f"{SET} {assignment}")
    return values


def _assignment(assignment: str) -> tuple[config.Path, object]:
    """Names and value of ``name.key=value``."""
    name, equals, text = assignment.partition("=")
    names = tuple(_POSITION.sub(r".\1", name.strip()).split("."))
    require(bool(equals) and all(names), SET, assignment, "name=value, name.key=value or name.0=value")
    read = read_yaml(text, SET)
    if read.findings:
        reason = read.findings[0].expected.removeprefix("a YAML file ")
        raise ConfigError(SET, assignment, f"a value in YAML {reason}; mind the quotes of the shell")
    names = names[1:] if names[0] == PARAMETERS and names[1:] else names
    return names, _as_sources(names[-1], read.values if text else "")


def _as_sources(name: str, value: object) -> object:
    """``value``, or where the setting ``name`` is sources and places are given alone, sources at them."""
    if not name.endswith(SOURCES) or not value:
        return value
    uris = value if isinstance(value, list) else [value]
    return [{"uri": uri} for uri in uris] if all(isinstance(p, str) for p in uris) else value


def _assign(
    target: Mapping[str, object], names: Sequence[str | int], value: object, where: str
) -> dict[str, object]:
    """``target`` with ``value`` under ``names``: keys of mappings, positions in lists."""
    first, *rest = map(str, names)
    return {**target, first: _assign_inside(target.get(first, {}), rest, value, where)}


def _assign_inside(target: object, names: Sequence[str], value: object, where: str) -> object:
    if not names:
        return value
    first, *rest = names
    if isinstance(target, list):
        fits = first.isdecimal() and int(first) < len(target)
        require(fits, SET, where, f"a position from 0 to {len(target) - 1} instead of {first!r}")
        return [_assign_inside(v, rest, value, where) if i == int(first) else v for i, v in enumerate(target)]
    if not isinstance(target, Mapping):
        raise ConfigError(SET, where, f"a mapping or a list before {first!r}")
    return _assign(target, names, value, where)
