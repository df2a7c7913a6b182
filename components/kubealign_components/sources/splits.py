"""Which files of a dataset folder make up a split, by the Hugging Face hub's rules.

In order: the ``configs`` of the dataset card (README.md), file names like
``data/train-00000-of-00002.parquet``, a split's name in a folder's or a file's name, and else all
files are the split ``train``. See https://huggingface.co/docs/datasets/repository_structure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from kubealign_components.data.front_matter import CARD, front_matter
from kubealign_components.errors import ConfigError
from kubealign_components.sources.file_readers import is_readable, kind_of

DEFAULT_SPLIT = "train"
"""Of files that do not say which split they are."""
MAX_PATTERNS = 1000
"""Most patterns of a split in a dataset card."""
MAX_PATTERN_CHARS = 1000
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
    # A text file beside data in another form is a licence or a note.
    data = [n for n in data if kind_of(n) != ".txt"] or data
    named = [(n, m["split"]) for n in data if (m := _SHARD.match(n))]
    if named:
        return _grouped(named)
    for parts in (_folder_words, _file_words):
        pairs = [(n, split) for n in data for split in _keyword_splits(parts(n))]
        if pairs:
            return _grouped(pairs)
    return {DEFAULT_SPLIT: data} if data else {}


def unread_of(names: Iterable[str], splits: Mapping[str, Sequence[str]], card: str | None) -> tuple[str, ...]:
    """Files of rows that none of the ``splits`` holds, where no card says what they are: beside files with
    names of splits, such as train.jsonl, others are read in none."""
    if front_matter(card).get("configs"):
        return ()
    read = {name for files in splits.values() for name in files}
    data = (name for name in names if is_readable(name) and _is_data(name) and kind_of(name) != ".txt")
    return tuple(sorted(name for name in data if name not in read))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return not hidden and path.name not in _NOT_DATA


def _configuration(card: str | None, subset: str | None) -> Mapping[str, object] | None:
    declared = front_matter(card).get("configs")
    listed = [c for c in declared if isinstance(c, Mapping)] if isinstance(declared, list) else []
    listed = [c for c in listed if c.get("data_files") or c.get("data_dir")]
    names = [_word(c.get("config_name", "default")) for c in listed]
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


def _declared(data: Sequence[str], config: Mapping[str, object]) -> dict[str, list[str]]:
    """Files of one configuration of the card: patterns a split, or a folder to look in."""
    folder = _word(config.get("data_dir") or "").strip("/")
    inside = [n for n in data if n.startswith(f"{folder}/")] if folder else list(data)
    declared = config.get("data_files")
    if not declared:
        return _below(folder, inside)
    if isinstance(declared, list) and all(isinstance(entry, Mapping) for entry in declared):
        patterns_of = {_word(entry.get("split", "train")): entry.get("path") for entry in declared}
    else:
        patterns_of = dict(declared) if isinstance(declared, Mapping) else {"train": declared}
    return {_word(split): _matching(inside, patterns, folder) for split, patterns in patterns_of.items()}


def _word(value: object) -> str:
    """A name in the card."""
    if not isinstance(value, str | int | float) or len(str(value)) > MAX_PATTERN_CHARS:
        raise ConfigError(CARD, type(value).__name__, "names of splits and folders that are words")
    return str(value)


def _below(folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    splits = splits_of(n.removeprefix(f"{folder}/") for n in names)
    return {split: [f"{folder}/{n}" for n in files] for split, files in splits.items()}


def _matching(names: Sequence[str], patterns: object, folder: str) -> list[str]:
    listed = patterns if isinstance(patterns, list) else [patterns]
    prefix = f"{folder}/" if folder else ""
    if len(listed) > MAX_PATTERNS:
        raise ConfigError(CARD, len(listed), f"at most {MAX_PATTERNS} patterns of files in data_files")
    globs = [_pieces(prefix + _pattern(p).removeprefix("./")) for p in listed if p]
    return [n for n in names if any(matches(n, glob) for glob in globs)]


def _pattern(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATTERN_CHARS:
        shown = value[:80] if isinstance(value, str) else type(value).__name__
        raise ConfigError(CARD, shown, f"patterns of at most {MAX_PATTERN_CHARS} characters in data_files")
    return value


def _pieces(pattern: str) -> list[str]:
    """A glob in pieces: ``**/``, ``**``, ``*``, ``?``, ``[…]`` and single characters."""
    return re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.DOTALL)


def matches(name: str, glob: Sequence[str]) -> bool:
    """Whether ``name`` is what ``glob`` describes: ``*`` stays within a folder, ``**`` does not.

    All places in the glob that fit what has been read are followed at once, so that the time is at most
    the length of the name times that of the glob, whatever both are.
    """
    states = _closure({0}, glob, at_start=True)
    for position, character in enumerate(name):
        moved = set()
        for state in states:
            if state < len(glob):
                moved |= _step(state, glob[state], character)
        states = _closure(moved, glob, at_start=name[position] == "/")
    return len(glob) in states


def _step(state: int, piece: str, character: str) -> set[int]:
    """Places after ``character`` was read at ``state``."""
    if piece in ("**", "**/"):
        return {state}
    if piece == "*":
        return {state} if character != "/" else set()
    if piece == "?":
        return {state + 1} if character != "/" else set()
    fits = _in_class(piece[1:-1], character) if len(piece) > 1 else piece == character
    return {state + 1} if fits else set()


def _closure(states: set[int], glob: Sequence[str], *, at_start: bool) -> set[int]:
    """``states``, and those after wildcards that may stand for nothing more."""
    closure, waiting = set(states), list(states)
    while waiting:
        state = waiting.pop()
        piece = glob[state] if state < len(glob) else ""
        # "**/" stands for whole folders: it may end only where a name of one begins.
        ends = piece in ("*", "**") or (piece == "**/" and at_start)
        if ends and state + 1 not in closure:
            closure.add(state + 1)
            waiting.append(state + 1)
    return closure


def _in_class(members: str, character: str) -> bool:
    """Whether ``character`` is one of a glob's ``[a-z]`` or, after ``!``, none of them."""
    negated = members.startswith("!") and len(members) > 1
    pairs = re.findall(r"(.)-(.)|(.)", members[negated:], re.DOTALL)
    listed = any(first <= character <= last if first else character == one for first, last, one in pairs)
    return character != "/" and listed is not negated


def _folder_words(name: str) -> list[str]:
    return list(PurePosixPath(name).parts[:-1])


def _file_words(name: str) -> list[str]:
    return [PurePosixPath(name).name]


def _keyword_splits(words: Sequence[str]) -> list[str]:
    pieces = {piece for word in words for piece in re.split(r"[-._ 0-9]+", word)}
    return [split for split, keywords in _KEYWORDS.items() if pieces.intersection(keywords)]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, split in pairs:
        groups.setdefault(split, []).append(name)
    return groups
