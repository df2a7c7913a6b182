"""What both recipes end with: choose, score, mix, train, compare.

select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate
"""

from __future__ import annotations

from collections.abc import Mapping

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.evaluate.component import evaluate
from kubealign_components.logprobs.component import logprobs
from kubealign_components.mix.component import mix
from kubealign_components.select.component import select
from kubealign_components.train.component import train
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.resources import Placement

OFFLINE_STAGES = ("select", "logprobs", "mix", "train", "evaluate")
"""In their order."""
Arguments = Mapping[str, PipelineChannel]
"""Of a component, by name."""


def align_offline(
    place: Placement,
    rows: PipelineTask,
    cut: Mapping[str, PipelineChannel],
    *,
    order: str,
    policy: PipelineChannel,
    reference: PipelineChannel,
    seed: PipelineChannel,
    validation_fraction: PipelineChannel,
    select_by: Arguments,
    logprobs_by: Arguments,
    mix_by: Arguments,
    train_by: Arguments,
    evaluate_by: Arguments,
) -> None:
    """Train on completions of ``rows`` and compare the aligned policy with what it was.

    Args:
        place: makes tasks.
        rows: task that made rewarded completions, or others where nothing is rewarded. It has planned
            a fan-out if log-probabilities are computed before selection.
        cut: how the fan-out of ``logprobs`` is planned.
        order: whether log-probabilities are computed "before" or "after" selection.
        policy: of all stages.
        reference: of ``logprobs`` and ``train``; empty where it is the policy.
        seed: of all stages.
        validation_fraction: share of prompts that ``mix`` holds out and ``evaluate`` compares on.
        select_by: further arguments of ``select``.
        logprobs_by: of ``logprobs``.
        mix_by: of ``mix``.
        train_by: of ``train``.
        evaluate_by: of ``evaluate``.
    """

    def choose(made: PipelineTask, cut: Mapping[str, PipelineChannel]) -> PipelineTask:
        return place(select, rewarded=made.outputs["dataset"], seed=seed, **select_by, **cut)

    # Training then starts at log-ratios of exactly 0.
    numbers = {"train_options": train_by["options"]}

    def score(made: PipelineTask) -> PipelineTask:
        own = {"policy": policy, "reference": reference, **logprobs_by}
        return fan_out(place, logprobs, made, **numbers, **own)

    selection = choose(score(rows), {}) if order == "before" else score(choose(rows, cut))
    selected = selection.outputs["dataset"]
    mixed = place(mix, selection=selected, validation_fraction=validation_fraction, seed=seed, **mix_by)
    trained = place(
        train,
        training=mixed.outputs["dataset"],
        policy=policy,
        reference=reference,
        seed=seed,
        work=cut["work"],
        **train_by,
    )
    place(
        evaluate,
        rewarded=rows.outputs["dataset"],
        model=trained.outputs["model"],
        policy=policy,
        validation_fraction=validation_fraction,
        split_seed=seed,
        **evaluate_by,
    )
