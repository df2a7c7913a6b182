"""SALMON: preferences judged by principles, a reward model that follows them, and alignment under it.

    clean_prompts ─ filter ─ sample ×chunks ─ merge ─ judge ×chunks ─ merge ─ aggregate
    clean_pmp ─ train_reward_model ─ train_reward_model (on what aggregate made)
    rl_prompts ─ filter ─ train_ppo ─ evaluate

With ``rl: offline`` the third line is that of offline alignment, under the same reward model:

    rl_prompts ─ filter ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge
               ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate
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
from kubealign_components.evaluate.component import evaluate
from kubealign_components.filter.component import filter
from kubealign_components.judge.component import judge
from kubealign_components.rewards.component import rewards
from kubealign_components.rl_prompts.component import rl_prompts
from kubealign_components.sample.component import sample
from kubealign_components.train_ppo.component import train_ppo
from kubealign_components.train_reward_model.component import train_reward_model
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.offline_tail import align_offline
from kubealign_pipelines.resources import CompileSettings, Placement
from kubealign_pipelines.rules import LOGPROBS_ORDER, Choice, Rules

RL = Choice(
    name="rl",
    values=("ppo", "offline"),
    meaning="Whether the policy is aligned by PPO, or offline on the best and worst of several samples.",
)
RL_PROMPTS = "RL prompts"
"""What is filtered and sampled a second time."""
RULES = Rules(choices=(RL, LOGPROBS_ORDER))


def salmon(settings: CompileSettings, parameters: Mapping[str, object]) -> GraphComponent:
    """The pipeline with ``settings`` compiled in, and the stages that ``parameters`` ask for."""
    place = Placement(settings)
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
        clean_prompts_languages: list[str] = [],
        clean_prompts_max_rows: int = 0,
        clean_prompts_options: dict[str, object] = {},
        filter_max_seq_len: int = 4096,
        filter_max_prompt_len: int = 2048,
        filter_options: dict[str, object] = {},
        sample_engine: str = "vllm",
        sample_n: int = 10,
        sample_temperature: float = 0.7,
        sample_max_new_tokens: int = 768,
        sample_options: dict[str, object] = {},
        judge_options: dict[str, object] = {},
        aggregate_passes: int = 4,
        aggregate_options: dict[str, object] = {},
        pmp_max_rows: int = 0,
        pmp_learning_rate: float = 5e-5,
        pmp_max_steps: int = 0,
        pmp_options: dict[str, object] = {},
        reward_model_adapter: str = "lora",
        reward_model_learning_rate: float = 3e-5,
        reward_model_max_steps: int = 0,
        reward_model_batch_size: int = 64,
        reward_model_options: dict[str, object] = {},
        rl_prompts_max_tokens: int = 256,
        rl_prompts_max_rows: int = 0,
        rl_prompts_options: dict[str, object] = {},
        ppo_max_new_tokens: int = 1024,
        ppo_rollout_batch: int = 576,
        ppo_step_batch: int = 288,
        ppo_epochs: float = 2.0,
        ppo_max_steps: int = 0,
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
        evaluate_n: int = 1,
        evaluate_max_prompts: int = 256,
        evaluate_judge_options: dict[str, object] = {},
        evaluate_options: dict[str, object] = {},
    ) -> None:
        """Align a chat model by principles, without labels of its own outputs.

        Required are policy, sources and pmp_sources, for example: policy meta-llama/Llama-3.1-8B-Instruct,
        sources [{"uri": "OpenAssistant/oasst1"}], pmp_sources [{"uri": "stanfordnlp/SHP"}]. What has no
        box of its own goes by name into the options of its stage, as ppo_options {"engine": "vllm"}.

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
            work_rows_per_chunk: Most prompts of a pod, while no more pods are needed than run at once.
            clean_prompts_languages: Languages to keep, such as en; all when empty.
            clean_prompts_max_rows: Most prompts to judge answers to, a seeded sample; 0 for all.
            clean_prompts_options: Further settings of clean_prompts by name.
            filter_max_seq_len: Most tokens of prompt and completion together.
            filter_max_prompt_len: Most tokens of a prompt.
            filter_options: Further settings of filter by name, such as chat_template_kwargs.
            sample_engine: vllm, transformers, or fake to try a pipeline out.
            sample_n: Completions sampled of each prompt that is aligned on offline; the judge compares two.
            sample_temperature: Sampling temperature.
            sample_max_new_tokens: Most tokens of a completion that is judged.
            sample_options: Further settings of sample by name; those of the engine under sampling.
            judge_options: Further settings of judge by name.
            aggregate_passes: How often principles are drawn for each judged pair.
            aggregate_options: Further settings of aggregate by name, such as min_consistency.
            pmp_max_rows: Most pairs of pre-training, a seeded sample; 0 for all.
            pmp_learning_rate: Peak learning rate of the reward model's pre-training.
            pmp_max_steps: Optimiser steps of pre-training; 0 for one pass.
            pmp_options: Further settings of clean_pmp by name.
            reward_model_adapter: lora or qlora; none trains all weights, which PPO cannot use.
            reward_model_learning_rate: Peak learning rate of principle-driven training.
            reward_model_max_steps: Optimiser steps of principle-driven training; 0 for one pass.
            reward_model_batch_size: Pairs of an optimiser step.
            reward_model_options: Further settings of train_reward_model by name, for both of its runs.
            rl_prompts_max_tokens: Most tokens of a prompt for reinforcement learning.
            rl_prompts_max_rows: Most prompts for reinforcement learning, a seeded sample; 0 for all.
            rl_prompts_options: Further settings of rl_prompts by name.
            ppo_max_new_tokens: Most tokens of a completion of a rollout.
            ppo_rollout_batch: Rollouts of a PPO step.
            ppo_step_batch: Rollouts of an optimiser step.
            ppo_epochs: Passes of PPO over the prompts.
            ppo_max_steps: PPO steps instead of epochs; 0 to go by epochs.
            ppo_learning_rate: Peak learning rate of PPO.
            ppo_kl_coef: Weight of PPO's KL penalty.
            ppo_options: Further settings of train_ppo by name.
            rewards_options: Further settings of rewards by name; those of the reward, such as principles,
                under reward. They hold for the evaluation, too.
            select_options: Settings of select by name.
            logprobs_options: Settings of logprobs by name.
            mix_options: Settings of mix by name.
            train_objective: dpo, dpo_norm, qrpo, ipo, simpo or rebel.
            train_beta: Pull to the reference policy.
            train_learning_rate: Peak learning rate of train.
            train_options: Further settings of train by name, such as adapter and batch_size.
            evaluate_n: Completions of each held-out prompt in the evaluation after PPO.
            evaluate_max_prompts: Most held-out prompts that are compared.
            evaluate_judge_options: How the policy as it was compares both sides, by name, such as principles,
                principle_names and token_budget.
            evaluate_options: Further settings of evaluate by name, such as min_gain.
        """
        place.check_first("salmon", RULES.shape(parameters), locals())
        cut: dict[str, PipelineChannel] = {
            "work": work,
            "rows_per_chunk": work_rows_per_chunk,
            "max_chunks": settings.chunks,
        }
        sampling = {
            "engine": sample_engine,
            "temperature": sample_temperature,
            "max_new_tokens": sample_max_new_tokens,
            "seed": seed,
        }
        lengths = {"max_seq_len": filter_max_seq_len, "max_prompt_len": filter_max_prompt_len}

        def tokenised(prompts: PipelineTask, about: str = "", **cut: PipelineChannel) -> PipelineTask:
            return place(
                filter, about, prompts=prompts, policy=policy, **lengths, **cut, options=filter_options
            )

        def sampled(prompts: PipelineTask, n: PipelineChannel | int, about: str = "") -> PipelineTask:
            options = {"policy": policy, "n": n, **sampling, "options": sample_options}
            return fan_out(place, sample, prompts, about=about, cut=cut, **options)

        def reward_model(about: str, **arguments: PipelineChannel) -> PipelineTask:
            return place(
                train_reward_model,
                about,
                policy=policy,
                principles=principles,
                adapter=reward_model_adapter,
                batch_size=reward_model_batch_size,
                seed=seed,
                work=work,
                options=reward_model_options,
                **arguments,
            )

        cleaned = place(
            clean_prompts,
            sources=sources,
            languages=clean_prompts_languages,
            max_rows=clean_prompts_max_rows,
            seed=seed,
            options=clean_prompts_options,
        ).outputs["dataset"]
        human = place(clean_pmp, sources=pmp_sources, max_rows=pmp_max_rows, seed=seed, options=pmp_options)
        pretrained = reward_model(
            "PMP",
            preferences=human.outputs["dataset"],
            learning_rate=pmp_learning_rate,
            max_steps=pmp_max_steps,
        )
        pairs = sampled(tokenised(cleaned, **cut), 2)
        by_principles: dict[str, PipelineChannel] = {
            "judge": policy,
            "principles": principles,
            "options": judge_options,
        }
        preferences = place(
            aggregate,
            judged=fan_out(place, judge, pairs, **by_principles).outputs["dataset"],
            principles=principles,
            passes=aggregate_passes,
            seed=seed,
            options=aggregate_options,
        )
        preference_model = reward_model(
            "",
            preferences=preferences.outputs["dataset"],
            start=pretrained.outputs["model"],
            learning_rate=reward_model_learning_rate,
            max_steps=reward_model_max_steps,
        )
        gathered = place(
            rl_prompts,
            policy=policy,
            prompts=cleaned,
            sources=rl_sources,
            max_tokens=rl_prompts_max_tokens,
            max_rows=rl_prompts_max_rows,
            seed=seed,
            options=rl_prompts_options,
        )
        offline, order = chosen[RL.name] == "offline", chosen[LOGPROBS_ORDER.name]
        questions = tokenised(gathered.outputs["dataset"], RL_PROMPTS, **(cut if offline else {}))

        reward = preference_model.outputs["Output"]
        comparison = {
            **sampling,
            "sample_options": sample_options,
            "reward_model": reward,
            "rewards_options": rewards_options,
            "max_prompts": evaluate_max_prompts,
            "judge": policy,
            "judge_options": evaluate_judge_options,
            "options": evaluate_options,
        }
        if offline:
            answers = sampled(questions, sample_n, RL_PROMPTS)
            rewarding = {"reward_model": reward, "options": rewards_options}
            again = cut if order == "before" else {}
            named = preference_model.outputs["manifest"]
            align_offline(
                place,
                fan_out(place, rewards, answers, cut=again, model=named, **rewarding),
                cut,
                order=order,
                policy=policy,
                reference="",
                seed=seed,
                validation_fraction=validation_fraction,
                select_by={"options": select_options},
                logprobs_by={"options": logprobs_options},
                mix_by={"options": mix_options},
                train_by={
                    "objective": train_objective,
                    "beta": train_beta,
                    "learning_rate": train_learning_rate,
                    "options": train_options,
                },
                evaluate_by={"n": sample_n, **comparison},
            )
            return
        aligned = place(
            train_ppo,
            prompts=questions.outputs["dataset"],
            reward_model=preference_model.outputs["model"],
            policy=policy,
            principles=rl_principles,
            max_new_tokens=ppo_max_new_tokens,
            rollout_batch=ppo_rollout_batch,
            step_batch=ppo_step_batch,
            epochs=ppo_epochs,
            max_steps=ppo_max_steps,
            learning_rate=ppo_learning_rate,
            kl_coef=ppo_kl_coef,
            validation_fraction=validation_fraction,
            seed=seed,
            work=work,
            options=ppo_options,
        )
        place(
            evaluate,
            rewarded=questions.outputs["dataset"],
            model=aligned.outputs["model"],
            policy=policy,
            n=evaluate_n,
            validation_fraction=validation_fraction,
            split_seed=seed,
            **comparison,
        )

    return pipeline
