"""From a run file to the IR that Kubeflow Pipelines runs, on a cluster and here alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from google.protobuf.json_format import MessageToDict
from kfp.compiler.pipeline_spec_builder import extract_comments_from_pipeline_spec

from kubealign_components.config import require
from kubealign_components.whole_file import whole_file
from kubealign_pipelines import Rules, build, rules
from kubealign_pipelines.checking.describe import options_text
from kubealign_pipelines.checking.reach import near_path
from kubealign_pipelines.flat import fold
from kubealign_pipelines.graph import CHECK, REGISTER, Graph, Json, Parameter
from kubealign_pipelines.lean import lean_sweep
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.variants import VARIANTS
from kubealign_pipelines.workflow_size import most_chunks

if TYPE_CHECKING:
    from kfp.dsl.graph_component import GraphComponent

log = logging.getLogger(__name__)

PLANNED = "max_chunks"
"""Argument of the stages that plan a fan-out: the most chunks of it."""


def compile_pipeline(
    name: str,
    path: Path,
    settings: CompileSettings | None = None,
    parameters: Mapping[str, object] | None = None,
    *,
    defaults: bool = False,
) -> Graph:
    """Write the IR of the pipeline ``name`` to ``path`` and give its graph.

    Args:
        name: one of :data:`kubealign_pipelines.PIPELINES`.
        path: a ``.yaml`` file, in a folder that is there.
        settings: what is fixed at compile time.
        parameters: those of the run: some decide which stages the graph has.
        defaults: whether ``parameters`` become the defaults of the compiled pipeline's own.

    Raises:
        ConfigError: no such pipeline, an unknown choice of stages, no YAML file name, or no such folder.
    """
    require(path.suffix in (".yaml", ".yml"), "--output", str(path), "a file name that ends in .yaml")
    near = near_path(path.parent)
    require(path.parent.is_dir(), "--output", str(path), f"a file in a folder that is there{near}")
    parameters = parameters or {}
    pipeline = build(name, settings, parameters)
    spec, graph = _spec_of(pipeline, name)
    registry = settings.model_registry.server if settings else ""
    ends = not registry or REGISTER in spec["root"]["dag"]["tasks"]
    require(
        ends, "compile.model_registry.server", registry, "none: only place.register_model(…) registers here"
    )
    platform: Json = MessageToDict(pipeline.platform_spec)
    described = f"{graph.description}\n\nOptions by name, with their defaults:\n{options_text(graph)}"
    spec["pipelineInfo"]["description"] = described
    lean_sweep(spec)
    variants = parameters.get(VARIANTS)
    _limit_chunks(spec, len(variants) if isinstance(variants, list) else 0)
    if defaults:
        _set_defaults(spec, fold(graph, parameters).values)
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(extract_comments_from_pipeline_spec(spec, pipeline.description))
        documents = [spec, platform] if platform.get("platforms") else [spec]
        yaml.dump_all(documents, file, Dumper=yaml.CSafeDumper, sort_keys=True)
    return graph


def graph_of(pipeline: GraphComponent, name: str) -> Graph:
    """The graph of ``pipeline``, which :func:`kubealign_pipelines.build` made by ``name``; writes nothing."""
    return _spec_of(pipeline, name)[1]


def _spec_of(pipeline: GraphComponent, name: str) -> tuple[Json, Graph]:
    spec: Json = MessageToDict(pipeline.pipeline_spec)
    whole, own = Graph(spec), rules(name)
    others = {idle: whole.parameters[idle] for idle in _prune(spec)}
    choices = {p.name: p for p in _choices(own)}
    return spec, Graph(spec, others=others, choices=choices, rules=own, called=name)


def read_graph(path: Path) -> Graph:
    """The graph of the compiled pipeline at ``path``, without rules, of which a compiled one knows nothing; a
    second YAML document holds only pod settings."""
    with path.open("rb") as file:
        return Graph(next(yaml.load_all(file, Loader=yaml.CSafeLoader)))


def _choices(rules: Rules) -> Iterator[Parameter]:
    for choice in rules.choices:
        allowed = " or ".join(map(str, choice.values))
        yield Parameter(
            name=choice.name,
            type="NUMBER_INTEGER" if isinstance(choice.values[0], int) else "STRING",
            description=f"{choice.meaning} {allowed}; compile time.",
            required=False,
            default=choice.values[0],
            compile_time=True,
        )


def _prune(spec: Json) -> list[str]:
    """Take the parameters out of ``spec`` that none of its stages reads; gives their names."""
    root, tasks = spec["root"], spec["root"]["dag"]["tasks"]
    declared = root.get("inputDefinitions", {}).get("parameters", {})
    read = {
        value.get("componentInputParameter")
        for name, task in tasks.items()
        for value in task.get("inputs", {}).get("parameters", {}).values()
        if name != CHECK
    }
    idle = sorted(declared.keys() - read)
    of_check = [declared]
    if CHECK in tasks:
        component = spec["components"][tasks[CHECK]["componentRef"]["name"]]
        of_check += [tasks[CHECK]["inputs"]["parameters"], component["inputDefinitions"]["parameters"]]
    for parameters in of_check:
        for name in idle:
            parameters.pop(name, None)
    return idle


def _limit_chunks(spec: Json, variants: int) -> None:
    """Let every stage that plans a fan-out plan what a run's object has room for, beside its variants."""
    tasks = spec["root"]["dag"]["tasks"].values()
    planned = [
        p[PLANNED]["runtimeValue"]
        for t in tasks
        if PLANNED in (p := t.get("inputs", {}).get("parameters", {}))
    ]
    most = max((int(value["constant"]) for value in planned), default=1)
    limit = most_chunks(spec, most, variants=variants)
    if variants and limit < most:
        log.warning(
            "%d variants leave room for %d chunks of a fan-out, not %d, in Kubernetes' object of the run: "
            "sampling and rewarding have no more pods; a sweep of fewer variants has room for more",
            variants,
            limit,
            most,
        )
    for value in planned:
        value["constant"] = float(min(value["constant"], limit))


def _set_defaults(spec: Json, parameters: Mapping[str, object]) -> None:
    for name, declared in spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
        if name in parameters:
            declared["defaultValue"] = parameters[name]
            declared["isOptional"] = True
