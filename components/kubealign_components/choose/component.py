"""choose as a KFP component."""

from typing import List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def choose(
    evaluations: dsl.Input[List[dsl.Dataset]],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    lineage: dsl.Output[dsl.HTML],
    seed: int = 0,
    work: str = "",
    options: dict = {},
):
    """Set the variants of a sweep beside each other and choose one.

    Args:
        evaluations: the evaluations of the variants (kubealign.evaluation/v1).
        dataset: a row a variant: settings, gain, KL, length, whether it was chosen (kubealign.choice/v1).
        metrics: variants, and the chosen one's gain with bounds that hold for all at once.
        report: the variants, their Pareto front and the chosen one.
        lineage: every stage, setting, model and source that led to the variants.
        seed: of the bootstrap.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name, such as max_kl, max_length_ratio and min_gain.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish, rows_of, write_page
    from kubealign_components.choose.config import ChooseConfig
    from kubealign_components.choose.stage import run
    from kubealign_components.config import from_parameters
    from kubealign_components.data.schemas import EVALUATION
    from kubealign_components.reports.lineage import to_html

    stats = run(
        from_parameters(ChooseConfig, parameters, "choose"),
        evaluations=[open_dataset(evaluation, EVALUATION) for evaluation in evaluations],
        output=rows_of(dataset),
        report=report.path,
    )
    log_stats(metrics, stats)
    write_page(lineage, to_html(publish(dataset, report, lineage).manifest))
