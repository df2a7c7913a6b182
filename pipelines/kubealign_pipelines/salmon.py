"""SALMON: preferences judged by principles, a reward model that follows them, and alignment under it.

    clean_prompts ─ filter ─ sample ×chunks ─ merge ─ judge ×chunks ─ merge ─ aggregate
    clean_pmp ─ train_reward_model ─ train_reward_model (on what aggregate made)
    rl_prompts ─ filter ─ train_ppo ─ evaluate

With ``rl: offline`` the third line is that of offline alignment, under the same reward model:

    rl_prompts ─ filter ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge
               ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

With ``benchmark_tasks`` the aligned policy and what it was are measured on tasks of lm-eval, too, beside
``evaluate``.
"""

# ruff: noqa: B006 (KFP reads defaults from the signature and never changes them)
# No postponed annotations here either: KFP reads them as they stand.
from collections.abc import Mapping

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.aggregate.component import aggregate
from kubealign_components.clean_pmp.component import clean_pmp
from kubealign_components.clean_prompts.component import clean_prompts
from kubealign_components.filter.component import filter
from kubealign_components.judge.component import judge
from kubealign_components.logprobs.component import logprobs
from kubealign_components.rewards.component import rewards
from kubealign_components.rl_prompts.component import rl_prompts
from kubealign_components.sample.component import sample
from kubealign_components.train_ppo.component import train_ppo
from kubealign_components.train_reward_model.component import train_reward_model
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.offline_tail import (
    BENCHMARK_TASKS,
    OFFLINE_STAGES,
    align_offline,
    compare,
    measure_on_benchmarks,
)
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.resources import CompileSettings, Placement
from kubealign_pipelines.rules import LOGPROBS_ORDER, Choice, Rules

RL = Choice(
    name="rl",
    values=("ppo", "offline"),
    meaning="Whether the policy is aligned by PPO, or offline on the best and worst of several samples.",
)
RL_PROMPTS = "RL prompts"
"""What is filtered and sampled a second time."""
SAMPLING: dict[str, object] = {"temperature": 0.7, "max_new_tokens": 768}
"""How the policy answers, unless options say otherwise."""
RULES = Rules(
    choices=(RL, LOGPROBS_ORDER),
    deciding={BENCHMARK_TASKS: lambda given: True if given else None},
    options={
        **{stage: stage for stage in ("clean_prompts", "filter", "sample", "judge", "aggregate")},
        "pmp": "clean_pmp",
        "reward_model": "train_reward_model",
        "rl_prompts": "rl_prompts",
        "ppo": "train_ppo",
        **{stage: stage for stage in ("rewards", *OFFLINE_STAGES, "benchmark")},
    },
)


