"""import_prompts as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def import_prompts(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    sources: List[Dict],
    max_bad_fraction: float = 0.01,
    max_rows: int = 0,
    seed: int = 0,
    work: str = "",
    options: dict = {},
    seen: str = "",
):
    """Read prompts and their offline completions from files, folders, object stores or the hub.

    Args:
        dataset: imported prompts (kubealign.prompts/v1).
        metrics: rows in, out and dropped by reason.
        report: the rows in charts and examples.
        sources: one object a source: uri; and name, revision, split, subset, format, columns, roles, license,
            weight, max_rows, prompt_suffix.
        max_bad_fraction: largest fraction of malformed rows in a source.
        max_rows: most prompts of all sources together, a seeded sample; 0 for all.
        seed: decides which prompts max_rows keeps.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
        seen: a word for what lies at the sources, by which Kubeflow's cache knows them.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, publish_with_page, rows_of
    from kubealign_components.config import from_parameters
    from kubealign_components.import_prompts.stage import ImportConfig, run

    config = from_parameters(ImportConfig, parameters, "import_prompts")
    stats = run(config, output=rows_of(dataset))
    publish_with_page(dataset, report)
    log_stats(metrics, stats)
