"""join_rounds as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def join_rounds(
    earlier: dsl.Input[dsl.Dataset],
    later: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    number: int = 2,
    references: str = "first",
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
) -> List[Dict]:
    """Put the rewarded completions of a further round beside those of the rounds before.

    Args:
        earlier: rewarded completions of the rounds before (kubealign.rewarded/v1).
        later: those of one more round (kubealign.rewarded/v1).
        dataset: the completions of all rounds (kubealign.rewarded/v1).
        metrics: rows, and completions before and added.
        report: the rows in charts and examples.
        number: of the later round, from 2.
        references: whose rewards are reference rewards, those of the first round or of the last one.
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
    from kubealign_components.join_rounds.stage import JoinRoundsConfig, run

    config = from_parameters(JoinRoundsConfig, parameters, "join_rounds")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    before, added = open_dataset(earlier, REWARDED), open_dataset(later, REWARDED)
    log_stats(metrics, run(config, earlier=before, later=added, output=rows_of(dataset)))
    return planned(plan, publish_with_page(dataset, report))
