"""What is held of the source as a whole."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from kubealign_components.stages import config_class
from kubealign_components.training.config import OptimiserConfig
from kubealign_pipelines.checking.describe import meanings_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("components", "pipelines", "sdk")
MOST = 12
"""Occurrences of ``Any`` in 1,000 lines."""
VAGUE = {"place", "places", "wanted", "known", "found", "told"}
"""Words that say of a thing how somebody came to it, and not what it is."""


def sources() -> list[Path]:
    return [
        path for name in ("components", "pipelines", "sdk") for path in sorted((ROOT / name).rglob("*.py"))
    ]


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def test_files_and_rooms_stay_small() -> None:
    """A file has under 500 lines, and no folder below the packages more than 18 % of all."""
    lines = {path.relative_to(ROOT): path.read_text().count("\n") for path in sources()}
    assert not {path: count for path, count in lines.items() if count >= 500}
    rooms: Counter[Path] = Counter()
    for path, count in lines.items():
        rooms[Path(*path.parts[:3])] += count
    room, largest = rooms.most_common(1)[0]
    assert 100 * largest <= 18 * rooms.total(), f"{room} has {largest} of {rooms.total()} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_values_have_types(package: str) -> None:
    texts = [path.read_text() for path in sorted((ROOT / package).rglob("*.py"))]
    lines = sum(text.count("\n") for text in texts)
    untyped = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
    assert lines > 1000
    assert 1000 * untyped <= MOST * lines, (
        f"{untyped} times Any in {lines} lines of {package}: name the type, or object where nothing is asked"
    )


@pytest.mark.parametrize("stage", ["train", "train_reward_model", "train_ppo"])
def test_a_training_stage_declares_again_only_what_it_has_otherwise(stage: str) -> None:
    cls = config_class(stage)
    assert cls is not None
    assert issubclass(cls, OptimiserConfig)
    base = next(b for b in cls.__mro__[1:] if b.__name__ in ("TrainerConfig", "OptimiserConfig"))
    inherited = {f.name: f.default for f in dataclasses.fields(base)}
    own, meanings, theirs = vars(cls)["__annotations__"], meanings_of(cls), meanings_of(base)
    same = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name in own
        and f.name in inherited
        and (f.default, meanings[f.name]) == (inherited[f.name], theirs[f.name])
    ]
    assert same == []


def names_in(tree: ast.AST) -> set[str]:
    """What ``tree`` gives a name to: variables, parameters, attributes, functions and classes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
    return names


def test_names_are_nouns_that_say_what_a_thing_is() -> None:
    """``path``, ``uri`` or ``position`` for a place, and for what was found or told its kind."""
    told_nothing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in names_in(ast.parse(path.read_text()))
        if VAGUE & set(re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", name).lower())) and name != "NotFound"
    }
    assert not told_nothing
