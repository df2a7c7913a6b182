"""What both recipes end with: choose, score, mix, train, compare.

    select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

In a sweep what stands before the first stage in which its variants differ is done once, the rest for each:

    logprobs ×chunks ─ merge ─ (select ─ mix ─ train ─ evaluate) ×variants ─ choose
"""

from __future__ import annotations

from collections.abc import Collection

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.evaluate.component import evaluate
from kubealign_components.logprobs.component import logprobs
from kubealign_components.mix.component import mix
from kubealign_components.select.component import select
from kubealign_components.train.component import train
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.variant_loop import VariantLoop

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
    swept: Collection[str] = (),
    start: Arguments | None = None,
    against: PipelineTask | None = None,
    earlier: PipelineChannel | None = None,
    about: str = "",
) -> PipelineTask:
    """Train on completions of ``rows`` and compare the aligned policy with what it was; gives the comparison.

    Args:
        inputs: of the pipeline.
        rows: task that made rewarded completions, or others where nothing is rewarded. It has planned
            a fan-out if log-probabilities are computed before selection.
        order: whether log-probabilities are computed "before" or "after" selection.
        selection: arguments of ``select`` that are no inputs of the pipeline.
        comparison: arguments of ``evaluate``: how both policies are sampled, and by what they are compared.
        reference: of ``logprobs`` and ``train``; empty where it is the policy.
        swept: stages in which the variants of a sweep differ; none where there is no sweep.
        start: policy and reference of ``train`` where it starts at another policy.
        against: task whose rewarded completions are compared with, where these are not those of ``rows``.
        earlier: what the evaluations of the rounds before showed, if there are any.
        about: tells the tasks of one round from those of another.
    """
    loop = VariantLoop(inputs, swept)
    models = {"policy": inputs["policy"], "reference": reference}
    if order == "before":
        made = _scored(inputs, rows, models, about)
        chosen = _chosen(inputs, made, {**selection, **loop.own("select")}, about)
    else:
        made = _chosen(inputs, rows, {**selection, **inputs.cut(logprobs)}, about)
        chosen = _scored(inputs, made, models, about)
    mixed = inputs.placement(
        mix,
        about,
        selection=chosen.outputs["dataset"],
        validation_fraction=inputs["validation_fraction"],
        seed=inputs["seed"],
        work=inputs["work"],
        **loop.own("mix"),
        **inputs.of("mix"),
    )
    trained = inputs.placement(
        train,
        about,
        training=mixed.outputs["dataset"],
        seed=inputs["seed"],
        work=inputs["work"],
        **(start or models),
        **loop.own("train"),
        **inputs.of("train"),
    )
    own = {**comparison, **loop.own("evaluate"), **({"rounds": earlier} if earlier else {})}
    compared = compare(inputs, against or rows, trained, own, about)
    loop.end(compared)
    return compared


def compare(
    inputs: PipelineInputs, rows: PipelineTask, trained: PipelineTask, comparison: Arguments, about: str = ""
) -> PipelineTask:
    """Compare the policy of ``trained`` with what it was, on held-out prompts of ``rows``."""
    return inputs.placement(
        evaluate,
        about,
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


def _chosen(inputs: PipelineInputs, made: PipelineTask, further: Arguments, about: str) -> PipelineTask:
    own = {"work": inputs["work"], **inputs.of("select"), **further}
    return inputs.placement(select, about, rewarded=made.outputs["dataset"], seed=inputs["seed"], **own)


def _scored(inputs: PipelineInputs, made: PipelineTask, models: Arguments, about: str) -> PipelineTask:
    # In the numbers of training, which then starts at log-ratios of exactly 0.
    own = {**inputs.of("logprobs"), "train_options": inputs["train_options"]}
    return fan_out(inputs.placement, logprobs, made, about=about, **models, **own)
