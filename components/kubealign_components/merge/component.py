"""merge as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def merge(
    source: dsl.Input[dsl.Dataset],
    parts: List[str],
    chunks: List[Dict],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    model: dsl.Input[dsl.Artifact] = None,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
) -> List[Dict]:
    """Join the parts of a fan-out; none may be missing and none there twice.

    Args:
        source: the dataset that was cut into chunks.
        parts: what the chunk workers returned.
        chunks: what was planned.
        dataset: the whole dataset, of the parts' kind.
        metrics: rows, chunks and what was reused of earlier work.
        report: the rows in charts and examples.
        model: manifest of a model of this run that the workers used, if they did.
        work: work prefix of the fan-out that follows; empty: beside the dataset.
        rows_per_chunk: most rows in a chunk of the fan-out that follows; 0 where none does.
        max_chunks: most chunks of it; they grow when more would be needed.
        engines: of a pod of it: a chunk has up to rows_per_chunk rows for each.

    Returns:
        Chunk descriptors for the fan-out that follows.
    """
    from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
    from kubealign_components.data.chunks import Chunk, Part
    from kubealign_components.data.planning import PlanConfig, planned
    from kubealign_components.merge.stage import run

    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    merged = run(
        parts=[Part.from_json(part) for part in parts],
        chunks=[Chunk.from_json(chunk) for chunk in chunks],
        source=open_dataset(source),
        output=rows_of(dataset),
    )
    log_stats(metrics, {"rows": merged.rows, **merged.manifest.stats["counts"]})
    return planned(plan, publish_with_page(dataset, report))
