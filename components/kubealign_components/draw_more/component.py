"""draw_more as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def draw_more(
    prompts: dsl.Input[dsl.Dataset],
    rewarded: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    drawn: int = 4,
    to: int = 16,
    same: float = 0.95,
    within: float = 0.0,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
) -> List[Dict]:
    """Find the prompts whose best and worst completions the draws so far do not settle.

    Args:
        prompts: tokenised prompts (kubealign.tokenized/v1).
        rewarded: their completions so far, rewarded (kubealign.rewarded/v1).
        dataset: the prompts that are to be drawn more completions of (kubealign.tokenized/v1).
        metrics: prompts that are resolved, never differed, and go on.
        report: the rows in charts and examples.
        drawn: completions that were drawn of each prompt that was asked last.
        to: most completions that are drawn of a prompt.
        same: share of prompts that is to keep the pair that all draws would give.
        within: how far, as a share of the mean gap of best and worst, a kept pair's rewards may be off.
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
    from kubealign_components.data.schemas import REWARDED, TOKENIZED
    from kubealign_components.draw_more.stage import DrawMoreConfig, run

    config = from_parameters(DrawMoreConfig, parameters, "draw_more")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    asked, answered = open_dataset(prompts, TOKENIZED), open_dataset(rewarded, REWARDED)
    log_stats(metrics, run(config, prompts=asked, rewarded=answered, output=rows_of(dataset)))
    return planned(plan, publish_with_page(dataset, report))
