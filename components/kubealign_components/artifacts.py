"""How a component reads and writes its KFP artifacts: stock types, our kind in the metadata.

KFP's launcher downloads whatever lies under the URI of an input artifact before a component starts. A dataset
artifact is therefore its manifest alone; its shards lie in a folder beside it, and who needs rows reads them
from the store.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.licenses import joined, licenses
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.data.schemas import JUDGED, MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset, SchemaMismatch
from kubealign_components.store import beside, join, last_part, store_for
from kubealign_components.whole_file import write_whole

if TYPE_CHECKING:
    from kfp.dsl import Artifact, Metrics

log = logging.getLogger(__name__)

ROWS = "rows-of-"
"""How the folder of the shards, beside the artifact, is called. It does not begin with the artifact's name,
which KFP 2.16 takes for a prefix of all that it downloads."""


def open_dataset(artifact: Artifact, *schemas: str, allow_empty: bool = False) -> Dataset:
    """The dataset or model behind an input artifact if it is of one of ``schemas``.

    It is opened by URI and never where the launcher has mounted it: what a manifest records must be found
    from everywhere.

    Args:
        artifact: an input of a component.
        schemas: kinds to accept; any where none is named.
        allow_empty: whether it may have no rows.

    Raises:
        SchemaMismatch: the artifact's metadata names another kind.
    """
    kind = artifact.metadata.get("schema")
    if schemas and kind is not None and kind not in schemas:
        raise SchemaMismatch(f"{artifact.name} is {kind}, expected {' or '.join(schemas)}")
    return Dataset.open(artifact.uri, *schemas, allow_empty=allow_empty)


def local_copy(artifact: Artifact) -> str:
    """Where the files of an input model are read: the launcher's copy on this machine, or else its URI."""
    return str(artifact.path) if Path(artifact.path).exists() else str(artifact.uri)


def open_model(artifact: Artifact, *, here: bool = True) -> Dataset:
    """The model of an input artifact; its files are read from the launcher's copy of them.

    Args:
        artifact: an input of a component.
        here: whether this machine alone reads it.
    """
    model = open_dataset(artifact, MODEL)
    if here:
        model.copy = local_copy(artifact)
    return model


def rows_of(artifact: Artifact) -> str:
    """Where a stage writes the dataset of the output ``artifact``."""
    return beside(artifact.uri, ROWS + last_part(artifact.uri))


def publish(artifact: Artifact, *pages: Artifact) -> Dataset:
    """Publish what a stage wrote to :func:`rows_of` as the output ``artifact``.

    Args:
        artifact: of the dataset.
        pages: other outputs of the same task, which are named like it.
    """
    dataset = _refer(Dataset.open(rows_of(artifact), allow_empty=True), artifact.uri)
    _describe(artifact, dataset.manifest, *pages)
    return dataset


def publish_with_page(artifact: Artifact, report: Artifact) -> Dataset:
    """:func:`publish`, with a page about the rows as the output ``report`` and beside the rows."""
    from kubealign_components.reports.html import write_report

    dataset = publish(artifact, report)
    page = _page_of(dataset)
    write_report(page, dataset.home)
    write_page(report, page)
    return dataset


def publish_model(artifact: Artifact, *pages: Artifact) -> None:
    """Describe the model that a stage wrote to the output ``artifact``, and name ``pages`` like it."""
    _describe(artifact, Dataset.open(artifact.uri).manifest, *pages)


def write_manifest(artifact: Artifact, model: Artifact) -> None:
    """Write the manifest of the output ``model`` to ``artifact``: it stands for the model where the model
    itself, which is large, is read by URI or not at all."""
    write_page(artifact, Dataset.open(model.uri).manifest.to_json())


def describe(manifest: Manifest) -> dict[str, object]:
    """The metadata that the Kubeflow UI shows and sorts by; it calls the artifact by ``display_name``."""
    return {
        "display_name": manifest.slug,
        "stage": manifest.provenance.step["stage"],
        "rows": manifest.rows,
        "schema": manifest.schema,
        "short_fingerprint": manifest.fingerprint[:12],
        "fingerprint": manifest.fingerprint,
        "slug": manifest.slug,
        "license": joined(licenses(manifest)),
    }


def _page_of(dataset: Dataset) -> str:
    from kubealign_components.reports.html import message_page
    from kubealign_components.reports.judgements import judgements_page
    from kubealign_components.reports.rows import rows_page

    if dataset.ended_early:
        return message_page(dataset.manifest.slug, dataset.ended_early)
    try:
        return judgements_page(dataset) if dataset.manifest.schema == JUDGED else rows_page(dataset)
    except Exception as error:  # rows that took hours to make are not lost for a picture of them
        log.exception("the page about %s cannot be made", dataset.uri)
        text = f"The rows are whole; their page cannot be made ({type(error).__name__}: {error})."
        return message_page(dataset.manifest.slug, text)


def _describe(artifact: Artifact, manifest: Manifest, *pages: Artifact) -> None:
    artifact.metadata.update(describe(manifest))
    for page in pages:
        page.metadata["display_name"] = f"{manifest.slug} {last_part(page.uri)}"


def _refer(dataset: Dataset, uri: str) -> Dataset:
    """Publish at ``uri``, beside ``dataset``, its manifest alone, and open the dataset there.

    Kubeflow downloads all that lies under the URI of an input artifact: this much is small.

    Raises:
        CorruptDataset: another dataset is already published there.
    """
    manifest = replace(dataset.manifest, shards_in=last_part(dataset.home))
    where = join(uri, MANIFEST)
    if not store_for(uri).publish(where, manifest.to_json().encode()):
        standing = Dataset.open(uri, allow_empty=True)
        if standing.manifest.fingerprint != manifest.fingerprint:
            raise CorruptDataset(
                f"{uri} already holds dataset {standing.manifest.slug!r}; name another place"
            )
    return Dataset(uri, manifest)


def log_stats(metrics: Metrics, stats: Stats | dict[str, float]) -> None:
    """Write every number of ``stats`` to a ``dsl.Metrics`` artifact."""
    numbers = stats.metrics() if isinstance(stats, Stats) else stats
    for name, value in numbers.items():
        metrics.log_metric(name, float(value))


def write_page(artifact: Artifact, page: str) -> None:
    """Write a text, such as an HTML page, to an artifact that is one file."""
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
