"""Which files of a dataset folder make up a split, by the Hugging Face hub's rules.

In order: the ``configs`` of the dataset card (README.md), file names like
``data/train-00000-of-00002.parquet``, a split's name in a folder's or a file's name, and else all
files are the split ``train``. See https://huggingface.co/docs/datasets/repository_structure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from kubealign_components.data.sources.file_readers import is_readable
from kubealign_components.errors import ConfigError

CARD = "README.md"
_SHARD = re.compile(r"^data/(?P<split>.+)-\d{5}-of-\d{5}.*\.[^/]*$")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def splits_of(
    names: Iterable[str], card: str | None = None, subset: str | None = None
) -> dict[str, list[str]]:
    """The data files of every split.

    Args:
        names: files of the folder, relative to it.
        card: text of the dataset card, if there is one.
        subset: which of the card's configurations to use.

    Raises:
        ConfigError: ``subset`` names no configuration, or is needed and not given.
    """
    data = sorted(n for n in names if is_readable(n) and _is_data(n))
    config = _configuration(card, subset)
    if config is not None:
        return _declared(data, config)
    named = [(n, m["split"]) for n in data if (m := _SHARD.match(n))]
    if named:
        return _grouped(named)
    for parts in (_folder_words, _file_words):
        found = [(n, split) for n in data for split in _keyword_splits(parts(n))]
        if found:
            return _grouped(found)
    return {"train": data} if data else {}


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return not hidden and path.name not in _NOT_DATA


def _configuration(card: str | None, subset: str | None) -> Mapping[str, Any] | None:
    listed = [c for c in _front_matter(card).get("configs") or [] if isinstance(c, Mapping)]
    listed = [c for c in listed if c.get("data_files") or c.get("data_dir")]
    names = [str(c.get("config_name", "default")) for c in listed]
    if subset is not None:
        if subset not in names:
            raise ConfigError(
                "subset", subset, f"a configuration of the dataset: {', '.join(names) or 'none'}"
            )
        return listed[names.index(subset)]
    if len(listed) < 2:
        return listed[0] if listed else None
    default = [c for c, name in zip(listed, names) if c.get("default") or name == "default"]
    if not default:
        raise ConfigError("subset", None, f"one of the dataset's configurations: {', '.join(names)}")
    return default[0]


def _front_matter(card: str | None) -> Mapping[str, Any]:
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---", card or "", re.DOTALL)
    try:
        body = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return body if isinstance(body, Mapping) else {}


def _declared(data: Sequence[str], config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Files of one configuration of the card: patterns a split, or a folder to look in."""
    folder = str(config.get("data_dir") or "").strip("/")
    inside = [n for n in data if n.startswith(f"{folder}/")] if folder else list(data)
    declared = config.get("data_files")
    if not declared:
        return _below(folder, inside)
    if isinstance(declared, list) and all(isinstance(entry, Mapping) for entry in declared):
        wanted = {str(entry.get("split", "train")): entry.get("path") for entry in declared}
    else:
        wanted = dict(declared) if isinstance(declared, Mapping) else {"train": declared}
    return {split: _matching(inside, patterns, folder) for split, patterns in wanted.items()}


def _below(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    found = splits_of(n.removeprefix(f"{folder}/") for n in names)
    return {split: [f"{folder}/{n}" for n in files] for split, files in found.items()}


def _matching(names: Sequence[str], patterns: object, folder: str) -> list[str]:
    listed = patterns if isinstance(patterns, list) else [patterns]
    prefix = f"{folder}/" if folder else ""
    expressions = [re.compile(_translate(prefix + str(p).removeprefix("./"))) for p in listed if p]
    return [n for n in names if any(e.fullmatch(n) for e in expressions)]


def _translate(pattern: str) -> str:
    """A glob as a regular expression: ``*`` stays within a folder, ``**`` does not."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(p) or (p.replace("[!", "[^") if p.startswith("[") else re.escape(p)) for p in pieces
    )


def _folder_words(name: str) -> list[str]:
    return list(PurePosixPath(name).parts[:-1])


def _file_words(name: str) -> list[str]:
    return [PurePosixPath(name).name]


def _keyword_splits(words: Sequence[str]) -> list[str]:
    found = {piece for word in words for piece in re.split(r"[-._ 0-9]+", word)}
    return [split for split, keywords in _KEYWORDS.items() if found.intersection(keywords)]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, split in pairs:
        groups.setdefault(split, []).append(name)
    return groups
