"""join_draws as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def join_draws(
    earlier: dsl.Input[dsl.Dataset],
    later: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    to: int = 16,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
) -> List[Dict]:
    """Join the completions of prompts that more were drawn of with those of the others.

    Args:
        earlier: rewarded completions of all prompts so far (kubealign.rewarded/v1).
        later: those of the prompts that more were drawn of (kubealign.rewarded/v1).
        dataset: all prompts, each with all of its completions (kubealign.rewarded/v1).
        metrics: prompts by their draws, those that never differed, and the share of tokens that was sampled.
        report: the rows in charts and examples.
        to: most completions that are drawn of a prompt.
        work: work prefix; what was finished there before is taken. For a fan-out that follows, empty: beside
            the dataset.
        rows_per_chunk: most rows in a chunk of the fan-out that follows; 0 where none does.
        max_chunks: most chunks of it; they grow when more would be needed.
        engines: of a pod of it: a chunk has up to rows_per_chunk rows for each.
        options: further settings of the stage by name.

    Returns:
        Chunk descriptors for the fan-out that follows.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
    from kubealign_components.config import from_parameters
    from kubealign_components.data.planning import PlanConfig, planned
    from kubealign_components.data.schemas import REWARDED
    from kubealign_components.join_draws.stage import JoinDrawsConfig, run

    config = from_parameters(JoinDrawsConfig, parameters, "join_draws")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    before, added = open_dataset(earlier, REWARDED), open_dataset(later, REWARDED)
    log_stats(metrics, run(config, earlier=before, later=added, output=rows_of(dataset)))
    return planned(plan, publish_with_page(dataset, report))
