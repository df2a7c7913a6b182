"""logprobs as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def logprobs(
    chunk: dict,
    policy: str,
    reference: str = "",
    source: str = "scorer",
    adapter: str = "none",
    train_options: dict = {},
    options: dict = {},
) -> str:
    """Compute the reference log-probabilities of one chunk; returns its part as JSON.

    Args:
        chunk: descriptor of the chunk (of completions, rewarded completions or a selection).
        policy: model directory, URI or hub id of the policy that the prompts were tokenised for.
        reference: model whose log-probabilities are wanted, where it is not the policy.
        source: scorer, or sampler to keep what the sampler said of the reference completions.
        adapter: what will be trained, none, lora or qlora: the reference is scored in the same numbers.
        train_options: of the training to come; its dtype, adapter and strategy are this stage's too.
        options: further settings of the stage by name.
    """
    parameters = dict(locals())

    from kubealign_components.config import from_parameters
    from kubealign_components.data.chunks import Chunk
    from kubealign_components.logprobs.stage import LogprobsConfig, run

    config = from_parameters(LogprobsConfig, parameters, "logprobs")
    return run(config, chunk=Chunk.from_json(chunk)).to_json()
