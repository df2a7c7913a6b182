"""What both recipes end with: choose, score, mix, train, compare.

select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate
"""

from __future__ import annotations

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.evaluate.component import evaluate
from kubealign_components.logprobs.component import logprobs
from kubealign_components.mix.component import mix
from kubealign_components.select.component import select
from kubealign_components.train.component import train
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs

OFFLINE_STAGES = ("select", "logprobs", "mix", "train", "evaluate")
"""In their order."""


def align_offline(
    inputs: PipelineInputs,
    rows: PipelineTask,
    *,
    order: str,
    selection: Arguments,
    comparison: Arguments,
    reference: PipelineChannel | str = "",
) -> None:
    """Train on completions of ``rows`` and compare the aligned policy with what it was.

    Args:
        inputs: of the pipeline.
        rows: task that made rewarded completions, or others where nothing is rewarded. It has planned
            a fan-out if log-probabilities are computed before selection.
        order: whether log-probabilities are computed "before" or "after" selection.
        selection: arguments of ``select`` that are no inputs of the pipeline.
        comparison: arguments of ``evaluate``: how both policies are sampled, and by what they are compared.
        reference: of ``logprobs`` and ``train``; empty where it is the policy.
    """
    models = {"policy": inputs["policy"], "reference": reference}
    if order == "before":
        chosen = _chosen(inputs, _scored(inputs, rows, models), selection)
    else:
        chosen = _scored(inputs, _chosen(inputs, rows, {**selection, **inputs.cut(logprobs)}), models)
    mixed = inputs.placement(
        mix,
        selection=chosen.outputs["dataset"],
        validation_fraction=inputs["validation_fraction"],
        seed=inputs["seed"],
        work=inputs["work"],
        **inputs.of("mix"),
    )
    trained = inputs.placement(
        train,
        training=mixed.outputs["dataset"],
        seed=inputs["seed"],
        work=inputs["work"],
        **models,
        **inputs.of("train"),
    )
    compare(inputs, rows, trained, comparison)


def compare(inputs: PipelineInputs, rows: PipelineTask, trained: PipelineTask, comparison: Arguments) -> None:
    """Compare the policy of ``trained`` with what it was, on held-out prompts of ``rows``."""
    inputs.placement(
        evaluate,
        rewarded=rows.outputs["dataset"],
        model=trained.outputs["model"],
        policy=inputs["policy"],
        validation_fraction=inputs["validation_fraction"],
        split_seed=inputs["seed"],
        seed=inputs["seed"],
        work=inputs["work"],
        sample_options=inputs["sample_options"],
        **comparison,
        **inputs.of("evaluate"),
    )


def _chosen(inputs: PipelineInputs, made: PipelineTask, further: Arguments) -> PipelineTask:
    own = {"work": inputs["work"], **inputs.of("select"), **further}
    return inputs.placement(select, rewarded=made.outputs["dataset"], seed=inputs["seed"], **own)


def _scored(inputs: PipelineInputs, made: PipelineTask, models: Arguments) -> PipelineTask:
    # In the numbers of training, which then starts at log-ratios of exactly 0.
    own = {**inputs.of("logprobs"), "train_options": inputs["train_options"]}
    return fan_out(inputs.placement, logprobs, made, **models, **own)
