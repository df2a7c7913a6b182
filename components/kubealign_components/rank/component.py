"""rank as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def rank(chunk: dict, judge: str, principles: str = "judging", options: dict = {}) -> str:
    """Reward the completions of one chunk by comparing them in pairs; returns its part as JSON.

    Args:
        chunk: descriptor of the chunk (of kubealign.completions/v1 or kubealign.tokenized/v1).
        judge: model directory, URI or hub id of the policy that judges.
        principles: judging, or a file of principles of one's own.
        options: further settings of the stage by name; those of the judge under "judge".
    """
    parameters = dict(locals())

    from kubealign_components.config import from_parameters
    from kubealign_components.data.chunks import Chunk
    from kubealign_components.rank.stage import RankConfig, run

    config = from_parameters(RankConfig, parameters, "rank")
    return run(config, chunk=Chunk.from_json(chunk)).to_json()
