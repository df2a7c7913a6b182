"""merge: join the parts of a fan-out when they hold exactly the rows that were planned."""

from __future__ import annotations

from collections.abc import Sequence

from kubealign_components.data.chunks import Chunk, Part, merge
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ChunkError


def run(
    *, parts: Sequence[Part], chunks: Sequence[Chunk], output: str, source: Dataset | None = None
) -> Dataset:
    """The merged dataset, published at ``output``; see :func:`kubealign_components.data.chunks.merge`.

    Args:
        parts: what the workers gave back.
        chunks: what was planned.
        output: URI of the dataset to make.
        source: the dataset that was cut, to make sure of it.

    Raises:
        ChunkError: the parts are not those planned, or the chunks not of ``source``.
    """
    planned = {chunk.fingerprint for chunk in chunks}
    if source is not None and planned - {source.manifest.fingerprint}:
        raise ChunkError(
            f"the chunks were planned on {', '.join(sorted(f[:12] for f in planned))}, but {source.uri} is "
            f"{source.manifest.fingerprint[:12]}; plan again"
        )
    return merge(parts, chunks, output)
