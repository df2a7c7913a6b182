"""Run files: one YAML file that says which pipeline runs, with which parameters, compiled and run how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kubealign_components.config import from_mapping, require, require_choice
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.errors import ConfigError
from kubealign_pipelines import PIPELINES
from kubealign_pipelines.resources import CompileSettings

RUNNERS = ("process", "docker")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSettings:
    """The ``local`` section: how the pipeline runs on this machine."""

    runner: str = "process"
    """What a task runs in: "process", here and now, or "docker", a container of its image."""
    container: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of docker's ``containers.run`` for the containers, such as network_mode."""
    parallelism: int = 1
    """Chunks of a fan-out that run at once; KFP's local runner takes 2 at most."""
    retries: int = 0
    """How often a failed task is started again."""

    def __post_init__(self) -> None:
        require_choice("runner", self.runner, RUNNERS)
        in_one = self.runner == "docker" or not self.container
        require(in_one, "container", dict(self.container), "runner: docker beside it")
        require(self.parallelism in (1, 2), "parallelism", self.parallelism, "1 or 2")
        require(self.retries >= 0, "retries", self.retries, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFile:
    """A run file."""

    pipeline: str = "offline_alignment"
    """Which pipeline."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Pipeline parameters by name; what is left out keeps its default."""
    compile: CompileSettings = field(default_factory=CompileSettings)
    """What is fixed at compile time: images, retries, parallelism, resources, labels."""
    local: LocalSettings = field(default_factory=LocalSettings)
    """How it runs on this machine."""

    def __post_init__(self) -> None:
        require_choice("pipeline", self.pipeline, PIPELINES)

    def with_parameters(self, assignments: Sequence[str]) -> RunFile:
        """With ``name=value`` assignments on top; values are YAML.

        ``name.key`` sets one key of a mapping, ``name.0`` one item of a list.

        Raises:
            ConfigError: not an assignment, or a key or position that is not there.
        """
        parameters: Any = dict(self.parameters)
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            require(bool(name and equals), "--set", assignment, "name=value")
            parameters = _assign(parameters, name.split("."), _value(assignment, text), name)
        return replace(self, parameters=parameters)

    def for_local_run(self) -> RunFile:
        """With the local section's parallelism and retries in place of the cluster's, on this one machine."""
        local = self.local
        stages = {
            name: replace(stage, retries=None, nodes=None) for name, stage in self.compile.stages.items()
        }
        settings = replace(
            self.compile,
            parallelism=local.parallelism,
            max_chunks=MAX_CHUNKS,
            retries=local.retries,
            stages=stages,
        )
        return replace(self, compile=settings)


def load_run_file(path: Path) -> RunFile:
    """Read the run file at ``path``.

    Raises:
        ConfigError: no such file, no YAML mapping, an unknown section or setting, or a bad value.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("run file", str(path), f"a file that can be read ({error})") from error
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError("run file", str(path), f"a YAML file ({reason})") from error
    require(isinstance(content, Mapping), "run file", str(path), "a mapping with pipeline, parameters, …")
    return from_mapping(RunFile, content, "run file")


def _assign(target: Any, names: Sequence[str], value: Any, where: str) -> Any:
    """``target`` with ``value`` under ``names``: keys of mappings, positions in lists."""
    if not names:
        return value
    first, *rest = names
    if isinstance(target, list):
        fits = first.isdecimal() and int(first) < len(target)
        require(fits, "--set", where, f"a position from 0 to {len(target) - 1} instead of {first!r}")
        return [_assign(v, rest, value, where) if i == int(first) else v for i, v in enumerate(target)]
    require(isinstance(target, Mapping), "--set", where, f"a mapping or a list before {first!r}")
    return {**target, first: _assign(target.get(first, {}), rest, value, where)}


def _value(assignment: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError("--set", assignment, "a value in YAML, quoted where it holds : or #") from error
