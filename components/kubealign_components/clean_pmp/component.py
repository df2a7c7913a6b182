"""clean_pmp as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def clean_pmp(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    sources: List[Dict],
    min_score_ratio: float = 2.0,
    max_rows: int = 0,
    seed: int = 0,
    work: str = "",
    options: dict = {},
    seen: str = "",
):
    """Make reward-model pairs of human preferences, for preference-model pre-training.

    Args:
        dataset: pairs with a preferred completion and no principles (kubealign.preferences/v1).
        metrics: rows in, pairs out and drops by reason.
        sources: one object a source: name and uri; and revision, split, subset, format, max_rows.
        min_score_ratio: rows with SHP's scores are kept above this ratio of the scores.
        max_rows: most pairs of all sources together, a seeded sample; 0 for all.
        seed: decides which completion is shown first, the split and the sample.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
        seen: a word for what lies at the sources, by which Kubeflow's cache knows them.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, publish, rows_of
    from kubealign_components.clean_pmp.stage import CleanPmpConfig, run
    from kubealign_components.config import from_parameters

    config = from_parameters(CleanPmpConfig, parameters, "clean_pmp")
    stats = run(config, output=rows_of(dataset))
    publish(dataset)
    log_stats(metrics, stats)
