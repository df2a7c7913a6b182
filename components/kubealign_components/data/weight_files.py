"""Whether files of weights are whole and fit their config, told from their headers: no weight is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kubealign_components.data.model_files import text_config
from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
"""A pointer is shorter than this, by its specification."""
_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, a little-endian integer."""
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""How torch.save began a file before it wrote archives."""
_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "gpt_neox.embed_in.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
)
"""What the token embedding is called in a file, shape (vocab_size, hidden size)."""


def require_fetched(folder: Path, names: Iterable[str]) -> None:
    """Raise EngineError for a file that stands for another one, as a clone without Git LFS leaves them.

    Args:
        folder: of a model.
        names: paths below it.
    """
    for name in names:
        path = folder / name
        if path.stat().st_size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER):
            raise EngineError(
                f"{path} is a pointer of Git LFS and not the file itself; run git lfs pull in {folder}, or "
                "download the model again"
            )


def check_weights(folder: Path, names: Sequence[str], config: JsonObject) -> None:
    """Look at the headers of the files of weights ``names`` in ``folder``.

    Args:
        folder: of a model or adapter.
        names: files in it.
        config: of the model; empty for an adapter.

    Raises:
        EngineError: a file is cut, is none of its format, or has an embedding that is not the config's.
    """
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            _check_embedding(path, _shapes(path), config)
        elif not zipfile.is_zipfile(path) and not _begins_with(path, _LEGACY_TORCH):
            raise EngineError(f"{path} is cut, or no file of torch.save; fetch the model again")


def _shapes(path: Path) -> Mapping[str, Sequence[int]]:
    """The shape of every weight in a safetensors file, whose length is that of all of them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = file.read(length) if length <= size else b""
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        shapes = {name: entry["shape"] for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EngineError(f"{path} is cut, or no safetensors file; fetch the model again") from error
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if size != expected:
        raise EngineError(
            f"{path} has {size} bytes, its header says {expected}: the file is cut or spoilt; fetch the "
            "model again"
        )
    return shapes


def _check_embedding(path: Path, shapes: Mapping[str, Sequence[int]], config: JsonObject) -> None:
    rows = text_config(config).get("vocab_size")
    for name in _EMBEDDINGS:
        if name in shapes and isinstance(rows, int) and shapes[name][0] != rows:
            raise EngineError(
                f"{path} has an embedding of {shapes[name][0]} tokens ({name}), its config a vocab_size of "
                f"{rows}; save the model again with the transformers that resized it"
            )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start
