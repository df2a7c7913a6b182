"""Offline alignment: sample from the policy, reward, choose, score, train, compare.

    import ─ filter ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge
           ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

``logprobs`` stands before or after ``select``, as ``logprobs_order`` says: after it scores only what is
trained on, before it lets one try selections without scoring again. With ``sample_n: 0`` nothing is sampled,
and where people's labels are selected and no reward is given, nothing is rewarded:

    import ─ filter ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

With ``rank_judge`` a judge compares a prompt's completions two at a time in place of ``rewards``, and both
policies in the end:

    import ─ filter ─ sample ×chunks ─ merge ─ rank ×chunks ─ merge ─ select ─ …

With ``variants`` it is a sweep: what stands before the first stage in which these differ is done once, the
rest for each of them, and then one is chosen:

    … rewards ×chunks ─ merge ─ logprobs ×chunks ─ merge
           ─ (select ─ mix ─ train ─ evaluate) ×variants ─ choose

With ``halving`` they are trained a part of the way first, and the best of them further (``halving.py``).

With ``benchmark_tasks`` both policies are measured on tasks of lm-eval, too:

    … mix ─ train ─┬─ evaluate
                   └─ benchmark

in a sweep the chosen one:

    … (… train ─ evaluate) ×variants ─ choose ─ benchmark

With a range for ``sample_n`` more completions are drawn of those prompts whose best and worst are not
settled (``draws.py``). With ``rounds`` above 1 all of it after ``filter`` is done again, on what the policy
has become (``rounds.py``).
"""

# ruff: noqa: B006 (KFP reads defaults from the signature and never changes them)
# No postponed annotations here either: KFP reads them as they stand.
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.config import require
from kubealign_components.filter.component import filter
from kubealign_components.import_prompts.component import import_prompts
from kubealign_components.logprobs.component import logprobs
from kubealign_components.rank.component import rank
from kubealign_components.rewards.component import rewards
from kubealign_components.sample.component import sample
from kubealign_pipelines.draws import RANGE, SAMPLE_N, DrawRange, draws_of, further_draws
from kubealign_pipelines.draws import decide as decide_draws
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.halving import HALVING, Rung, rungs_of
from kubealign_pipelines.offline_tail import BENCHMARK_TASKS, OFFLINE_STAGES, align_offline
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.resources import CompileSettings, Placement
from kubealign_pipelines.rounds import REFERENCE, ROUNDS, STOP, Rounds, further_rounds
from kubealign_pipelines.rules import LOGPROBS_ORDER, Rules
from kubealign_pipelines.variants import SWEPT, VARIANTS, decide, number_of, swept_stages

REWARDS = ("reward_functions", "reward_model")
JUDGE = "rank_judge"
"""Who ranks a prompt's completions, in place of a reward."""
BEST_WORST = "best_worst"
LABELS = ("labels", "labelled")
"""Selections that need no rewards; the first is the default where there are none."""

RULES = Rules(
    choices=(LOGPROBS_ORDER, ROUNDS, REFERENCE, STOP, HALVING),
    deciding={
        SAMPLE_N: decide_draws,
        "select_strategy": lambda strategy: strategy if strategy in LABELS else None,
        **dict.fromkeys((*REWARDS, JUDGE, BENCHMARK_TASKS), lambda given: True if given else None),
        VARIANTS: decide,
    },
    ranges={SAMPLE_N: RANGE},
    one_of=(REWARDS,),
    options={
        "import": "import_prompts",
        **{stage: stage for stage in ("filter", "sample", "rewards", "rank", *OFFLINE_STAGES)},
        **{stage: stage for stage in ("benchmark", "choose")},
    },
)


