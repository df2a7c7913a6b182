"""filter as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def filter(
    prompts: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    policy: str,
    max_seq_len: int = 4096,
    max_prompt_len: int = 2048,
    min_completions: int = 0,
    options: dict = {},
):
    """Tokenise prompts and completions under the policy's chat template and drop what is too long.

    Args:
        prompts: imported prompts (kubealign.prompts/v1), or prompts tokenised for the policy before.
        dataset: tokenised prompts (kubealign.tokenized/v1, or the kind they had).
        metrics: rows in, out and dropped by reason.
        policy: model directory, URI or hub id of the policy.
        max_seq_len: most tokens of prompt and completion together.
        max_prompt_len: most tokens of a prompt.
        min_completions: fewest offline completions a prompt must keep.
        options: further settings of the stage by name.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish
    from kubealign_components.config import from_parameters
    from kubealign_components.data.dataset import Dataset
    from kubealign_components.data.schemas import COMPLETIONS, PROMPTS, REWARDED, TOKENIZED
    from kubealign_components.filter.stage import FilterConfig, run

    config = from_parameters(FilterConfig, parameters, "filter")
    rows = open_dataset(prompts, PROMPTS, TOKENIZED, COMPLETIONS, REWARDED)
    stats = run(config, prompts=rows, output=dataset.uri)
    publish(dataset, Dataset.open(dataset.uri, allow_empty=True))
    log_stats(metrics, stats)
