"""train_ppo as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images
from kubealign_components.forwarding import forwarded


@dsl.component(base_image=images.TRAIN, install_kfp_package=False, task_config_passthroughs=forwarded())
def train_ppo(
    prompts: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    policy: str,
    reward_model: dsl.Input[dsl.Model] = None,
    functions: List[Dict] = [],
    principles: str = "rl",
    max_new_tokens: int = 1024,
    rollout_batch: int = 576,
    step_batch: int = 288,
    epochs: float = 2.0,
    max_steps: int = 0,
    learning_rate: float = 2e-5,
    kl_coef: float = 0.01,
    validation_fraction: float = 0.05,
    adapter: str = "lora",
    engine: str = "transformers",
    save_every: int = 0,
    seed: int = 0,
    work: str = "",
    nodes: int = 1,
    train_job: dict = {},
    pod: dsl.TaskConfig = None,
    options: dict = {},
):
    """Align the policy by proximal policy optimisation, under a reward model, functions, or both.

    Args:
        prompts: prompts, tokenised for the policy (kubealign.tokenized/v1).
        model: Hugging Face directory of the aligned policy (kubealign.model/v1).
        metrics: steps, means over the last steps, and the change on held-out prompts.
        report: curves by step, rollouts, and answers to held-out prompts before and after.
        policy: model directory, URI or hub id of the policy; the one that the prompts were tokenised for.
        reward_model: a principle-following reward model with adapter/ (kubealign.model/v1).
        functions: reward functions beside or in place of the reward model, as mappings with function
            (module:function) and, where needed, weight and settings.
        principles: set that principles are drawn from, shipped or a file.
        max_new_tokens: most tokens of a completion.
        rollout_batch: rollouts of a step, over all processes.
        step_batch: rollouts of an optimiser step, over all processes.
        epochs: passes over the prompts.
        max_steps: steps instead of epochs; 0 to go by epochs.
        learning_rate: peak learning rate.
        kl_coef: weight of the KL penalty.
        validation_fraction: share of prompts held out, by hash of the prompt and the seed.
        adapter: lora or qlora.
        engine: transformers or vllm.
        save_every: steps between checkpoints; 0 for one every ten minutes (option save_minutes).
        seed: seed of everything that is drawn.
        work: work prefix for checkpoints; a model that was finished there before is taken.
        nodes: machines that train together; more than one start as a TrainJob.
        train_job: settings of the TrainJob, such as queue_timeout and runtime.
        pod: what KFP hands on of this task's pod, which the TrainJob's pods get.
        options: further settings of the stage by name.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, open_model, publish_model, write_page
    from kubealign_components.config import from_parameters
    from kubealign_components.data.schemas import TOKENIZED
    from kubealign_components.train_ppo.config import PpoConfig
    from kubealign_components.train_ppo.report import report_page
    from kubealign_components.train_ppo.stage import run
    from kubealign_components.trainjob.launcher import launcher_for

    config = from_parameters(PpoConfig, parameters, "train_ppo")
    launcher = launcher_for(config.nodes, config.processes, pod, train_job)
    stats = run(
        config,
        prompts=open_dataset(prompts, TOKENIZED),
        reward_model=open_model(reward_model, here=config.nodes == 1) if reward_model else None,
        output=model.uri,
        launcher=launcher,
    )
    publish_model(model, report)
    log_stats(metrics, stats)
    write_page(report, report_page(model.uri))
