"""The check of a sweep: every variant is held to the rules as the run that it would be by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kubealign_components.config import BORROWS, GROUPS, Path, semantic_params
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.stages import CONFIGS, config_class
from kubealign_components.variant import options_over
from kubealign_pipelines.checking.across import check_across, gates, kl_estimates
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, error_at, is_within, warning_at
from kubealign_pipelines.checking.rungs import MOST, check_steps
from kubealign_pipelines.checking.stages import Checked, Stage, check_stages
from kubealign_pipelines.flat import Folded, fold
from kubealign_pipelines.graph import Graph, Source
from kubealign_pipelines.halving import HALVING, Rung, factor_of, rungs_of
from kubealign_pipelines.rules import LOGPROBS_ORDER
from kubealign_pipelines.variants import SWEPT, VARIANTS, number_of, swept_stages

OF_SWEEPS = (VARIANTS, "choose_", HALVING.name)
"""What the names of parameters begin with that a run without variants does not have."""
_DATA = ("training_uris", "withdrawn")
"""Settings of ``mix`` that name data, which recipes know by what it holds and not by its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainRun:
    """One variant as a run by itself."""

    position: int
    values: Mapping[str, object]
    """Its parameters, without those of a sweep."""
    written_at: Mapping[Path, Path]
    """Where the sweep has what this run has at a place."""

    def as_written(self, finding: Finding) -> Finding:
        """``finding`` at the place where the sweep has the setting."""
        for length in range(len(finding.path), 1, -1):
            path_in_sweep = self.written_at.get(finding.path[:length])
            if path_in_sweep is not None:
                return replace(finding, path=(*path_in_sweep, *finding.path[length:]))
        return finding


def is_sweep(values: Mapping[str, object]) -> bool:
    """Whether ``values`` ask for a sweep."""
    return bool(values.get(VARIANTS))


def of_sweep(finding: Finding) -> bool:
    """Whether ``finding`` is on a parameter that only sweeps have."""
    return len(finding.path) > 1 and str(finding.path[1]).startswith(OF_SWEEPS)


def plain_shape(parameters: Mapping[str, object]) -> dict[str, object]:
    """``parameters`` without the sweep; log-probabilities come where the sweep has them."""
    plain = {n: v for n, v in parameters.items() if not n.startswith(OF_SWEEPS)}
    return plain | ({LOGPROBS_ORDER.name: "before"} if "select" in swept_stages(parameters) else {})


def plain_runs(graph: Graph, values: Mapping[str, object]) -> list[PlainRun]:
    """Each variant among ``values`` as a run by itself; those that cannot be read are left out.

    Args:
        graph: of such a run.
        values: the parameters of the sweep.
    """
    base = fold(graph, plain_shape(values))
    return [_plain_run(graph, base, position, variant) for position, variant in enumerate(_listed(values))]


def check_form(graph: Graph, values: Mapping[str, object]) -> Iterator[Finding]:
    """Findings on what no run by itself can have: stages and settings in which variants may not differ.

    Args:
        graph: of a run of one variant by itself.
        values: the parameters of the sweep.
    """
    variants = values[VARIANTS]
    path: Path = (PARAMETERS, VARIANTS)
    if not isinstance(variants, list):
        return  # which its type tells
    if len(variants) > MOST:
        yield error_at(path, f"{len(variants)} variants", f"at most {MOST}")
    for position, variant in enumerate(variants):
        if not isinstance(variant, Mapping):
            yield error_at((*path, position), variant, "a mapping by stage, such as {train: {beta: 0.1}}")
            continue
        for stage, options in variant.items():
            yield from _check_stage(graph, (*path, position, stage), stage, options)


def check_repeated(graph: Graph, runs: Sequence[PlainRun], values: Mapping[str, object]) -> Iterator[Finding]:
    """Findings on variants that make what another one makes. They are compared as they run, with defaults and
    without what no result depends on: one may say what is so anyway.

    Args:
        graph: of a run of one variant by itself.
        runs: all variants by themselves.
        values: the parameters of the sweep.
    """
    retrained = swept_stages(values)[:1] != SWEPT[-1:]
    first: dict[str, int] = {}
    for run, variant in zip(runs, _listed(values)):
        path: Path = (PARAMETERS, VARIANTS, run.position)
        checked = check_stages(graph, run.values, complete=False)
        refused = any(not finding.warning for finding in checked.findings)
        if refused or not isinstance(variant, Mapping) or not variant.keys() <= set(SWEPT):
            continue  # which a finding of its own tells
        evaluated = _made_of(checked.stages)
        model = _made_of([stage for stage in checked.stages if stage.task.function != SWEPT[-1]])
        if (same := first.setdefault(evaluated, run.position)) != run.position:
            yield error_at(path, variant, f"each variant once; with all defaults this is {VARIANTS}[{same}]")
        elif (same := first.setdefault(model, run.position)) != run.position and retrained:
            text = f"trains the model of {VARIANTS}[{same}] again; variants of {SWEPT[-1]} alone share it"
            yield warning_at(path, variant, text)


def check_compiled(values: Mapping[str, object], shape: Mapping[str, object]) -> Iterator[Finding]:
    """Findings on what a compiled sweep has no stages or no room for.

    Args:
        values: the parameters of the sweep.
        shape: those by which its stages were chosen.
    """
    given, compiled = values[VARIANTS], shape.get(VARIANTS)
    path: Path = (PARAMETERS, VARIANTS)
    if swept_stages(values)[:1] != swept_stages(shape)[:1]:
        text = "those that differ first in the stage in which the variants did that it was compiled with"
        yield error_at(path, given, text)
    elif isinstance(given, list) and isinstance(compiled, list) and len(given) > len(compiled):
        # Its chunks were counted for these: with more of them the object of the run may grow too large.
        text = f"at most {len(compiled)}, with which the pipeline was compiled; compile it with these"
        yield error_at(path, f"{len(given)} variants", text)
    elif len(rungs_of(number_of(values), factor_of(shape))) < len(
        rungs_of(number_of(shape), factor_of(shape))
    ):
        text = (
            "as many as make the rungs that the pipeline was compiled with; with fewer no rung would drop any"
        )
        yield error_at(path, given, text)


