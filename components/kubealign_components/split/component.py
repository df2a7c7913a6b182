"""split as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def split(
    dataset: dsl.Input[dsl.Dataset],
    work: str = "",
    chunks: int = 0,
    rows_per_chunk: int = 4096,
) -> List[Dict]:
    """Plan the chunks of a fan-out.

    Args:
        dataset: any dataset of prompts.
        work: URI of the work prefix, where finished slices are kept and reused; empty: beside the dataset.
        chunks: number of chunks, at most 100; 0 to follow rows_per_chunk.
        rows_per_chunk: most rows in a chunk.

    Returns:
        Chunk descriptors.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import open_dataset
    from kubealign_components.config import from_parameters
    from kubealign_components.split.stage import SplitConfig, run

    config = from_parameters(SplitConfig, parameters, "split")
    return [chunk.to_json() for chunk in run(config, dataset=open_dataset(dataset))]
