"""merge: join the parts of a fan-out when they hold exactly the rows that were planned."""

from __future__ import annotations

from collections.abc import Sequence

from kubealign_components.data.chunks import Chunk, Part, merge
from kubealign_components.data.dataset import Dataset


def run(*, parts: Sequence[Part], chunks: Sequence[Chunk], output: str) -> Dataset:
    """The merged dataset, published at ``output``; see :func:`kubealign_components.data.chunks.merge`."""
    return merge(parts, chunks, output)
