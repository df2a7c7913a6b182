"""Offline alignment: sample from the policy, reward, choose, score, train, compare.

    import ─ filter ─ split ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge
           ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

``logprobs`` stands before or after ``select``, as the parameter ``logprobs_order`` says: after it
scores only what is trained on, before it lets one try selections without scoring again.
"""

# ruff: noqa: B006 (KFP reads defaults from the signature and never changes them)
# No postponed annotations here either: KFP reads them as they stand.
from typing import Any

from kfp import dsl

from kubealign_components.evaluate.component import evaluate
from kubealign_components.filter.component import filter
from kubealign_components.import_prompts.component import import_prompts
from kubealign_components.logprobs.component import logprobs
from kubealign_components.mix.component import mix
from kubealign_components.rewards.component import rewards
from kubealign_components.sample.component import sample
from kubealign_components.select.component import select
from kubealign_components.train.component import train
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.resources import CompileSettings, Placement
from kubealign_pipelines.rules import Rules

RULES = Rules(choices={"logprobs_order": ("after", "before")}, one_of=(("reward_functions", "reward_model"),))


def offline_alignment(settings: CompileSettings) -> Any:
    """The pipeline with ``settings`` compiled in."""
    place = Placement(settings)

    # The Kubeflow UI sorts its form by name: parameters start with their stage's name to stand together.
    @dsl.pipeline(name="offline-alignment")
    def pipeline(
        sources: list[dict[str, Any]],
        policy: str,
        reward_functions: list[Any] = [],
        reward_model: str = "",
        seed: int = 0,
        validation_fraction: float = 0.05,
        work: str = "",
        work_rows_per_chunk: int = 4096,
        import_options: dict[str, Any] = {},
        filter_max_seq_len: int = 4096,
        filter_max_prompt_len: int = 2048,
        filter_min_completions: int = 0,
        filter_options: dict[str, Any] = {},
        sample_engine: str = "vllm",
        sample_n: int = 10,
        sample_temperature: float = 1.0,
        sample_max_new_tokens: int = 1024,
        sample_truncated: str = "keep",
        sample_options: dict[str, Any] = {},
        rewards_options: dict[str, Any] = {},
        select_strategy: str = "best_worst",
        select_pairs_per_prompt: int = 1,
        select_pool: str = "reference",
        select_options: dict[str, Any] = {},
        logprobs_order: str = "after",
        logprobs_source: str = "scorer",
        logprobs_options: dict[str, Any] = {},
        mix_training_uris: list[str] = [],
        mix_options: dict[str, Any] = {},
        train_objective: str = "dpo",
        train_beta: float = 0.1,
        train_learning_rate: float = 5e-7,
        train_epochs: float = 1.0,
        train_adapter: str = "none",
        train_options: dict[str, Any] = {},
        evaluate_max_prompts: int = 256,
        evaluate_options: dict[str, Any] = {},
    ) -> None:
        """Align a chat model on its own rewarded samples, offline.

        Args:
            sources: Prompt datasets. Each is a mapping with uri (path, gs://, s3:// or hub id) and, where
                needed, name, weight, split, revision and format.
            policy: Model directory, URI or hub id of the policy to align.
            reward_functions: Python reward functions as module:function, or mappings with function, weight
                and settings.
            reward_model: Model directory, URI or hub id of a reward model; empty for none.
            seed: Seed of the run.
            validation_fraction: Share of the prompts, by hash, that is held out for evaluation.
            work: URI of the work prefix. Runs that share it reuse each other's finished rows.
            work_rows_per_chunk: Most prompts that one pod works on; a fan-out has at most 100 chunks.
            import_options: Further settings of import_prompts by name.
            filter_max_seq_len: Most tokens of prompt and completion together.
            filter_max_prompt_len: Most tokens of a prompt.
            filter_min_completions: Fewest offline completions a prompt must keep; 0 to sample from prompts
                alone.
            filter_options: Further settings of filter by name.
            sample_engine: vllm, transformers, or fake to try a pipeline out.
            sample_n: Completions sampled of each prompt.
            sample_temperature: Sampling temperature; 1 samples from the policy itself.
            sample_max_new_tokens: Most tokens of a completion.
            sample_truncated: What becomes of completions cut at sample_max_new_tokens, keep or drop.
            sample_options: Further settings of sample by name; those of the engine, such as top_p, stop and
                tensor_parallel_size, under sampling.
            rewards_options: Further settings of rewards by name; those of the reward, such as model_weight
                and over_length, under reward.
            select_strategy: best_worst, best_random, random_pairs, quantile_bands, top_bottom_k, or all
                for pointwise objectives.
            select_pairs_per_prompt: Most pairs of a prompt.
            select_pool: Which completions may be selected, reference, offline or both.
            select_options: Further settings of select by name.
            logprobs_order: Whether reference log-probabilities are computed after or before selection.
            logprobs_source: scorer computes all of them; sampler keeps those of the policy's own samples.
            logprobs_options: Further settings of logprobs by name.
            mix_training_uris: Training datasets of earlier runs to mix in.
            mix_options: Further settings of mix by name, such as weights and caps of sources.
            train_objective: dpo, dpo_norm, qrpo, ipo, simpo or rebel.
            train_beta: Pull to the reference policy; its scale depends on the objective.
            train_learning_rate: Peak learning rate.
            train_epochs: Passes over the training examples.
            train_adapter: none trains all weights; lora or qlora trains adapters.
            train_options: Further settings of train by name, such as batch_size, strategy, dtype.
            evaluate_max_prompts: Most held-out prompts that are compared.
            evaluate_options: Further settings of evaluate by name, such as min_gain.
        """
        cut = {"work": work, "rows_per_chunk": work_rows_per_chunk}
        sampling = {
            "engine": sample_engine,
            "n": sample_n,
            "temperature": sample_temperature,
            "max_new_tokens": sample_max_new_tokens,
            "seed": seed,
        }
        reward = {"reward_functions": reward_functions, "reward_model": reward_model}

        imported = place(import_prompts(sources=sources, options=import_options), "import_prompts")
        filtered = place(
            filter(
                prompts=imported.outputs["dataset"],
                policy=policy,
                max_seq_len=filter_max_seq_len,
                max_prompt_len=filter_max_prompt_len,
                min_completions=filter_min_completions,
                options=filter_options,
            ),
            "filter",
        )
        sampled = fan_out(
            place,
            "sample",
            sample,
            filtered.outputs["dataset"],
            cut,
            policy=policy,
            **sampling,
            truncated=sample_truncated,
            options=sample_options,
        )
        rewarded = fan_out(place, "rewards", rewards, sampled, cut, **reward, options=rewards_options)

        def choose(dataset: Any) -> Any:
            chosen = select(
                rewarded=dataset,
                strategy=select_strategy,
                pairs_per_prompt=select_pairs_per_prompt,
                pool=select_pool,
                seed=seed,
                options=select_options,
            )
            return place(chosen, "select").outputs["dataset"]

        def score(dataset: Any) -> Any:
            return fan_out(
                place,
                "logprobs",
                logprobs,
                dataset,
                cut,
                policy=policy,
                source=logprobs_source,
                options=logprobs_options,
            )

        def align(selection: Any) -> None:
            mixed = mix(
                selection=selection,
                training_uris=mix_training_uris,
                validation_fraction=validation_fraction,
                seed=seed,
                options=mix_options,
            )
            trained = train(
                training=place(mixed, "mix").outputs["dataset"],
                policy=policy,
                objective=train_objective,
                beta=train_beta,
                learning_rate=train_learning_rate,
                epochs=train_epochs,
                adapter=train_adapter,
                seed=seed,
                work=work,
                options=train_options,
                **place.nodes("train"),
            )
            compared = evaluate(
                rewarded=rewarded,
                model=place(trained, "train").outputs["model"],
                policy=policy,
                **sampling,
                sample_options=sample_options,
                **reward,
                rewards_options=rewards_options,
                validation_fraction=validation_fraction,
                split_seed=seed,
                max_prompts=evaluate_max_prompts,
                options=evaluate_options,
            )
            place(compared, "evaluate")

        # KFP's local runner cannot pass on one of two branches' artifacts: each branch runs to the end.
        with dsl.If(logprobs_order == "before", "log-probabilities before selection"):
            align(choose(score(rewarded)))
        with dsl.Else("log-probabilities after selection"):
            align(score(choose(rewarded)))

    return pipeline
