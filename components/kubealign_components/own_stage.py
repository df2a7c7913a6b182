"""A stage of a user's own: one module with ``VERSION``, ``Config`` and ``run``, as the stages here have them.

Its text travels in the compiled pipeline, and is executed where the task runs.
"""

from __future__ import annotations

import base64
import dataclasses
import inspect
import linecache
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
from kubealign_components.config import from_mapping, require
from kubealign_components.errors import ConfigError, KubeAlignError, Unexpected
from kubealign_components.raised import where

if TYPE_CHECKING:
    from collections.abc import Callable

    from kfp.dsl import Artifact, Metrics

    from kubealign_components.data.stats import Stats

OUTPUT = "output"
"""Argument of ``run`` that says where to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnStage:
    """What the module of a stage defines."""

    name: str
    config: type
    run: Callable[..., Stats]
    inputs: tuple[str, ...]
    """Names of the datasets that it takes."""


def packed(source: str) -> str:
    """The text of a module as a compiled pipeline carries it: a few plain letters.

    In a text of its own ``{{`` would begin a variable of Argo's.
    """
    return base64.b64encode(zlib.compress(source.encode(), 9)).decode("ascii")


def read_stage(source: str, name: str, file: str = "") -> OwnStage:
    """The stage of the module ``source``.

    Args:
        source: its text.
        name: of the stage.
        file: where it lies, if it does.

    Raises:
        ConfigError: the text cannot be executed, or defines no stage.
    """
    module = _executed(source, name, file or f"{name}.py")
    config, run = vars(module).get("Config"), vars(module).get("run")
    settings = isinstance(config, type) and dataclasses.is_dataclass(config)
    require(settings, name, file, "a module with Config, a dataclass of the stage's settings")
    require(callable(run), name, file, "a module with run(config, *, dataset, output)")
    assert isinstance(config, type) and callable(run)
    named = [p.name for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
    takes = tuple(one for one in named if one != OUTPUT)
    require(
        OUTPUT in named and bool(takes),
        name,
        file,
        "run(config, *, dataset, output): inputs and output by name",
    )
    return OwnStage(name=name, config=config, run=run, inputs=takes)


def run_stage(
    carried: str,
    name: str,
    settings: Mapping[str, object],
    inputs: Mapping[str, Artifact],
    *,
    dataset: Artifact,
    metrics: Metrics,
    report: Artifact,
) -> None:
    """Run the stage whose module is ``carried``, as :func:`packed` gives it, as a task; publish what it made.

    Raises:
        ConfigError: settings that cannot be used.
        KubeAlignError: what the stage raises.
        Unexpected: it raised something else.
    """
    source = zlib.decompress(base64.b64decode(carried)).decode()
    stage = read_stage(source, name)
    config: object = from_mapping(stage.config, settings, name)
    opened = {own: open_dataset(artifact) for own, artifact in inputs.items()}
    try:
        stats = stage.run(config, **opened, output=rows_of(dataset))
    except KubeAlignError:
        raise
    except Exception as error:  # code of a user may raise anything
        raise Unexpected(f"{name} failed: {where(error, f'{name}.py')}") from error
    publish_with_page(dataset, report)
    log_stats(metrics, stats)


def _executed(source: str, name: str, file: str) -> ModuleType:
    module = ModuleType(f"kubealign_own_{name}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        exec(compile(source, file, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # code of a user may raise anything
        raise ConfigError(name, file, f"a module that Python can execute ({where(error, file)})") from error
    return module
