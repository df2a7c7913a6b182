"""The check of a whole run: what can be known before it starts, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec

from kubealign_components.data.chat import ChatTemplate, TemplateMismatch
from kubealign_components.errors import ConfigError
from kubealign_components.json_types import JsonObject
from kubealign_pipelines import build, rules
from kubealign_pipelines.checking.across import check_across, check_counts, secrets, with_labels
from kubealign_pipelines.checking.benchmarks import check_benchmarks
from kubealign_pipelines.checking.carried import check_carried, check_texts
from kubealign_pipelines.checking.filtered import filtered
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, distinct, error_at, is_within
from kubealign_pipelines.checking.models import check_models, policy_folder, template_settings
from kubealign_pipelines.checking.rewards import check_functions
from kubealign_pipelines.checking.rungs import check_rungs
from kubealign_pipelines.checking.sources import Prompts, check_sources, warn_of_unread
from kubealign_pipelines.checking.stages import Checked, check_stages
from kubealign_pipelines.checking.variants import (
    check_compiled,
    check_form,
    check_one_of_many,
    check_others,
    check_repeated,
    is_sweep,
    of_sweep,
    plain_runs,
    plain_shape,
)
from kubealign_pipelines.checking.volumes import unseen_folders
from kubealign_pipelines.checking.withdrawals import check_withdrawals
from kubealign_pipelines.checking.work import check_work
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.graph import Graph
from kubealign_pipelines.halving import factor_of, rungs_of
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.variants import VARIANTS, number_of

_INSTALLED = "an engine that is installed here, transformers; or install vllm, or run with --runner docker"


@dataclass(slots=True)
class Report:
    """What the check of a run found."""

    findings: list[Finding]
    graph: Graph
    checked: Checked
    prompts: Prompts = field(default_factory=Prompts)
    given: Mapping[str, object] = field(default_factory=dict)
    """The parameters as they were given."""

    @property
    def errors(self) -> list[Finding]:
        """What stops the run."""
        return [finding for finding in self.findings if not finding.warning]


def check_run(
    pipeline: str,
    values: Mapping[str, object],
    settings: CompileSettings,
    *,
    complete: bool = True,
    here: bool = False,
    process: bool = False,
    shape: Mapping[str, object] | None = None,
    assumed: Mapping[str, object] | None = None,
) -> Report:
    """Everything that can be known of a run before it starts.

    Args:
        pipeline: by name, or the file of one's own.
        values: its parameters.
        settings: what is fixed at compile time.
        complete: whether required parameters must be there, and models and sources be looked at: a pipeline
            that is compiled may be for another place.
        here: whether the run is on this machine, and models and sources must be found here.
        process: whether its stages run in this environment, and not in images of their own.
        shape: where the pipeline is compiled already, the parameters by which its stages were chosen; then
            this is its first task, in an image that may lack what a user's reward functions import.
        assumed: parameters that are given where the pipeline has them and ``values`` have not.
    """
    in_pod = shape is not None
    unseen: set[str] = set() if here else unseen_folders(settings, in_pod=in_pod)
    models = partial(check_models, here=here, unseen=unseen)
    tried = partial(_tried, in_pod=in_pod, process=process)
    if VARIANTS in rules(pipeline).deciding and (is_sweep(values) or (shape is not None and is_sweep(shape))):
        plain = {} if shape is None else {"shape": plain_shape(shape)}
        one = partial(
            check_run,
            pipeline,
            settings=settings,
            complete=complete,
            here=here,
            process=process,
            assumed=assumed,
        )
        return _check_sweep(
            pipeline,
            values,
            settings,
            shape,
            complete=complete,
            work=bool({**(assumed or {}), **values}.get("work")),
            one=partial(one, **plain),
            models=models,
            tried=tried,
        )
    graph, refused = _graph(pipeline, values if shape is None else shape, settings)
    settable = {parameter.name for parameter in graph.settings()}
    values = {name: value for name, value in (assumed or {}).items() if name in settable} | dict(values)
    if shape is not None:
        refused = [*refused, *_other_stages(pipeline, graph, shape, values, settings)]
        values = _given(graph, values)
    checked = check_stages(graph, values, complete=complete)
    paths = {finding.path for finding in checked.findings}
    findings = [f for f in refused if f.path not in paths] + checked.findings + list(check_across(checked))
    findings += secrets(("compile",), _literal(settings))
    if not here:
        findings += [*check_carried(values), *check_texts(("compile",), _literal(settings))]
    if not complete:
        # Compiled perhaps for another place: models and data are looked at by whoever runs it.
        return Report(distinct(findings), graph, checked, Prompts())
    # In the place of what was refused a default was looked at, of which nothing is to be told.
    refused_at = {finding.path for finding in findings if not finding.warning}
    candidates = [*models(checked), *check_work(checked, here=here)]
    candidates += check_withdrawals(checked, readable=here or in_pod, unseen=unseen)
    candidates += check_benchmarks(checked, readable=here or in_pod, unseen=unseen)
    prompts, of_sources = check_sources(checked, here=here, unseen=unseen)
    candidates += of_sources
    if pipeline == "offline_alignment":
        candidates += _counted(checked, prompts)
        candidates += warn_of_unread(checked) if not (prompts.rows or of_sources) else []
    candidates += tried(checked, prompts)
    findings += [finding for finding in candidates if not is_within(finding, refused_at)]
    return Report(distinct(findings), graph, checked, prompts)


def _check_sweep(
    pipeline: str,
    values: Mapping[str, object],
    settings: CompileSettings,
    shape: Mapping[str, object] | None,
    *,
    complete: bool,
    work: bool,
    one: Callable[..., Report],
    models: Callable[[Checked], Iterator[Finding]],
    tried: Callable[[Checked, Prompts], list[Finding]],
) -> Report:
    """As :func:`check_run`, of a sweep.

    Args:
        pipeline: by name.
        values: its parameters.
        settings: what is fixed at compile time.
        shape: as :func:`check_run` has it.
        complete: whether required parameters must be there.
        work: whether there is a work prefix.
        one: the check of a run without variants, of which it takes the parameters.
        models: findings on the models of such a run.
        tried: findings on what can be called here, with prompts to call it on.
    """
    values = {VARIANTS: [], **values}
    graph, refused = _graph(pipeline, values if shape is None else shape, settings)
    refused = [*refused, *(check_compiled(values, shape) if shape is not None else ())]
    plain, _ = _graph(pipeline, plain_shape(values if shape is None else shape), settings)
    rungs = rungs_of(number_of(values), factor_of(values if shape is None else {**shape, **values}))
    runs = plain_runs(plain, values)
    form = [*check_form(plain, values), *check_rungs(values, rungs, work=work or not complete)]
    first = one(runs[0].values if runs else plain_shape(values))
    checked = check_stages(graph, values, complete=complete)
    max_kl = next((stage.config.max_kl for stage in checked.of("choose")), None)
    of_first = [*first.findings, *check_one_of_many(first.checked, max_kl, rungs)]
    findings = [runs[0].as_written(finding) if runs else finding for finding in of_first]
    seen = [stage.config for stage in first.checked.stages]

    def look(other: Checked) -> Iterator[Finding]:
        """What a variant may have of its own outside of its settings: sources are one for all."""
        other.folders = first.checked.folders
        yield from models(other)
        yield from _counted(other, first.prompts)
        new = [stage for stage in other.stages if stage.config not in seen]
        seen.extend(stage.config for stage in new)
        yield from tried(replace(other, stages=new), first.prompts)

    findings += check_repeated(plain, runs, values)
    findings += check_others(
        plain, runs[1:], complete=complete, max_kl=max_kl, rungs=rungs, look=look if complete else None
    )
    own = [finding for finding in checked.findings if of_sweep(finding)]
    checked.folders = first.checked.folders
    refused_at = {finding.path for finding in form}
    kept = [finding for finding in findings if not is_within(finding, refused_at)]
    return replace(first, findings=distinct([*refused, *form, *own, *kept]), graph=graph, checked=checked)


def _graph(
    pipeline: str, values: Mapping[str, object], settings: CompileSettings
) -> tuple[Graph, Sequence[Finding]]:
    """The graph; where the parameters choose no stages that fit, that of the others, or of the defaults."""
    try:
        return graph_of(build(pipeline, settings, values), pipeline), []
    except ConfigError as error:
        finding = error_at((PARAMETERS, error.field), error.value, error.expected)
        others = {name: value for name, value in values.items() if name != error.field}
        if len(others) == len(values):  # a default is refused, or the file itself
            others = {}
        if not values:
            raise
        return _graph(pipeline, others, settings)[0], [finding]


def _given(graph: Graph, values: Mapping[str, object]) -> dict[str, object]:
    """Those of ``values`` that are not as the pipeline has them by itself: its tasks get all of them."""
    declared = graph.parameters
    return {
        n: v
        for n, v in values.items()
        if n not in declared or declared[n].required or v != declared[n].default
    }


def _other_stages(
    pipeline: str,
    graph: Graph,
    shape: Mapping[str, object],
    values: Mapping[str, object],
    settings: CompileSettings,
) -> list[Finding]:
    """Findings on ``values`` for which a pipeline would have other stages than the compiled ``graph`` has."""
    now = graph.rules.shape(values)
    changed = [n for n in graph.rules.deciding if n in values and now.get(n) != shape.get(n)]
    if not changed:
        return []
    other, refused = _graph(pipeline, {**shape, **values}, settings)
    if refused or other.tasks.keys() == graph.tasks.keys():
        return list(refused)
    text = "what the pipeline was compiled with, which decides on its stages; or compile it with this"
    return [error_at((PARAMETERS, name), values[name], text) for name in changed]


def _counted(checked: Checked, prompts: Prompts) -> list[Finding]:
    mix = next(iter(checked.of("mix")), None)
    if mix is None or not (prompts.rows and prompts.complete):
        return []
    if prompts.kept is None:
        prompts.kept, nothing_left = filtered(checked, _template(checked), prompts.rows)
        if nothing_left:
            return nothing_left
    if not prompts.kept:
        return []
    usable, unlabelled = with_labels(checked, prompts.kept)
    if unlabelled:
        return unlabelled
    held = replace(prompts, rows=usable).held_out(mix.config.validation_fraction, mix.config.seed)
    return list(check_counts(checked, len(usable), held))


def _tried(checked: Checked, prompts: Prompts, *, in_pod: bool, process: bool) -> list[Finding]:
    functions = check_functions(checked, prompts.rows)
    findings = [replace(one, warning=True) if in_pod else one for one in functions]
    return findings + (_engines(checked) if process else [])


def _literal(settings: CompileSettings) -> dict[str, object]:
    """What the compile section has in words of its user's: environments are the place of stray secrets."""
    stages = {name: {"environment": dict(stage.environment)} for name, stage in settings.stages.items()}
    return {"environment": dict(settings.environment), "stages": stages}


