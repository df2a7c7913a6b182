"""What workers have committed to a work prefix."""

from __future__ import annotations

import io

import pyarrow.parquet as pq

from kubealign_components.data.slice_index import ROW_ID, SliceIndex
from kubealign_components.store import join, store_for


def slice_folders(work: str) -> list[str]:
    """Folders of slices below ``work``: one for each stage and its settings."""
    return sorted({o.uri.rsplit("/data/", 1)[0] for o in store_for(work).list(work) if "/data/" in o.uri})


def committed_rows(work: str) -> list[str]:
    """Prompt ids of all committed slices, each as often as results of it were committed."""
    rows: list[str] = []
    for folder in slice_folders(work):
        for name in SliceIndex(folder).names():
            content = store_for(folder).read(join(folder, "data", f"{name}.parquet"))
            rows += set(pq.read_table(io.BytesIO(content))[ROW_ID].to_pylist())
    return sorted(rows)
