"""``--grid NAME=VALUE,VALUE``: variants of a sweep from the values of settings, all with all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from math import prod

from kubealign.yaml_source import Document, read_yaml
from kubealign_components.config import Path, did_you_mean
from kubealign_components.stages import CONFIGS
from kubealign_pipelines.checking.findings import PARAMETERS, Mark, error_at
from kubealign_pipelines.checking.rungs import MOST
from kubealign_pipelines.checking.variants import why_not
from kubealign_pipelines.flat import paths_in_options
from kubealign_pipelines.halving import HALVING
from kubealign_pipelines.variants import SWEPT, VARIANTS

GRID = "--grid"


def with_grid(document: Document, values: Mapping[str, object], grids: Sequence[str]) -> dict[str, object]:
    """``values`` of a run file with the variants of ``grids``; what is wrong with these is a finding.

    Args:
        document: that the values are of; gets findings, and where each setting of a variant comes from.
        values: sections by name.
        grids: ``name=value,value``, a name of a setting as a run file has it and values in YAML.
    """
    parameters = values.get(PARAMETERS) or {}
    if not isinstance(parameters, Mapping):
        return dict(values)  # of which the section's own finding tells
    axes: dict[Path, list[object]] = {}
    names: dict[Path, str] = {}
    for grid in grids:
        setting, choices, expected = _axis(grid)
        if not expected and any(_overlap(setting, other) for other in axes):
            expected = "each setting once, and none inside of another"
        if expected:
            document.findings.append(error_at((GRID,), grid, expected))
        else:
            axes[setting], names[setting] = choices, grid.partition("=")[0].strip()
    if parameters.get(VARIANTS):
        expected = f"no {VARIANTS} among the parameters beside it: those of one of the two"
        document.findings.append(error_at((GRID,), grids[0], expected))
    number = prod(map(len, axes.values()))
    if number > MOST:
        expected = f"at most {MOST} variants; these values make {number}"
        document.findings.append(error_at((GRID,), " ".join(grids), expected))
    if not axes or number > MOST:
        return dict(values)
    variants = [dict(zip(axes, chosen)) for chosen in product(*axes.values())]
    document.marks[PARAMETERS, VARIANTS] = Mark(" ".join(f"{GRID} {grid}" for grid in grids))
    for position, variant in enumerate(variants):
        for setting, value in variant.items():
            path = (PARAMETERS, VARIANTS, position, *setting)
            document.marks[path] = Mark(f"{GRID} {names[setting]}={value}")
    return {**values, PARAMETERS: {**parameters, VARIANTS: list(map(_nested, variants))}}


def with_halving(document: Document, values: Mapping[str, object], factor: int) -> dict[str, object]:
    """``values`` of a run file with the reduction factor of ``--halving``.

    Args:
        document: that the values are of; gets where the factor comes from.
        values: sections by name.
        factor: one variant in so many goes on from a rung.
    """
    parameters = values.get(PARAMETERS) or {}
    if not isinstance(parameters, Mapping):
        return dict(values)
    document.marks[PARAMETERS, HALVING.name] = Mark(f"--halving {factor}")
    return {**values, PARAMETERS: {**parameters, HALVING.name: factor}}


def grid_names() -> dict[str, Path]:
    """Every setting in which variants may differ by its name: stage, and path in its options."""
    return {
        f"{stage}_{name}": (stage, *setting)
        for stage in SWEPT
        for name, setting in paths_in_options(stage).items()
    }


def _axis(grid: str) -> tuple[Path, list[object], str]:
    """Stage and path, and values of one setting, and what was expected where they cannot be used."""
    name, equals, text = (part.strip() for part in grid.partition("="))
    read = read_yaml(f"[{text}]", GRID)
    values = read.values if isinstance(read.values, list) else []
    setting = grid_names().get(name, ())
    if not (equals and values) or read.findings:
        return setting, values, "name=value,value with values in YAML, such as train_beta=0.05,0.1"
    return setting, values, "" if setting else _expected(name)


def _expected(name: str) -> str:
    near = did_you_mean(name, grid_names())
    for stage in sorted(CONFIGS, key=len, reverse=True):
        if name.startswith(f"{stage}_") and stage not in SWEPT:
            return f"{why_not(stage)}{near}"
    full = [one for one in grid_names() if one.partition("_")[2] == name]
    return f"{why_not('')}{f', such as {full[0]}' if len(full) == 1 else near}"


def _overlap(one: Path, other: Path) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _nested(variant: Mapping[Path, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for (*outer, last), value in variant.items():
        inside = nested
        for name in map(str, outer):
            below = inside.setdefault(name, {})
            assert isinstance(below, dict)
            inside = below
        inside[str(last)] = deepcopy(value)  # which other variants have, too
    return nested
