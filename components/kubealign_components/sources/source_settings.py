"""What a run file says of a source: where its rows are, and what its columns and roles are called."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

from kubealign_components.config import require, require_choice
from kubealign_components.data.licenses import joined, parse_license
from kubealign_components.sources.messages import ROLES

MEANINGS = (
    *("prompt", "messages", "conversations", "instruction", "input", "question", "context", "history"),
    *(
        "chosen",
        "rejected",
        "completion",
        "completions",
        "output",
        "response",
        "answer",
        "answers",
        "solution",
    ),
    *("system", "tools", "label", "score", "score_chosen", "score_rejected", "model", "choice"),
    *("chosen_model", "rejected_model", "candidate_0", "candidate_1", "message_id", "parent_id", "text"),
    *("role", "lang", "metadata"),
)
"""What a column can be mapped to; ``metadata`` for one that shall mean nothing else."""
ROLE_MEANINGS = ("system", "user", "assistant", "tool", "function_call")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """Where the rows of one source are; stages add what they need to know of it."""

    SHORTHAND: ClassVar[str] = "uri"

    uri: str
    """A file or folder (local, ``gs://``, ``s3://``), a folder that ``save_to_disk`` wrote, or a hub id."""
    name: str = ""
    """What its rows are called in the ``source`` column; ``mix`` weighs by it. Left out: the name of the
    file or folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the commit it stands for is recorded."""
    split: str = "train"
    """Which split of a folder, saved dataset or hub dataset; a single file is read whole."""
    subset: str | None = None
    """Which configuration of the dataset card, when it has several."""
    columns: dict[str, str] = field(default_factory=dict)
    """What columns with names of one's own are: ``{question_text: prompt, good: chosen}``."""
    roles: dict[str, str] = field(default_factory=dict)
    """What roles with names of one's own are: ``{Patient: user, Doctor: assistant}``."""
    json_columns: tuple[str, ...] = ()
    """Columns of text that is JSON; elsewhere text is text, but for CSV and TSV files."""
    license: str = ""
    """Under which licence it is: an SPDX identifier such as CC-BY-4.0, or several joined by AND. What the
    source's own card says holds, too; where neither says anything, the licence is unknown."""
    text: str = "lines"
    """A text file is one prompt a line (``lines``), or one in all (``file``)."""

    def __post_init__(self) -> None:
        require(bool(self.uri.strip()), "sources.uri", self.uri, "a path, gs:// or s3:// URI, or hub id")
        require(not self.name or bool(self.name.strip()), "sources.name", self.name, "a name for the source")
        if self.license:
            object.__setattr__(self, "license", joined(parse_license(self.license, "sources.license")))
        require_choice("sources.text", self.text, ("lines", "file"))
        for column, meaning in self.columns.items():
            require_choice(f"sources.columns.{column}", meaning, MEANINGS)
        for role, meaning in self.roles.items():
            require_choice(f"sources.roles.{role}", meaning, ROLE_MEANINGS)
        meant = Counter(meaning for meaning in self.columns.values() if meaning != "metadata")
        double = [meaning for meaning, count in meant.items() if count > 1]
        require(not double, "sources.columns", self.columns, f"one column for each of {', '.join(double)}")

    @property
    def role_names(self) -> Mapping[str, str]:
        """Meanings of role names in lower case, those of one's own before the known ones."""
        return ROLES | {name.lower(): ROLES[meaning] for name, meaning in self.roles.items()}

    def renamed(self, row: Mapping[object, object]) -> Mapping[object, object]:
        """``row`` with its columns under the names of what they mean."""
        if not self.columns:
            return row
        kept = {k: v for k, v in row.items() if k not in self.columns}
        meant = {m: row[c] for c, m in self.columns.items() if m != "metadata" and c in row}
        aside = {f"source_{c}": row[c] for c, m in self.columns.items() if m == "metadata" and c in row}
        return kept | aside | meant


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedSource(SourceSettings):
    """A source of prompts, which ``mix`` weighs."""

    weight: float = 1.0
    """Relative weight of the source, for ``mix``."""

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        require(
            math.isfinite(self.weight) and self.weight > 0, "sources.weight", self.weight, "a positive number"
        )


S = TypeVar("S", bound=SourceSettings)


def named_sources(sources: Sequence[S]) -> tuple[S, ...]:
    """``sources`` with a name for each: the last parts of its place, as many as tell it from the others.

    Raises:
        ConfigError: two sources were given one name.
    """
    given = Counter(source.name for source in sources if source.name)
    double = [name for name, count in given.items() if count > 1]
    require(not double, "sources", double, "a different name for every source")
    taken, named = set(given), []
    for source in sources:
        name = source.name or _derived(source.uri, taken)
        taken.add(name)
        named.append(source if source.name else replace(source, name=name))
    return tuple(named)


def require_fraction(value: float) -> None:
    """Raise :class:`ConfigError` unless ``max_bad_fraction`` is one."""
    require(0 <= value <= 1, "max_bad_fraction", value, "a fraction from 0 to 1")


def _derived(uri: str, taken: set[str]) -> str:
    parts = [
        part for part in re.split(r"[/\\]+", uri.partition("://")[2] or uri) if part not in ("", ".", "..")
    ]
    words = [re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts] or ["source"]
    words[-1] = words[-1].partition(".")[0] or words[-1]
    names = ["-".join(words[-count:]) for count in range(1, len(words) + 1)]
    free = next((name for name in names if name not in taken), None)
    number = 2
    while free is None or free in taken:
        free, number = f"{names[0]}-{number}", number + 1
    return free
