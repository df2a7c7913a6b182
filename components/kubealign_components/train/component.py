"""train as a KFP component."""

from kfp import dsl

from kubealign_components import images
from kubealign_components.forwarding import forwarded


@dsl.component(base_image=images.TRAIN, install_kfp_package=False, task_config_passthroughs=forwarded())
def train(
    training: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.HTML],
    policy: str,
    reference: str = "",
    objective: str = "dpo",
    beta: float = 0.1,
    transform: str = "identity",
    length_normalise: bool = False,
    learning_rate: float = 5e-7,
    schedule: str = "linear",
    epochs: float = 1.0,
    max_steps: int = 0,
    stop_after: float = 1.0,
    batch_size: int = 32,
    micro_batch_tokens: int = 4096,
    adapter: str = "none",
    strategy: str = "none",
    save_every: int = 0,
    seed: int = 0,
    work: str = "",
    nodes: int = 1,
    train_job: dict = {},
    pod: dsl.TaskConfig = None,
    options: dict = {},
    variant: dict = {},
    sweep: bool = False,
):
    """Align the policy on a training dataset, with no reference model in memory.

    Args:
        training: training examples (kubealign.training/v1).
        model: Hugging Face directory of the aligned policy (kubealign.model/v1).
        metrics: steps and examples, and the means over the last steps.
        curves: loss, reward margin, calibration, KL estimate, gradient norm and throughput by step.
        policy: model directory, URI or hub id of the policy; the one that the dataset was made with.
        reference: model that the dataset's log-probabilities are of, where it is not the policy.
        objective: dpo, dpo_norm, ipo, simpo, rebel, qrpo or kto.
        beta: pull to the reference; its scale depends on the objective.
        transform: qrpo's transform, identity, log, sqrt, square or normal_icdf.
        length_normalise: qrpo with beta per token.
        learning_rate: peak learning rate.
        schedule: linear, cosine or constant.
        epochs: passes over the training split.
        max_steps: optimiser steps instead of epochs; 0 to go by epochs.
        stop_after: share of the planned steps after which training stops, to go on later; 1 for all.
        batch_size: examples of an optimiser step.
        micro_batch_tokens: most tokens of one forward pass of one process.
        adapter: none, lora or qlora.
        strategy: none, fsdp2, zero1, zero2 or zero3.
        save_every: steps between checkpoints; 0 for one every ten minutes (option save_minutes).
        seed: seed of the example order.
        work: work prefix for checkpoints; a model that was finished there before is taken.
        nodes: machines that train together; more than one start as a TrainJob.
        train_job: settings of the TrainJob, such as queue_timeout and runtime.
        pod: what KFP hands on of this task's pod, which the TrainJob's pods get.
        options: further settings of the stage by name.
        variant: what one variant of a sweep has of its own: by stage, options that count before all else.
        sweep: whether it is a variant of a sweep, which goes on without one that diverges or has no examples.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish_model, write_page
    from kubealign_components.data.schemas import TRAINING
    from kubealign_components.train.config import TrainConfig
    from kubealign_components.train.stage import run
    from kubealign_components.training.curves import curves_page
    from kubealign_components.trainjob.launcher import launcher_for
    from kubealign_components.variant import from_variant

    config = from_variant(TrainConfig, parameters, "train")
    launcher = launcher_for(config.nodes, config.processes, pod, train_job)
    examples = open_dataset(training, TRAINING, allow_empty=sweep)
    stats = run(config, training=examples, output=model.uri, launcher=launcher, sweep=sweep)
    publish_model(model, curves)
    log_stats(metrics, stats)
    write_page(curves, curves_page(model.uri))
