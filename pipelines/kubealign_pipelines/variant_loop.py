"""The loop over the variants of a sweep, or one a rung, and the choice among them behind each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kfp import dsl
from kfp.dsl import PipelineTask

from kubealign_components.choose.component import choose
from kubealign_components.train.component import train
from kubealign_components.variant import VARIANT
from kubealign_pipelines.fan_out import CHUNKS
from kubealign_pipelines.halving import REDUCTION_FACTOR, Rung
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.variants import VARIANTS

_MAY_END = {"mix", "train", "evaluate"}
"""Stages that end a variant without ending its sweep."""
Evaluated = Callable[[str, Mapping[str, Arguments]], PipelineTask]
"""Makes the tasks of one variant under the name of a rung, with arguments by stage; gives the last, which
compares."""


def for_each_variant(
    inputs: PipelineInputs, stages: Sequence[str], rungs: Sequence[Rung], evaluated: Evaluated
) -> PipelineTask:
    """Do ``stages`` for each variant and choose among them, at each of ``rungs`` for those that are left;
    gives the task of the last choice.

    Args:
        inputs: of the pipeline.
        stages: from the first one in which variants differ on.
        rungs: one alone without successive halving.
        evaluated: makes the tasks of these stages.
    """
    at_once, variants = inputs.placement.at_once(train), inputs[VARIANTS]
    further: dict[str, object] = {}
    for rung in rungs:
        # The top level of a run's page shows the loop alone: its title names the stages in it.
        title = ": ".join(filter(None, [rung.about, f"each variant: {', '.join(stages)}"]))
        own: dict[str, Arguments] = {}
        with dsl.ParallelFor(variants, parallelism=at_once, name=title) as variant:
            own = {stage: {VARIANT: variant} for stage in stages}
            for stage in _MAY_END & own.keys():
                own[stage] = {**own[stage], "sweep": True}
            if rung.factor:
                own["train"] = {**own["train"], "stop_after": rung.share}
            compared = evaluated(rung.about, own)
        chosen = inputs.placement(
            choose,
            rung.about,
            evaluations=dsl.Collected(compared.outputs["dataset"]),
            seed=inputs["seed"],
            work=inputs["work"],
            **inputs.of("choose"),
            **further,
            **({REDUCTION_FACTOR: rung.factor} if rung.factor else {}),
        )
        variants, further = chosen.outputs[CHUNKS], {"earlier": chosen.outputs["dataset"]}
    return chosen