def check_others(
    graph: Graph,
    runs: Sequence[PlainRun],
    *,
    complete: bool,
    max_kl: float | None,
    rungs: Sequence[Rung] = (),
    look: Callable[[Checked], Iterable[Finding]] | None = None,
) -> Iterator[Finding]:
    """Findings on the settings of ``runs`` with themselves, at the places where the sweep has them.

    Args:
        graph: of such a run.
        runs: variants by themselves.
        complete: whether required parameters must be there.
        max_kl: as :func:`check_one_of_many` has it.
        rungs: as :func:`check_one_of_many` has it.
        look: findings on what lies outside of a run's settings; None for none.
    """
    for run in runs:
        checked = check_stages(graph, run.values, complete=complete)
        findings = [*checked.findings, *check_across(checked), *check_one_of_many(checked, max_kl, rungs)]
        # In the place of what was refused a default would be looked at.
        refused_at = {finding.path for finding in findings if not finding.warning}
        outside = look(checked) if look else ()
        findings += [finding for finding in outside if not is_within(finding, refused_at)]
        yield from map(run.as_written, findings)


def check_one_of_many(
    checked: Checked, max_kl: float | None, rungs: Sequence[Rung] = ()
) -> Iterator[Finding]:
    """Findings on what may stand in a run by itself, and would end a sweep after all of its hours.

    Args:
        checked: a variant as a run by itself.
        max_kl: most nats that the chosen one may be away from its reference; None for any number.
        rungs: of the sweep, each of which takes steps of its own.
    """
    yield from check_steps(checked, rungs)
    instead = "choose_min_gain holds the chosen one to a gain"
    yield from gates(checked, f"none in a sweep, which the first variant below would end; {instead}")
    yield from kl_estimates(checked, max_kl)


def why_not(stage: str) -> str:
    """Why variants may not differ in ``stage``."""
    stages = f"a setting of {', '.join(SWEPT[:-1])} or {SWEPT[-1]}"
    if stage not in CONFIGS:
        return stages
    return f"{stages}: {stage} is done once for all variants, and would be done again for each value"


def _listed(values: Mapping[str, object]) -> list[object]:
    variants = values[VARIANTS]
    return variants if isinstance(variants, list) else []


def _made_of(stages: Sequence[Stage]) -> str:
    """The settings of ``stages`` that decide what they make."""
    return canonical_json(
        {
            stage.task.name: semantic_params(stage.config)
            | {name: getattr(stage.config, name, None) for name in _DATA}
            for stage in stages
        }
    )


def _plain_run(graph: Graph, base: Folded, position: int, variant: object) -> PlainRun:
    values = dict(base.values)
    written_at: dict[Path, Path] = {(PARAMETERS, *path): (PARAMETERS, n) for path, n in base.names.items()}
    own = variant if isinstance(variant, Mapping) else {}
    for stage, options in own.items():
        cls = config_class(stage) if stage in SWEPT else None
        if cls is None or not isinstance(options, Mapping):
            continue
        for name, value in options.items():
            path_in_sweep = (PARAMETERS, VARIANTS, position, stage, name)
            if f"{stage}_{name}" in graph.parameters:
                values[f"{stage}_{name}"] = value
                written_at[PARAMETERS, f"{stage}_{name}"] = path_in_sweep
            else:
                there = values.get(f"{stage}_options", {})
                inner = there if isinstance(there, Mapping) else {}
                values[f"{stage}_options"] = options_over(cls, inner, {name: value})
                at = (PARAMETERS, f"{stage}_options", name)
                for path in [path for path in written_at if path[: len(at)] == at]:
                    if path == at or not isinstance(value, Mapping) or path[len(at)] in value:
                        del written_at[path]
                written_at[at] = path_in_sweep
    return PlainRun(position=position, values=values, written_at=written_at)


def _check_stage(graph: Graph, path: Path, stage: object, options: object) -> Iterator[Finding]:
    if stage not in SWEPT:
        yield error_at(path, stage, why_not(str(stage)))
    elif not isinstance(options, Mapping):
        yield error_at(path, options, "a mapping of settings, such as {beta: 0.1}")
    else:
        for name, value in options.items():
            if reason := _shared(graph, str(stage), str(name)):
                yield error_at((*path, name), value, reason)


def _shared(graph: Graph, stage: str, name: str) -> str:
    """Why no variant may have a ``name`` of its own in ``stage``; empty where it may."""
    if (stage, name) == ("evaluate", "reward"):
        return "one value for all variants: by the gain in it one of them is chosen"
    groups = getattr(config_class(stage), GROUPS, {})
    for task in graph.tasks.values():
        source = task.arguments.get(name, Source())
        own = (None, f"{stage}_{name}")
        if task.function == stage and name not in groups and source.parameter not in own:
            return f"nothing here: {source.parameter} is one for all stages, and so for all variants"
        borrowed = getattr(config_class(task.function), BORROWS, {}).get(f"{stage}_options", ())
        if name in borrowed:
            once = f"{task.function}, which is done once, works with {stage}_{name} too"
            return f"one value for all variants: {once}"
    return ""