def salmon(settings: CompileSettings, parameters: Mapping[str, object]) -> GraphComponent:
    """The pipeline with ``settings`` compiled in, and the stages that ``parameters`` ask for."""
    placement = Placement(settings)
    chosen = RULES.choose(parameters)

    # The Kubeflow UI sorts its form by name: parameters start with their stage's name to stand together.
    @dsl.pipeline(name="salmon")
    def pipeline(
        sources: list[dict[str, object]],
        policy: str,
        pmp_sources: list[dict[str, object]],
        rl_sources: list[dict[str, object]] = [],
        principles: str = "judging",
        rl_principles: str = "rl",
        seed: int = 0,
        validation_fraction: float = 0.05,
        work: str = "",
        work_rows_per_chunk: int = 4096,
        clean_prompts_options: dict[str, object] = {},
        filter_options: dict[str, object] = {},
        sample_n: int = 10,
        sample_options: dict[str, object] = {},
        judge_options: dict[str, object] = {},
        aggregate_options: dict[str, object] = {},
        pmp_learning_rate: float = 5e-5,
        pmp_max_steps: int = 0,
        pmp_options: dict[str, object] = {},
        reward_model_learning_rate: float = 3e-5,
        reward_model_max_steps: int = 0,
        reward_model_options: dict[str, object] = {},
        rl_prompts_options: dict[str, object] = {},
        ppo_learning_rate: float = 2e-5,
        ppo_kl_coef: float = 0.01,
        ppo_options: dict[str, object] = {},
        rewards_options: dict[str, object] = {},
        select_options: dict[str, object] = {},
        logprobs_options: dict[str, object] = {},
        mix_options: dict[str, object] = {},
        train_objective: str = "dpo",
        train_beta: float = 0.1,
        train_learning_rate: float = 5e-7,
        train_options: dict[str, object] = {},
        evaluate_options: dict[str, object] = {},
        benchmark_tasks: list[object] = [],
        benchmark_options: dict[str, object] = {},
    ) -> None:
        """Align a chat model by principles, without labels of its own outputs.

        Required are policy, sources and pmp_sources. To paste, for a first run on GPUs:

            policy: meta-llama/Llama-3.1-8B-Instruct
            sources: [{"uri": "OpenAssistant/oasst1"}]
            pmp_sources: [{"uri": "stanfordnlp/SHP"}]
            ppo_options: {"engine": "vllm"}

        What has no box of its own goes by name into the options of its stage.

        Args:
            sources: Message trees, whose opening prompts are answered and judged. Each is a mapping with
                uri (path, gs://, s3:// or hub id) and, where needed, name, split, revision.
            policy: Model directory, URI or hub id of the policy, which also judges and carries the reward
                model.
            pmp_sources: Human preferences for the reward model's pre-training, as mappings with uri and,
                where needed, name, format and max_rows.
            rl_sources: Prompts for reinforcement learning beside those of sources, as mappings with uri and
                kind (dolly, sharegpt, openorca, math or any).
            principles: Set of principles to judge and to train the reward model by, shipped or a file.
            rl_principles: Set of principles that are drawn for rollouts of PPO, shipped or a file.
            seed: Seed of the run.
            validation_fraction: Share of the prompts, by hash, that is held out for evaluation.
            work: URI of the work prefix. Runs that share it reuse each other's finished rows.
            work_rows_per_chunk: Most prompts of a GPU, while no more pods are needed than run at once.
            clean_prompts_options: Settings of clean_prompts by name, such as languages and max_rows.
            filter_options: Settings of filter by name, such as max_prompt_len.
            sample_n: Completions sampled of each prompt that is aligned on offline; the judge compares two.
            sample_options: Settings of sample by name; those of the engine, such as engine, temperature and
                max_new_tokens, under sampling. The evaluation samples by them, too.
            judge_options: Settings of judge by name.
            aggregate_options: Settings of aggregate by name, such as passes and min_consistency.
            pmp_learning_rate: Peak learning rate of the reward model's pre-training.
            pmp_max_steps: Optimiser steps of pre-training; 0 for one pass.
            pmp_options: Settings of clean_pmp by name, such as max_rows.
            reward_model_learning_rate: Peak learning rate of principle-driven training.
            reward_model_max_steps: Optimiser steps of principle-driven training; 0 for one pass.
            reward_model_options: Settings of train_reward_model by name, such as batch_size and adapter, for
                both of its runs.
            rl_prompts_options: Settings of rl_prompts by name, such as max_rows and max_tokens.
            ppo_learning_rate: Peak learning rate of PPO.
            ppo_kl_coef: Weight of PPO's KL penalty.
            ppo_options: Further settings of train_ppo by name, such as rollout_batch, epochs and max_steps.
            rewards_options: Settings of rewards by name; those of the reward, such as principles, under
                reward. They hold for the evaluation, too.
            select_options: Settings of select by name.
            logprobs_options: Settings of logprobs by name.
            mix_options: Settings of mix by name.
            train_objective: dpo, dpo_norm, qrpo, ipo, simpo or rebel.
            train_beta: Pull to the reference policy.
            train_learning_rate: Peak learning rate of train.
            train_options: Further settings of train by name, such as adapter and batch_size.
            evaluate_options: Settings of evaluate by name, such as min_gain; how the policy as it was
                compares both sides, such as principles and token_budget, under judge.
            benchmark_tasks: Names of tasks of lm-eval, such as arc_easy, that the policy is measured on
                before and after; none leaves the stage out of the pipeline when it is compiled.
            benchmark_options: Further settings of benchmark by name, such as limit, num_fewshot, max_drop
                and task_folder.
        """
        placement.check_first("salmon", RULES.shape(parameters), locals())
        benchmarked = bool(parameters.get(BENCHMARK_TASKS))
        _stages(PipelineInputs.of_function(placement, locals()), chosen, benchmarked=benchmarked)

    return pipeline


def _stages(inputs: PipelineInputs, chosen: Mapping[str, str], *, benchmarked: bool) -> None:
    cleaned = inputs.placement(
        clean_prompts,
        sources=inputs["sources"],
        seed=inputs["seed"],
        work=inputs["work"],
        **inputs.of("clean_prompts"),
    )
    reward_model = _reward_model(inputs, _preferences(inputs, cleaned))
    gathered = inputs.placement(
        rl_prompts,
        policy=inputs["policy"],
        prompts=cleaned.outputs["dataset"],
        sources=inputs["rl_sources"],
        seed=inputs["seed"],
        work=inputs["work"],
        **inputs.of("rl_prompts"),
    )
    if chosen[RL.name] == "offline":
        order = chosen[LOGPROBS_ORDER.name]
        compared = _offline(inputs, gathered, reward_model, order, benchmarked=benchmarked)
    else:
        compared = _ppo(inputs, gathered, reward_model, benchmarked=benchmarked)
    inputs.placement.register_model(compared.outputs["dataset"])