def _engines(checked: Checked) -> list[Finding]:
    """Findings on engines that this environment lacks."""
    findings = []
    for stage in checked.stages:
        spec = getattr(stage.config, "sampling", None)
        if spec is not None and spec.engine == "vllm" and find_spec("vllm") is None:
            findings.append(error_at(stage.path(("sampling", "engine")), spec.engine, _INSTALLED))
    for stage in checked.of("benchmark"):
        if find_spec("lm_eval") is None:
            expected = "none where lm-eval is not installed: pip install 'kubealign[benchmark,models]'"
            findings.append(error_at(stage.path(("tasks",)), stage.config.tasks, expected))
        elif stage.config.engine == "vllm" and find_spec("vllm") is None:
            findings.append(error_at(stage.path(("engine",)), stage.config.engine, _INSTALLED))
    return findings


def first_rows(report: Report, number: int) -> list[str]:
    """The first ``number`` prompts as the policy will see them, and their offline completions: tokens apart,
    so that control tokens and texts that spell one can be told from each other."""
    template = _template(report.checked) if number else None
    if template is None:
        return []
    return ["\n".join(_seen(template, row)) for row in report.prompts.rows[:number]]


def _template(checked: Checked) -> ChatTemplate | None:
    """The chat template of the policy; None where it, or a file of the user's own, is not on this machine."""
    policy = next((stage.config.policy for stage in checked.of("filter")), "")
    folder = policy_folder(checked, policy)
    try:
        return folder.chat(template_settings(checked, policy)) if folder else None
    except Exception:  # ours, and whatever strangers' files make the libraries raise
        return None


def _seen(template: ChatTemplate, row: JsonObject) -> Iterator[str]:
    messages, tools = json.loads(row["messages"]), json.loads(row["tools"]) if row["tools"] else None
    try:
        yield _apart(template, template.prompt_ids(messages, tools))
    except TemplateMismatch as error:
        yield f"dropped: {error}"
        return
    for completion in row["completions"]:
        label = completion["label"] or "completion"
        try:
            ids = template.completion_ids(messages, json.loads(completion["messages"]), tools)
            yield f"  {label}: {_apart(template, ids)}"
        except TemplateMismatch as error:
            yield f"  {label}: dropped: {error}"


def _apart(template: ChatTemplate, ids: Sequence[int]) -> str:
    return "|".join(str(template.tokenizer.convert_ids_to_tokens(token)) for token in ids)
