"""train_reward_model as a KFP component."""

from kfp import dsl

from kubealign_components import images
from kubealign_components.forwarding import forwarded


@dsl.component(base_image=images.TRAIN, install_kfp_package=False, task_config_passthroughs=forwarded())
def train_reward_model(
    preferences: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    manifest: dsl.Output[dsl.Artifact],
    policy: str,
    start: dsl.Input[dsl.Model] = None,
    principles: str = "judging",
    adapter: str = "lora",
    margin: float = 0.0,
    centring: float = 0.0,
    learning_rate: float = 3e-5,
    schedule: str = "cosine",
    epochs: float = 1.0,
    max_steps: int = 0,
    batch_size: int = 64,
    max_length: int = 0,
    micro_batch_tokens: int = 4096,
    strategy: str = "none",
    save_every: int = 0,
    seed: int = 0,
    work: str = "",
    nodes: int = 1,
    train_job: dict = {},
    pod: dsl.TaskConfig = None,
    options: dict = {},
) -> str:
    """Train a reward model on pairs, by principles where the pairs have some; returns its URI.

    Args:
        preferences: pairs with a preferred completion (kubealign.preferences/v1).
        model: Hugging Face directory of the reward model (kubealign.model/v1).
        metrics: pairs in, out and dropped by reason; held-out accuracy, sensitivity, calibration error.
        manifest: what the model is and came from, for tasks that use it by URI.
        report: loss and accuracy by step, calibration, accuracy by principle.
        policy: model directory, URI or hub id of the policy that the head is put on.
        start: reward model of the same policy to train on; a new head without it.
        principles: set that the model's own principles and opposites come from; empty for none.
        adapter: none, lora or qlora.
        margin: factor of the rows' margins in the loss.
        centring: weight of the squared sum of both scores in the loss.
        learning_rate: peak learning rate.
        schedule: linear, cosine or constant.
        epochs: passes over the training split.
        max_steps: optimiser steps instead of epochs; 0 to go by epochs.
        batch_size: pairs of an optimiser step.
        max_length: most tokens of a conversation, longer pairs are dropped; 0 for the policy's own limit.
        micro_batch_tokens: most tokens of one forward pass of one process.
        strategy: none, fsdp2, zero1, zero2 or zero3.
        save_every: steps between checkpoints; 0 for one every ten minutes (option save_minutes).
        seed: seed of the order of pairs and of adapters.
        work: work prefix for checkpoints; a model that was finished there before is taken.
        nodes: machines that train together; more than one start as a TrainJob.
        train_job: settings of the TrainJob, such as queue_timeout and runtime.
        pod: what KFP hands on of this task's pod, which the TrainJob's pods get.
        options: further settings of the stage by name.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import (
        log_stats,
        open_dataset,
        open_model,
        publish_model,
        write_manifest,
        write_page,
    )
    from kubealign_components.config import from_parameters
    from kubealign_components.data.schemas import PREFERENCES
    from kubealign_components.train_reward_model.config import RewardModelConfig
    from kubealign_components.train_reward_model.report import report_page
    from kubealign_components.train_reward_model.stage import run
    from kubealign_components.trainjob.launcher import launcher_for

    config = from_parameters(RewardModelConfig, parameters, "train_reward_model")
    launcher = launcher_for(config.nodes, config.processes, pod, train_job)
    stats = run(
        config,
        preferences=open_dataset(preferences, PREFERENCES),
        start=open_model(start, here=config.nodes == 1) if start is not None else None,
        output=model.uri,
        launcher=launcher,
    )
    publish_model(model, report, manifest)
    write_manifest(manifest, model)
    log_stats(metrics, stats)
    write_page(report, report_page(model.uri))
    return str(model.uri)
