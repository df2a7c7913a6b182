"""choose as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def choose(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    lineage: dsl.Output[dsl.HTML],
    evaluations: dsl.Input[List[dsl.Dataset]] = None,
    earlier: dsl.Input[dsl.Dataset] = None,
    round_1: dsl.Input[dsl.Dataset] = None,
    round_2: dsl.Input[dsl.Dataset] = None,
    round_3: dsl.Input[dsl.Dataset] = None,
    round_4: dsl.Input[dsl.Dataset] = None,
    reduction_factor: int = 0,
    rounds: int = 0,
    seed: int = 0,
    work: str = "",
    options: dict = {},
) -> List[Dict]:
    """Set variants of a sweep, or rounds, beside each other and choose one, or those worth training further.

    Args:
        evaluations: of a sweep, the evaluations of the variants (kubealign.evaluation/v1).
        dataset: a row a variant: settings, gain, KL, length, whether it was chosen (kubealign.choice/v1).
        metrics: variants, and the chosen one's gain with bounds that hold for all at once.
        report: the variants, their Pareto front and the chosen one.
        lineage: every stage, setting, model and source that led to the variants.
        earlier: of successive halving, the choice at the rung before (kubealign.choice/v1).
        round_1: of rounds, the evaluation of the first one (kubealign.evaluation/v1).
        round_2: that of the second.
        round_3: that of the third, where there is one.
        round_4: that of the fourth, where there is one.
        reduction_factor: choose one in so many, to be trained further; 0 for the one of all.
        rounds: how many rounds there were to be; 0 for variants.
        seed: of the bootstrap.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name, such as max_kl, max_length_ratio and min_gain.

    Returns:
        What those variants have of their own that are trained further.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish, rows_of, write_page
    from kubealign_components.choose.config import ChooseConfig
    from kubealign_components.choose.stage import run, survivors
    from kubealign_components.config import from_parameters
    from kubealign_components.data.choice_rows import CHOICE
    from kubealign_components.data.schemas import EVALUATION
    from kubealign_components.reports.lineage import to_html
    from kubealign_components.variant import named_variants

    rounded = [one for one in (round_1, round_2, round_3, round_4) if one is not None]
    compared = [open_dataset(evaluation, EVALUATION) for evaluation in evaluations or rounded]
    stats = run(
        from_parameters(ChooseConfig, parameters, "choose"),
        evaluations=compared,
        earlier=open_dataset(earlier, CHOICE) if earlier is not None else None,
        output=rows_of(dataset),
        report=report.path,
    )
    log_stats(metrics, stats)
    chosen = publish(dataset, report, lineage)
    write_page(lineage, to_html(chosen.manifest))
    if not reduction_factor:
        return []
    own = {one.manifest.fingerprint: named for one, named in zip(compared, named_variants(evaluations))}
    return [own[name] for name in survivors(chosen)]