def offline_alignment(settings: CompileSettings, parameters: Mapping[str, object]) -> GraphComponent:
    """The pipeline with ``settings`` compiled in, and the stages that ``parameters`` ask for."""
    placement = Placement(settings)
    shape = _shape_of(parameters)

    # The Kubeflow UI sorts its form by name: parameters start with their stage's name to stand together.
    @dsl.pipeline(name="offline-alignment")
    def pipeline(
        sources: list[dict[str, object]],
        policy: str,
        reference: str = "",
        reward_functions: list[object] = [],
        reward_model: str = "",
        seed: int = 0,
        validation_fraction: float = 0.05,
        work: str = "",
        work_rows_per_chunk: int = 4096,
        import_options: dict[str, object] = {},
        filter_options: dict[str, object] = {},
        sample_n: int = 10,
        sample_options: dict[str, object] = {},
        rewards_options: dict[str, object] = {},
        rank_judge: str = "",
        rank_options: dict[str, object] = {},
        select_strategy: str = "best_worst",
        select_options: dict[str, object] = {},
        logprobs_options: dict[str, object] = {},
        mix_options: dict[str, object] = {},
        train_objective: str = "dpo",
        train_beta: float = 0.1,
        train_learning_rate: float = 5e-7,
        train_epochs: float = 1.0,
        train_options: dict[str, object] = {},
        evaluate_options: dict[str, object] = {},
        benchmark_tasks: list[object] = [],
        benchmark_options: dict[str, object] = {},
        variants: list[dict[str, object]] = [],
        choose_options: dict[str, object] = {},
    ) -> None:
        """Align a chat model on its own rewarded samples, offline.

        Required are policy, sources, and reward_functions, reward_model or rank_judge. To paste, for a first
        run on GPUs:

            policy: HuggingFaceTB/SmolLM2-1.7B-Instruct
            sources: [{"uri": "trl-lib/ultrafeedback_binarized"}]
            reward_functions: ["brevity"]
            train_options: {"batch_size": 64, "adapter": "lora"}

        What has no box of its own goes by name into the options of its stage.

        Args:
            sources: Prompt datasets. Each is a mapping with uri (path, gs://, s3:// or hub id) and, where
                needed, name, weight, split, revision and format.
            policy: Model directory, URI or hub id of the policy to align.
            reference: Model that the aligned policy stays near, where that is not the policy: later rounds of
                alignment start at the last one's policy and keep the first one as reference.
            reward_functions: Python reward functions as module:function, or mappings with function, weight
                and settings.
            reward_model: Model directory, URI or hub id of a reward model; empty for none.
            seed: Seed of the run.
            validation_fraction: Share of the prompts, by hash, that is held out for evaluation.
            work: URI of the work prefix. Runs that share it reuse each other's finished rows.
            work_rows_per_chunk: Most prompts of a GPU, while no more pods are needed than run at once.
            import_options: Settings of import_prompts by name.
            filter_options: Settings of filter by name, such as max_prompt_len.
            sample_n: Completions sampled of each prompt; 0 leaves sampling out of the pipeline when it is
                compiled.
            sample_options: Further settings of sample by name; those of the engine, such as engine,
                temperature and max_new_tokens, under sampling. The evaluation samples by them, too.
            rewards_options: Settings of rewards by name; those of the reward, such as model_weight and
                over_length, under reward.
            rank_judge: Model directory, URI or hub id of a policy that ranks each prompt's completions by
                comparing them in pairs, in place of a reward; empty for none.
            rank_options: Settings of rank by name, such as comparisons; how the judge is asked, such as
                principles and max_length, under judge. They hold for the evaluation, too.
            select_strategy: best_worst, best_random, random_pairs, quantile_bands, top_bottom_k, all for
                pointwise objectives, or labels for pairs as people labelled them.
            select_options: Further settings of select by name, such as pairs_per_prompt and pool.
            logprobs_options: Settings of logprobs by name.
            mix_options: Settings of mix by name, such as training_uris, weights and caps of sources.
            train_objective: dpo, dpo_norm, qrpo, ipo, simpo or rebel.
            train_beta: Pull to the reference policy; its scale depends on the objective.
            train_learning_rate: Peak learning rate.
            train_epochs: Passes over the training examples.
            train_options: Further settings of train by name, such as adapter, batch_size, strategy.
            evaluate_options: Settings of evaluate by name, such as min_gain and max_prompts.
            benchmark_tasks: Names of tasks of lm-eval, such as arc_easy, that the policy is measured on
                before and after; none leaves the stage out of the pipeline when it is compiled.
            benchmark_options: Further settings of benchmark by name, such as limit, num_fewshot, max_drop
                and task_folder.
            variants: Of a sweep, what each variant has of its own: by stage (select, mix, train, evaluate),
                options of that stage.
            choose_options: Of a sweep, or of rounds that may stop, settings of choose by name, such as max_kl
                and max_length_ratio.
        """
        placement.check_first("offline_alignment", RULES.shape(parameters), locals())
        _stages(PipelineInputs.of_function(placement, locals()), shape)

    return pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    """Which stages there are."""

    sampled: bool
    rewarded: bool
    ranked: bool
    """Whether rewards are a judge's ranking."""
    order: str
    """Whether log-probabilities are computed "before" or "after" selection."""
    rounds: Rounds
    draws: DrawRange | None = None
    """How many completions are drawn of a prompt, where that is no parameter."""
    benchmarked: bool = False
    """Whether what is trained is measured on standard benchmarks."""
    strategy: str = ""
    """Of selection, where that is no parameter."""
    swept: tuple[str, ...] = ()
    """Stages in which the variants of a sweep differ."""
    rungs: tuple[Rung, ...] = ()
    """Of the sweep."""

    @property
    def scored_first(self) -> bool:
        """Whether log-probabilities are computed before selection."""
        return self.order == "before"

    @property
    def workers(self) -> list[BaseComponent]:
        """What works in chunks before selection."""
        asked = [
            (sample, self.sampled),
            (rewards, self.rewarded),
            (rank, self.ranked),
            (logprobs, self.scored_first),
        ]
        return [worker for worker, there in asked if there]


