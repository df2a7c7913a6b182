"""Pipelines of a user's own: a Python file with a function of its name, which gives the graph."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kubealign_components.config import require
from kubealign_components.errors import ConfigError, KubeAlignError
from kubealign_components.named_paths import FILE, kind_at, named_path
from kubealign_components.raised import where
from kubealign_pipelines.rules import Rules

if TYPE_CHECKING:
    from kfp.dsl.graph_component import GraphComponent

    from kubealign_pipelines.resources import CompileSettings

SUFFIX = ".py"
_LOADED: dict[tuple[Path, int], ModuleType] = {}
"""Files as they were at a time."""


def is_own(name: str) -> bool:
    """Whether ``name`` is that of a file, and of no pipeline that comes along."""
    return name.endswith(SUFFIX)


def build_own(name: str, settings: CompileSettings) -> GraphComponent:
    """The pipeline in the file ``name``.

    Raises:
        ConfigError: no such file, one that cannot be executed, or one that makes no pipeline.
    """
    from kfp.dsl.graph_component import GraphComponent

    from kubealign_pipelines.resources import Placement

    module = load_own(name)
    path = Path(str(module.__file__))
    _rules_in(module)
    function = vars(module).get(path.stem)
    require(callable(function), "pipeline", name, f"a file with a function {path.stem}(place)")
    assert callable(function)
    with _users_code(path, name, "a pipeline"):
        built = function(Placement(settings))
    require(
        isinstance(built, GraphComponent), "pipeline", name, f"a pipeline that {path.stem}(place) returns"
    )
    assert isinstance(built, GraphComponent)
    return built


def own_rules(name: str) -> Rules:
    """Rules of the pipeline in the file ``name``, which may have some as RULES.

    Raises:
        ConfigError: no such file.
    """
    return _rules_in(load_own(name))


def load_own(name: str) -> ModuleType:
    """The module of the file ``name``.

    Raises:
        ConfigError: no such file, or one that cannot be executed.
    """
    named = named_path(name)
    expected = "a pipeline that comes along, or a Python file that is there"
    require(kind_at(named) == FILE, "pipeline", name, expected)
    path = named.resolve()
    changed = path.stat().st_mtime_ns
    if (path, changed) not in _LOADED:
        _LOADED[path, changed] = _executed(path)
    return _LOADED[path, changed]


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kubealign_own_pipeline_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _users_code(path, str(path), "a file that Python can execute"):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _users_code(path: Path, value: str, expected: str) -> Iterator[None]:
    """Let what the file at ``path`` does in this block import the modules beside it.

    Raises:
        ConfigError: it raises something of its own: ``value`` is not what was ``expected``.
    """
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    except KubeAlignError:
        raise
    except (Exception, SystemExit) as error:  # code of a user may raise anything
        raise ConfigError("pipeline", value, f"{expected} ({where(error, str(path))})") from error
    finally:
        with contextlib.suppress(ValueError):  # code of a user may have done it
            sys.path.remove(folder)


def _rules_in(module: ModuleType) -> Rules:
    rules = vars(module).get("RULES", Rules())
    require(isinstance(rules, Rules), "RULES", type(rules).__name__, "kubealign_pipelines.Rules")
    assert isinstance(rules, Rules)
    return rules
