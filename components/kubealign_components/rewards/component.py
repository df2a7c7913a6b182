"""rewards as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def rewards(
    chunk: dict,
    reward_functions: list = [],
    reward_model: str = "",
    options: dict = {},
) -> str:
    """Reward the completions of one chunk; returns its part as JSON.

    Args:
        chunk: descriptor of the chunk (of kubealign.completions/v1 or kubealign.tokenized/v1).
        reward_functions: names module:function, or dicts with function, weight and settings.
        reward_model: model directory, URI or hub id of a reward model; empty for none.
        options: further settings of the stage by name; those of the reward under "reward".
    """
    parameters = dict(locals())

    from kubealign_components.config import from_parameters
    from kubealign_components.data.chunks import Chunk
    from kubealign_components.rewards.stage import RewardsConfig, run

    config = from_parameters(RewardsConfig, parameters, "rewards")
    return run(config, chunk=Chunk.from_json(chunk)).to_json()