def _shape_of(parameters: Mapping[str, object]) -> _Shape:
    """The stages that ``parameters`` ask for.

    Raises:
        ConfigError: they ask for a selection by rewards, and nothing is rewarded; for a reward and a judge;
            or for several rounds without a reward.
    """
    choices = RULES.choose(parameters)
    rounds, order = Rounds.chosen(choices), choices[LOGPROBS_ORDER.name]
    sampled = parameters.get(SAMPLE_N) != 0
    strategy = parameters.get("select_strategy")
    given = any(parameters.get(name) for name in REWARDS)
    judge = parameters.get(JUDGE)
    require(not (given and judge), JUDGE, judge, f"none beside {' or '.join(REWARDS)}: rewards are from one")
    rewarded = not judge and (given or (sampled and strategy not in LABELS))
    strategies = f"{' or '.join(LABELS)}, as sample_n is 0 and no reward is given"
    require(rewarded or bool(judge) or strategy in (None, *LABELS), "select_strategy", strategy, strategies)
    by_itself = "" if rewarded or judge or strategy else LABELS[0]
    swept = swept_stages(parameters)
    learns = sampled and rewarded and strategy not in LABELS
    once = "1 without a selection among rewarded samples: a further round would select what the first one did"
    require(
        not judge or rounds.number == 1, ROUNDS.name, rounds.number, f"1 with {JUDGE}: rounds need a reward"
    )
    require(learns or rounds.number == 1, ROUNDS.name, rounds.number, once)
    require(
        not rounds.may_end or rounds.number > 1, STOP.name, rounds.stop, f"never with one of {ROUNDS.name}"
    )
    require(
        not swept or rounds.number == 1, ROUNDS.name, rounds.number, "1 in a sweep, of variants of one round"
    )
    rungs = _rungs(parameters, int(choices[HALVING.name]), swept)
    if swept:
        order = _order_of_sweep(parameters, order, swept, rewarded=rewarded)
    return _Shape(
        draws=_draws_of(parameters, rewarded=rewarded),
        sampled=sampled,
        rewarded=rewarded,
        ranked=bool(judge),
        order=order,
        rounds=rounds,
        benchmarked=bool(parameters.get(BENCHMARK_TASKS)),
        strategy=by_itself,
        swept=swept,
        rungs=rungs,
    )


def _draws_of(parameters: Mapping[str, object], *, rewarded: bool) -> DrawRange | None:
    """The range of draws that ``parameters`` ask for; None where every prompt gets as many."""
    given = parameters.get(SAMPLE_N)
    draws = draws_of(given)
    if draws is None:
        return None
    strategy = parameters.get("select_strategy")
    judged = (
        f"a number with {JUDGE}: a judge compares the completions of a prompt with each other, with each "
        "further draw all of them again, which costs more than is spared; and its rewards of two prompts are "
        "on no common scale, by which prompts are settled"
    )
    require(not parameters.get(JUDGE), SAMPLE_N, given, judged)
    require(rewarded, SAMPLE_N, given, "a number, without a range: what settles a prompt is its rewards")
    require(
        strategy in (None, BEST_WORST),
        "select_strategy",
        strategy,
        f"{BEST_WORST}, with a range for {SAMPLE_N}: draws end where the best and the worst sample of a "
        "prompt are settled",
    )
    return draws


def _rungs(parameters: Mapping[str, object], factor: int, swept: tuple[str, ...]) -> tuple[Rung, ...]:
    """The rungs of a sweep, of variants that can be halved."""
    name, number = HALVING.name, number_of(parameters)
    require(not factor or bool(swept), name, factor, f"0 without {VARIANTS}: it is variants that are dropped")
    fewest = f"at most {number}, the number of {VARIANTS}: of fewer none can be dropped"
    require(not factor or not swept or factor <= number, name, factor, fewest)
    one_training = f"0 where {VARIANTS} differ in {SWEPT[-1]} alone: they have one training"
    require(not factor or swept != SWEPT[-1:], name, factor, one_training)
    return tuple(rungs_of(number, factor))


def _order_of_sweep(
    parameters: Mapping[str, object], order: str, swept: tuple[str, ...], *, rewarded: bool
) -> str:
    """When log-probabilities are computed in a sweep: once, and so before variants select."""
    given = parameters.get(VARIANTS)
    require(rewarded, VARIANTS, given, "none without a reward, by whose gain a variant is chosen")
    if "select" not in swept:
        return order
    fits = parameters.get(LOGPROBS_ORDER.name) != "after"
    require(fits, LOGPROBS_ORDER.name, order, "before, or none: variants select from what was scored once")
    return "before"


