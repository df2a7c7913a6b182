"""aggregate as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def aggregate(
    judged: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    principles: str = "judging",
    passes: int = 4,
    max_principles: int = 8,
    negation: float = 0.5,
    scale: str = "variance",
    label: str = "dominant",
    label_noise: float = 0.1,
    seed: int = 0,
    min_consistency: float = 0.0,
    work: str = "",
    options: dict = {},
):
    """Draw principles for every judged pair and make labelled pairs for the reward model.

    Args:
        judged: pairs with judgements by principle (kubealign.judged/v1).
        dataset: pairs with principles and a preferred completion (kubealign.preferences/v1).
        metrics: draws in, out and dropped by reason; dominant principles, rules, flips.
        report: consistency and scores of the judge by principle, deciding principles, drops.
        principles: a shipped principle set, or path or URI of one's own.
        passes: how often each pair is drawn for.
        max_principles: most principles of a draw.
        negation: probability of each drawn principle to be negated.
        scale: what scores are divided by: variance, std or none.
        label: dominant, sum or vote.
        label_noise: probability of a label to be flipped.
        seed: decides every draw and coin, and the split.
        min_consistency: fail when the judge's two orders agree in a smaller share of judgements; 0 for any.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
    """
    parameters = dict(locals())

    from kubealign_components.aggregate.stage import AggregateConfig, run
    from kubealign_components.artifacts import log_stats, open_dataset, publish, rows_of
    from kubealign_components.config import from_parameters
    from kubealign_components.data.schemas import JUDGED

    config = from_parameters(AggregateConfig, parameters, "aggregate")
    stats = run(config, judged=open_dataset(judged, JUDGED), output=rows_of(dataset), report=report.path)
    publish(dataset, report)
    log_stats(metrics, stats)