def _preferences(inputs: PipelineInputs, cleaned: PipelineTask) -> PipelineTask:
    """Pairs of the policy's own answers, as the policy judges them by principles."""
    pairs = _sampled(inputs, _tokenised(inputs, cleaned, inputs.cut(sample)), inputs.cut(judge), n=2)
    judged = fan_out(
        inputs.placement,
        judge,
        pairs,
        judge=inputs["policy"],
        principles=inputs["principles"],
        **inputs.of("judge"),
    )
    return inputs.placement(
        aggregate,
        judged=judged.outputs["dataset"],
        principles=inputs["principles"],
        seed=inputs["seed"],
        work=inputs["work"],
        **inputs.of("aggregate"),
    )


def _reward_model(inputs: PipelineInputs, preferences: PipelineTask) -> PipelineTask:
    """Trained on people's preferences, and from there on ``preferences``."""
    shared = {name: inputs[name] for name in ("policy", "principles", "seed", "work")}
    pmp, own = inputs.of("pmp"), inputs.of("reward_model")
    sources = {"sources": inputs["pmp_sources"], "options": pmp["options"]}
    human = inputs.placement(clean_pmp, seed=inputs["seed"], work=inputs["work"], **sources)
    pretrained = inputs.placement(
        train_reward_model,
        "PMP",
        preferences=human.outputs["dataset"],
        learning_rate=pmp["learning_rate"],
        max_steps=pmp["max_steps"],
        options=own["options"],
        **shared,
    )
    return inputs.placement(
        train_reward_model,
        preferences=preferences.outputs["dataset"],
        start=pretrained.outputs["model"],
        **own,
        **shared,
    )


def _ppo(
    inputs: PipelineInputs, gathered: PipelineTask, reward_model: PipelineTask, *, benchmarked: bool
) -> PipelineTask:
    questions = _tokenised(inputs, gathered, {}, RL_PROMPTS)
    aligned = inputs.placement(
        train_ppo,
        prompts=questions.outputs["dataset"],
        reward_model=reward_model.outputs["model"],
        policy=inputs["policy"],
        principles=inputs["rl_principles"],
        validation_fraction=inputs["validation_fraction"],
        seed=inputs["seed"],
        work=inputs["work"],
        **inputs.of("ppo"),
    )
    if benchmarked:
        measure_on_benchmarks(inputs, model=aligned.outputs["model"])
    return compare(inputs, questions, aligned, _comparison(inputs, reward_model, n=1))


def _offline(
    inputs: PipelineInputs,
    gathered: PipelineTask,
    reward_model: PipelineTask,
    order: str,
    *,
    benchmarked: bool,
) -> PipelineTask:
    questions = _tokenised(inputs, gathered, inputs.cut(sample), RL_PROMPTS)
    answers = _sampled(inputs, questions, inputs.cut(rewards), n=inputs["sample_n"], about=RL_PROMPTS)
    rewarded = fan_out(
        inputs.placement,
        rewards,
        answers,
        cut=inputs.cut(logprobs) if order == "before" else {},
        model=reward_model.outputs["manifest"],
        reward_model=reward_model.outputs["Output"],
        **inputs.of("rewards"),
    )
    comparison = _comparison(inputs, reward_model, n=inputs["sample_n"])
    return align_offline(
        inputs, rewarded, order=order, selection={}, comparison=comparison, benchmarked=benchmarked
    )


def _tokenised(
    inputs: PipelineInputs, prompts: PipelineTask, cut: Arguments, about: str = ""
) -> PipelineTask:
    """``prompts`` as the policy sees them; ``cut`` plans the chunks of a fan-out that follows."""
    own = {"policy": inputs["policy"], "work": inputs["work"], **inputs.of("filter"), **cut}
    return inputs.placement(filter, about, prompts=prompts.outputs["dataset"], **own)


def _sampled(
    inputs: PipelineInputs,
    prompts: PipelineTask,
    cut: Arguments,
    *,
    n: PipelineChannel | int,
    about: str = "",
) -> PipelineTask:
    """``n`` answers of the policy to each of ``prompts``; ``cut`` plans the chunks of the next fan-out."""
    own = {"policy": inputs["policy"], "seed": inputs["seed"], "options": inputs["sample_options"]}
    own |= {"validation_fraction": inputs["validation_fraction"], "split_seed": inputs["seed"]}
    return fan_out(inputs.placement, sample, prompts, about=about, cut=cut, n=n, **SAMPLING, **own)


def _comparison(
    inputs: PipelineInputs, reward_model: PipelineTask, *, n: PipelineChannel | int
) -> dict[str, PipelineChannel]:
    return {
        "n": n,
        **SAMPLING,
        "reward_model": reward_model.outputs["Output"],
        "rewards_options": inputs["rewards_options"],
        "judge": inputs["policy"],
    }
