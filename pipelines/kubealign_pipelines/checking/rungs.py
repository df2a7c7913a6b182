"""The check of successive halving: what its rungs ask of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kubealign_components.config import Path
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, error_at
from kubealign_pipelines.checking.stages import Checked
from kubealign_pipelines.halving import HALVING, REDUCTION_FACTOR, Rung
from kubealign_pipelines.variants import VARIANTS

MOST = 32
"""Trainings of a sweep, of all its rungs: Kubeflow's object of a run has room for these, all retries
included."""
_STOP = "stop_after"


def check_rungs(values: Mapping[str, object], rungs: Sequence[Rung], *, work: bool) -> Iterator[Finding]:
    """Findings on what a sweep with these ``rungs`` cannot have.

    Args:
        values: the parameters of the sweep.
        rungs: one alone without successive halving.
        work: whether there is a work prefix.
    """
    said = f"nothing here: {HALVING.name} says it, when the pipeline is compiled"
    for path, value in _given(values, "choose", REDUCTION_FACTOR):
        yield error_at(path, value, said)
    if len(rungs) == 1:
        return
    trainings = [rung.variants for rung in rungs]
    if sum(trainings) > MOST:
        counted = " + ".join(map(str, trainings))
        fewer = f"at most {MOST} trainings of all rungs, not {counted}: a larger number, or fewer variants"
        yield error_at((PARAMETERS, HALVING.name), rungs[0].factor, fewer)
    if not work:
        uri = f"a URI, with {HALVING.name}: there a rung finds the checkpoints of the one before"
        yield error_at((PARAMETERS, "work"), "", uri)
    stops = f"none with {HALVING.name}, whose rungs say where training stops"
    for path, value in _given(values, "train", _STOP):
        yield error_at(path, value, stops)


def check_steps(checked: Checked, rungs: Sequence[Rung]) -> Iterator[Finding]:
    """Findings on a variant whose training has too few steps for ``rungs``."""
    fewest = rungs[0].factor ** (len(rungs) - 1) if len(rungs) > 1 else 0
    for train in checked.of("train"):
        steps = train.config.max_steps
        if 0 < steps < fewest:
            of_first = f"one in {fewest} steps is of the first of {len(rungs)} rungs"
            yield error_at(train.path(("max_steps",)), steps, f"0, or at least {fewest}: {of_first}")


def _given(values: Mapping[str, object], stage: str, name: str) -> Iterator[tuple[Path, object]]:
    """Where a setting of ``stage`` is given, for all variants or for one."""
    options, flat, variants = f"{stage}_options", f"{stage}_{name}", values.get(VARIANTS)
    if flat in values:
        yield (PARAMETERS, flat), values[flat]
    holders: list[tuple[Path, object]] = [((PARAMETERS, options), values.get(options))]
    for position, variant in enumerate(variants if isinstance(variants, list) else ()):
        own = variant.get(stage) if isinstance(variant, Mapping) else None
        holders.append(((PARAMETERS, VARIANTS, position, stage), own))
    for path, settings in holders:
        if isinstance(settings, Mapping) and name in settings:
            yield (*path, name), settings[name]
