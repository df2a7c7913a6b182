"""select as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def select(
    rewarded: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    strategy: str = "best_worst",
    quantile: str = "inclusive",
    pairs_per_prompt: int = 1,
    min_references: int = 2,
    min_quantile_gap: float = 0.0,
    pool: str = "reference",
    seed: int = 0,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
    variant: dict = {},
) -> List[Dict]:
    """Compute quantile rewards and choose the completions that are trained on.

    Args:
        rewarded: completions with rewards (kubealign.rewarded/v1); by labels also kubealign.completions/v1 or
            kubealign.tokenized/v1.
        dataset: selected completions and their pairs (kubealign.selection/v1).
        metrics: rows in, out and dropped by reason; pairs, mean quantile gap, share of ties.
        report: the rows in charts and examples.
        strategy: best_worst, best_random, random_pairs, quantile_bands or top_bottom_k (pairs by reward), all
            (pointwise), labels (pairs as people labelled them) or labelled (pointwise, single labels).
        quantile: inclusive, mid_rank or leave_one_out.
        pairs_per_prompt: most pairs of a prompt.
        min_references: prompts with fewer reference rewards are dropped.
        min_quantile_gap: least quantile reward of the chosen minus that of the rejected.
        pool: which completions may be selected: reference, offline or both.
        seed: decides random orders and breaks ties.
        work: work prefix; what was finished there before is taken. For a fan-out that follows, empty: beside
            the dataset.
        rows_per_chunk: most rows in a chunk of the fan-out that follows; 0 where none does.
        max_chunks: most chunks of it; they grow when more would be needed.
        engines: of a pod of it: a chunk has up to rows_per_chunk rows for each.
        options: further settings of the stage by name.
        variant: what one variant of a sweep has of its own: by stage, options that count before all else.

    Returns:
        Chunk descriptors for the fan-out that follows.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
    from kubealign_components.data.planning import PlanConfig, planned
    from kubealign_components.data.schemas import COMPLETIONS, REWARDED, TOKENIZED
    from kubealign_components.select.stage import SelectConfig, run
    from kubealign_components.variant import from_variant

    config = from_variant(SelectConfig, parameters, "select")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    rows = open_dataset(rewarded, REWARDED, COMPLETIONS, TOKENIZED)
    stats = run(config, rewarded=rows, output=rows_of(dataset))
    log_stats(metrics, stats)
    return planned(plan, publish_with_page(dataset, report))
