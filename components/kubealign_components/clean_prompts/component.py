"""clean_prompts as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def clean_prompts(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    sources: List[Dict],
    languages: List[str] = [],
    min_characters: int = 1,
    max_characters: int = 0,
    max_rows: int = 0,
    seed: int = 0,
    work: str = "",
    options: dict = {},
    seen: str = "",
):
    """Take the opening prompts of message trees, by language, length and number of turns.

    Args:
        dataset: prompts (kubealign.prompts/v1).
        metrics: trees in, prompts out and drops by reason.
        report: the rows in charts and examples.
        sources: one object a source of message trees: uri; and name, revision, split, subset, columns, roles,
            weight.
        languages: languages to keep, such as en; all when empty.
        min_characters: shorter prompts are dropped.
        max_characters: longer prompts are dropped; 0 for no limit.
        max_rows: most prompts, a seeded sample; 0 for all.
        seed: decides which prompts max_rows keeps.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
        seen: a word for what lies at the sources, by which Kubeflow's cache knows them.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, publish_with_page, rows_of
    from kubealign_components.clean_prompts.stage import CleanPromptsConfig, run
    from kubealign_components.config import from_parameters

    config = from_parameters(CleanPromptsConfig, parameters, "clean_prompts")
    stats = run(config, output=rows_of(dataset))
    publish_with_page(dataset, report)
    log_stats(metrics, stats)
