"""sample as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.SAMPLE, install_kfp_package=False)
def sample(
    chunk: dict,
    policy: str,
    engine: str = "vllm",
    n: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    stop: list = [],
    seed: int = 0,
    truncated: str = "keep",
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    options: dict = {},
) -> str:
    """Sample completions of the reference policy for one chunk; returns its part as JSON.

    Args:
        chunk: descriptor of the chunk (of kubealign.tokenized/v1).
        policy: model directory, URI or hub id of the reference policy.
        engine: vllm, transformers or fake.
        n: completions of each prompt.
        temperature: of sampling; 0 takes the most likely token.
        top_p: probability of the smallest set of tokens that is sampled from.
        max_new_tokens: most tokens of a completion.
        stop: strings that end a completion.
        seed: seed of the run.
        truncated: keep or drop completions that were cut at max_new_tokens.
        validation_fraction: share of the prompts, by hash, that is held out.
        split_seed: seed of the split, as mix has it.
        options: further settings of the stage by name; those of the engine under "sampling".
    """
    parameters = dict(locals())

    from kubealign_components.config import from_parameters
    from kubealign_components.data.chunks import Chunk
    from kubealign_components.sample.stage import SampleConfig, run

    config = from_parameters(SampleConfig, parameters, "sample")
    return run(config, chunk=Chunk.from_json(chunk)).to_json()
