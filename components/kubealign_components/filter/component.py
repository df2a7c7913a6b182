"""filter as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def filter(
    prompts: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    policy: str,
    max_seq_len: int = 4096,
    max_prompt_len: int = 2048,
    min_completions: int = 0,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
) -> List[Dict]:
    """Tokenise prompts and completions under the policy's chat template and drop what is too long.

    Args:
        prompts: imported prompts (kubealign.prompts/v1), or prompts tokenised for the policy before.
        dataset: tokenised prompts (kubealign.tokenized/v1, or the kind they had).
        metrics: rows in, out and dropped by reason.
        report: the rows in charts and examples.
        policy: model directory, URI or hub id of the policy.
        max_seq_len: most tokens of prompt and completion together.
        max_prompt_len: most tokens of a prompt.
        min_completions: fewest offline completions a prompt must keep.
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
    from kubealign_components.data.schemas import COMPLETIONS, PROMPTS, REWARDED, TOKENIZED
    from kubealign_components.filter.stage import FilterConfig, run

    config = from_parameters(FilterConfig, parameters, "filter")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    rows = open_dataset(prompts, PROMPTS, TOKENIZED, COMPLETIONS, REWARDED)
    stats = run(config, prompts=rows, output=rows_of(dataset))
    log_stats(metrics, stats)
    return planned(plan, publish_with_page(dataset, report))
