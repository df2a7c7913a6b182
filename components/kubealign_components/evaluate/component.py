"""evaluate as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.SAMPLE, install_kfp_package=False)
def evaluate(
    rewarded: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    lineage: dsl.Output[dsl.HTML],
    policy: str,
    selection: dsl.Input[dsl.Dataset] = None,
    engine: str = "vllm",
    n: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    stop: list = [],
    seed: int = 0,
    sample_options: dict = {},
    reward_functions: list = [],
    reward_model: str = "",
    rewards_options: dict = {},
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    max_prompts: int = 256,
    judge: str = "",
    judge_options: dict = {},
    rank_options: dict = {},
    work: str = "",
    options: dict = {},
    variant: dict = {},
    sweep: bool = False,
    rounds: list = [],
):
    """Compare the aligned policy with its reference on held-out prompts.

    Args:
        rewarded: rewarded completions of the reference policy (kubealign.rewarded/v1), without a reward also
            kubealign.completions/v1, or prompts that it answers here (kubealign.tokenized/v1).
        model: the aligned model (kubealign.model/v1).
        dataset: both sides of every held-out prompt (kubealign.evaluation/v1).
        metrics: rewards, gain with its 95 % interval, win rate, lengths and KL.
        report: the numbers and sampled texts side by side.
        lineage: every stage, setting, model and source that led here.
        policy: model directory, URI or hub id of the reference policy.
        selection: of a further round, what the model was trained on (kubealign.selection/v1).
        engine: as sample had it.
        n: as sample had it.
        temperature: as sample had it.
        top_p: as sample had it.
        max_new_tokens: as sample had it.
        stop: as sample had it.
        seed: as sample had it.
        sample_options: the options of sample, of which those under "sampling" are used.
        reward_functions: names module:function, or dicts with function, weight and settings.
        reward_model: model directory, URI or hub id of a reward model; empty for none.
        rewards_options: the options of rewards, of which those under "reward" are used.
        validation_fraction: share of prompts held out, as mix had it.
        split_seed: seed of the split, as mix had it.
        max_prompts: most held-out prompts.
        judge: model directory, URI or hub id of a policy that compares both sides; empty for none.
        judge_options: how it judges, by name: principles, principle_names, adapter, template, …
        rank_options: the options of rank, of which those under "judge" are used.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name; those of the engine under "sampling".
        variant: what one variant of a sweep has of its own: by stage, options that count before all else.
        sweep: whether it is of a variant of a sweep, which goes on without one that is refused.
        rounds: what the evaluations of the rounds before showed, which the report sets beside this one.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import (
        local_copy,
        log_stats,
        open_dataset,
        publish,
        rows_of,
        write_page,
    )
    from kubealign_components.data.schemas import COMPLETIONS, REWARDED, SELECTION, TOKENIZED
    from kubealign_components.evaluate.stage import EvaluateConfig, run
    from kubealign_components.reports.lineage import to_html
    from kubealign_components.variant import from_variant, name_variant

    stats = run(
        from_variant(EvaluateConfig, parameters, "evaluate"),
        rewarded=open_dataset(rewarded, REWARDED, COMPLETIONS, TOKENIZED),
        model=local_copy(model),
        output=rows_of(dataset),
        report=report.path,
        model_uri=model.uri,
        rounds=rounds,
        selection=open_dataset(selection, SELECTION) if selection is not None else None,
        sweep=sweep,
    )
    log_stats(metrics, stats)
    name_variant(dataset, variant)
    write_page(lineage, to_html(publish(dataset, report, lineage).manifest))
