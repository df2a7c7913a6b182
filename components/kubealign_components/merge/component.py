"""merge as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def merge(
    parts: List[str],
    chunks: List[Dict],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Join the parts of a fan-out; none may be missing and none there twice.

    Args:
        parts: what the chunk workers returned.
        chunks: what split planned.
        dataset: the whole dataset, of the parts' kind.
        metrics: rows, chunks and what was reused of earlier work.
    """
    from kubealign_components.artifacts import log_stats, publish
    from kubealign_components.data.chunks import Chunk, Part
    from kubealign_components.merge.stage import run

    merged = run(
        parts=[Part.from_json(part) for part in parts],
        chunks=[Chunk.from_json(chunk) for chunk in chunks],
        output=dataset.uri,
    )
    publish(dataset, merged)
    stats = merged.manifest.stats
    log_stats(metrics, {"rows": merged.rows, **stats["counts"]})
