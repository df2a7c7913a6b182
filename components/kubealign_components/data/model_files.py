"""Which file of a model directory is what, by its name.

Only weights have names that can be listed. What a model needs beside them (tokenizers, templates, settings
of processors) is an open set: a file belongs to it unless it is known for something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath

from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FOLDER = "adapter"
"""Of a trained model: the adapters alone, on the policy, and the head."""
GENERATION_CONFIG = "generation_config.json"

_FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""What transformers looks for, first to last: one file, or shards that an index lists."""
_WEIGHTS = frozenset(
    [
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".keras",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".ot",
        ".gguf",
        ".ggml",
        ".tflite",
        ".mlmodel",
        ".pb",
        ".npy",
        ".npz",
        ".pkl",
        ".pickle",
        ".nemo",
        ".engine",
        ".distcp",
    ]
)
_CODE = frozenset([".py", ".pyc", ".so"])
_DATASET = frozenset([".parquet", ".arrow"])
"""A model of a run is a dataset as well, whose rows are the training log."""
_DOCUMENTS = frozenset(
    [".md", ".rst", ".pdf", ".html", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4"]
)
_LEGAL = re.compile(r"(licen[cs]e|notice|copying|readme|use_policy)\b", re.IGNORECASE)


def beside_weights(names: Iterable[str]) -> list[str]:
    """The files that a model made from this one takes over as they are, ascending.

    That is all but weights and their index, code, hidden files, what is ours to write anew (the config, and
    the manifest and rows of a model that a run made), and folders of other models.

    Args:
        names: paths below the model's folder, with slashes.
    """
    names = list(names)
    others = _model_folders(names)
    rewritten = {CONFIG, ADAPTER_CONFIG, "manifest.json"}
    return sorted(
        name
        for name in names
        if name not in rewritten and not _is_hidden(name) and not _is_below(name, others)
        if PurePosixPath(name).suffix not in _WEIGHTS | _CODE | _DATASET
        if not name.endswith(".index.json")
    )


def deciding_tokens(names: Iterable[str]) -> list[str]:
    """The files that can decide which ids a text gets: tokenizers, templates and whatever may be either.

    Args:
        names: paths below the model's folder, with slashes.
    """
    return [
        name
        for name in beside_weights(names)
        if name != GENERATION_CONFIG
        and PurePosixPath(name).suffix.lower() not in _DOCUMENTS
        and not _LEGAL.match(PurePosixPath(name).name)
    ]


def weights_among(names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """The weight files at the top of a folder that are loaded from it, ascending; none where it has none.

    Args:
        names: paths below the folder, with slashes.
        read: gives the bytes of one of them.

    Raises:
        EngineError: the index of the shards cannot be read, or lists one that is not there.
    """
    if ADAPTER_CONFIG in names and CONFIG not in names:
        return _adapter_weights(names)
    for stem, suffix in _FORMATS:
        index = f"{stem}{suffix}.index.json"
        if f"{stem}{suffix}" in names:
            return [f"{stem}{suffix}"]
        if index in names:
            return _indexed(index, read(index), names)
        if shards := [name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+{re.escape(suffix)}", name)]:
            raise EngineError(
                f"{index} is missing beside {min(shards)}: it says which shards make up the model"
            )
    return []


def needed(names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """The files that are worth fetching, ascending: weights in one format, and what is no weights.

    Args:
        names: paths below the model's folder, with slashes.
        read: gives the bytes of one of them.

    Raises:
        EngineError: as :func:`weights_among`.
    """
    kept = set(weights_among(names, read))
    for folder in _adapter_folders(names):
        own = [name.removeprefix(f"{folder}/") for name in names if _is_below(name, [folder])]
        kept |= {f"{folder}/{name}" for name in _adapter_weights(own)}
    skipped = _WEIGHTS | _DATASET
    others = {n for n in names if PurePosixPath(n).suffix not in skipped and not _is_hidden(n)}
    return sorted(kept | others)


def without_weights(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no weights of this or of another model, nor their index."""
    return [
        name
        for name in names
        if PurePosixPath(name).suffix not in _WEIGHTS and not name.endswith(".index.json")
    ]


def files_below(folder: Path) -> list[str]:
    """Paths of all files below ``folder``, with slashes, ascending."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _adapter_weights(names: Iterable[str]) -> list[str]:
    """Weights of an adapter, its head included."""
    top = sorted(name for name in names if "/" not in name)
    return [n for n in top if n.endswith(".safetensors")] or [n for n in top if n.endswith(".bin")]


def _adapter_folders(names: Iterable[str]) -> list[str]:
    return [str(PurePosixPath(n).parent) for n in names if n.endswith(f"/{ADAPTER_CONFIG}")]


def _model_folders(names: Iterable[str]) -> list[str]:
    """Folders below that hold something with a config of its own: a checkpoint, an export, adapters."""
    ends = (f"/{CONFIG}", f"/{ADAPTER_CONFIG}")
    return [str(PurePosixPath(name).parent) for name in names if name.endswith(ends)]


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)


def _indexed(index: str, body: bytes, names: Collection[str]) -> list[str]:
    try:
        shards = sorted(set(json.loads(body)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{index} has no weight_map from weights to files: {error!r}") from error
    if missing := [shard for shard in shards if shard not in names]:
        raise EngineError(
            f"{index} lists {len(shards)} shards, and {len(missing)} of them are not beside it: "
            f"{', '.join(missing[:3])}; fetch the model again"
        )
    return shards


def named_dtype(config: JsonObject) -> str:
    """What a model's config says that its weights are in; empty where it does not say."""
    said = (part.get(name) for part in (config, text_config(config)) for name in ("dtype", "torch_dtype"))
    return next((str(name) for name in said if name and name != "auto"), "")


def text_config(config: JsonObject) -> JsonObject:
    """The part of a model's config that is about text."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config
