"""Whether files of weights are whole and fit their config, told from their headers: no weight is read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence, Set
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
_LAYERS = {"embed_tokens": "layers", "wte": "h", "embed_in": "layers"}
"""What the layers are called beside an embedding of that name."""
_INDEX = "model.safetensors.index.json"


def require_fetched(folder: Path, names: Iterable[str]) -> None:
    """Raise EngineError for a file that stands for another one, as a clone without Git LFS leaves them.

    Args:
        folder: of a model.
        names: paths below it.
    """
    for name in names:
        path = folder / name
        if is_lfs_pointer(path):
            raise EngineError(
                f"{path} is a pointer of Git LFS and not the file itself; run git lfs pull in {folder}, or "
                "download the model again"
            )


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file stands for another one."""
    return path.stat().st_size < _POINTER_BYTES and path.read_bytes().startswith(_POINTER)


def check_weights(folder: Path, names: Sequence[str], config: JsonObject) -> None:
    """Look at the headers of the files of weights ``names`` in ``folder``.

    Args:
        folder: of a model or adapter.
        names: files in it.
        config: of the model; empty for an adapter.

    Raises:
        EngineError: a file is cut, is none of its format, lacks what the index says that it holds, or has an
            embedding or layers that are not the config's.
    """
    held: dict[str, Mapping[str, Sequence[int]]] = {}
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            held[name] = _shapes(path)
            _check_embedding(path, held[name], config)
        elif not zipfile.is_zipfile(path) and not _begins_with(path, _LEGACY_TORCH):
            raise EngineError(f"{path} is cut, or no file of torch.save; fetch the model again")
    if len(held) == len(names):
        _check_index(folder, held)
        _check_layers(folder, {weight for weights in held.values() for weight in weights}, config)


def first_dtype(path: Path) -> str:
    """What the first matrix of a safetensors file is in, by safetensors' name; empty for another format."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return ""
    with safe_open(path, "np") as file:
        names = sorted(file.keys())
        return str(file.get_slice(names[0]).get_dtype()) if names else ""


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


def _check_index(folder: Path, held: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Hold the shards to the index that names them."""
    if not (folder / _INDEX).is_file() or "model.safetensors" in held:
        return
    index = json.loads((folder / _INDEX).read_bytes())["weight_map"]
    absent = [(weight, shard) for weight, shard in index.items() if weight not in held.get(shard, {})]
    if absent:
        weight, shard = absent[0]
        raise EngineError(
            f"{folder / _INDEX} says that {weight} is in {shard}, where it is not ({len(absent)} of "
            f"{len(index)} weights are not where it says); fetch the model again, or save it again"
        )


def _check_layers(folder: Path, weights: Set[str], config: JsonObject) -> None:
    """Refuse weights that lack layers of the config's, where the embedding tells what layers are called."""
    text = text_config(config)
    layers = text.get("num_hidden_layers", text.get("n_layer"))
    embedding = next((name for name in _EMBEDDINGS if name in weights), None)
    if embedding is None or not isinstance(layers, int):
        return
    *above, own, _ = embedding.split(".")
    start = ".".join([*above, _LAYERS[own], ""])
    layer_names = {name.removeprefix(start).partition(".")[0] for name in weights if name.startswith(start)}
    if absent := [number for number in range(layers) if str(number) not in layer_names]:
        raise EngineError(
            f"the weights in {folder} lack {len(absent)} of the {layers} layers that its config has "
            f"({', '.join(start + str(number) for number in absent[:3])}): they would be random; fetch the "
            "model again, or mend num_hidden_layers in its config.json"
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start