def _stages(inputs: PipelineInputs, shape: _Shape) -> None:
    reward: dict[str, PipelineChannel] = {name: inputs[name] for name in REWARDS if shape.rewarded}
    # How the chunks of each fan-out are planned, by the stage before it.
    cuts = [*map(inputs.cut, shape.workers), {}]
    prompts = _prompts(inputs, cuts[0])
    answered = partial(_answered, inputs, shape, reward)
    if shape.draws is None:
        rows = first = answered(prompts, inputs["policy"], cuts=cuts[1:])
        n = inputs[SAMPLE_N] if shape.sampled else 1
    else:
        n = shape.draws.first
        drawn = partial(_drawn, inputs, shape.draws, answered)
        first, rows = drawn(prompts, inputs["policy"], scored_first=shape.scored_first)
    rewarding = {**reward, "rewards_options": inputs["rewards_options"]} if shape.rewarded else {}
    if shape.ranked:
        rewarding = {"judge": inputs[JUDGE], "rank_options": inputs["rank_options"]}
    aligned = partial(
        align_offline,
        inputs,
        order=shape.order,
        selection={"strategy": shape.strategy} if shape.strategy else {},
        comparison={"n": n, **rewarding},
        swept=shape.swept,
        # By as many completions of every prompt: where draws end by what they brought, their mean is biased.
        against=first,
        rungs=shape.rungs,
        benchmarked=shape.benchmarked,
    )

    def answered_further(begun: PipelineTask, policy: PipelineChannel, about: str) -> PipelineTask:
        if shape.draws is None:
            return answered(begun, policy, about, cuts=[inputs.cut(rewards), {}])
        return drawn(begun, policy, about)[1]

    last = further_rounds(
        inputs,
        shape.rounds,
        prompts=prompts,
        rows=rows,
        evaluated=aligned(rows, reference=inputs["reference"]),
        scored_first=shape.scored_first,
        answered=answered_further,
        aligned=aligned,
    )
    inputs.placement.register_model(last)


def _drawn(
    inputs: PipelineInputs,
    draws: DrawRange,
    answered: Callable[..., PipelineTask],
    prompts: PipelineTask,
    policy: PipelineChannel,
    about: str = "",
    *,
    scored_first: bool = False,
) -> tuple[PipelineTask, PipelineTask]:
    """What there is of the first draws of ``policy``, and what there is to select from."""

    def of_number(asked: PipelineTask, name: str, number: int) -> PipelineTask:
        return answered(asked, policy, name, cuts=[inputs.cut(rewards), {}], n=number)

    first = of_number(prompts, about, draws.first)
    further = partial(further_draws, inputs, draws, about, prompts=prompts, first=first)
    return first, further(scored_first=scored_first, answered=of_number)


def _prompts(inputs: PipelineInputs, cut: Arguments) -> PipelineTask:
    """The prompts, and completions that their sources brought, in tokens."""
    work, own = {"work": inputs["work"]}, inputs.of("import")
    imported = inputs.placement(
        import_prompts, sources=inputs["sources"], seed=inputs["seed"], **work, **own
    ).outputs["dataset"]
    own = {**inputs.of("filter"), **work, **cut}
    return inputs.placement(filter, prompts=imported, policy=inputs["policy"], **own)


def _answered(
    inputs: PipelineInputs,
    shape: _Shape,
    reward: Arguments,
    rows: PipelineTask,
    policy: PipelineChannel,
    about: str = "",
    *,
    cuts: Sequence[Arguments],
    n: int | None = None,
) -> PipelineTask:
    """What there is to select from: the prompts of ``rows``, completions that ``policy`` gives them, ``n`` of
    each where that is no parameter, rewarded ones."""
    make_task, planned = inputs.placement, iter(cuts)
    if shape.sampled:
        split = {"validation_fraction": inputs["validation_fraction"], "split_seed": inputs["seed"]}
        own: dict[str, object] = {"seed": inputs["seed"], **split, **inputs.of("sample")}
        own |= {} if n is None else {"n": n}
        rows = fan_out(make_task, sample, rows, about=about, cut=next(planned), policy=policy, **own)
    if shape.rewarded:
        own = {**reward, **inputs.of("rewards")}
        rows = fan_out(make_task, rewards, rows, about=about, cut=next(planned), **own)
    if shape.ranked:
        rows = fan_out(make_task, rank, rows, about=about, cut=next(planned), **inputs.of("rank"))
    return rows
