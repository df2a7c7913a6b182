"""How a component reads and writes its KFP artifacts: stock types, our kind in the metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.stats import Stats
from kubealign_components.errors import SchemaMismatch


def open_dataset(
    artifact: Any, *schemas: str, allow_empty: bool = False, everywhere: bool = False
) -> Dataset:
    """The dataset behind an input artifact if it is of one of ``schemas``.

    The launcher has downloaded what it could to ``artifact.path``; where it has not, the object
    store is read.

    Args:
        artifact: an input of a component.
        schemas: kinds to accept; any where none is named.
        allow_empty: whether it may have no rows.
        everywhere: whether other machines read the dataset, too: then it is the one in the object store.

    Raises:
        SchemaMismatch: the artifact's metadata names another kind.
    """
    kind = artifact.metadata.get("schema")
    if schemas and kind is not None and kind not in schemas:
        raise SchemaMismatch(f"{artifact.name} is {kind}, expected {' or '.join(schemas)}")
    here = Path(artifact.path).exists() and not everywhere
    place = artifact.path if here else artifact.uri
    return Dataset.open(place, *schemas, allow_empty=allow_empty)


def publish(artifact: Any, dataset: Dataset) -> None:
    """Describe ``dataset`` in the metadata of the output ``artifact`` it was written to."""
    artifact.metadata.update(describe(dataset.manifest))


def describe(manifest: Manifest) -> dict[str, Any]:
    """The metadata that the Kubeflow UI shows."""
    return {
        "schema": manifest.schema,
        "fingerprint": manifest.fingerprint,
        "slug": manifest.slug,
        "rows": manifest.rows,
    }


def log_stats(metrics: Any, stats: Stats | dict[str, float]) -> None:
    """Write every number of ``stats`` to a ``dsl.Metrics`` artifact."""
    numbers = stats.metrics() if isinstance(stats, Stats) else stats
    for name, value in numbers.items():
        metrics.log_metric(name, float(value))


def write_page(artifact: Any, page: str) -> None:
    """Write an HTML page to a ``dsl.HTML`` artifact."""
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
