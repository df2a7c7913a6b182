"""Principles: what completions are judged by, in files of their own, checked and versioned.

A set is a YAML file, shipped (``judging``, ``rl``, ``interventions``) or the user's own::

    schema: kubealign.principles/v1
    name: judging
    version: 1
    principles:
      - name: Concise
        positive: The response comes to the point at once.
        negative: The response takes long to reach the point.   # optional
        weight: 1                       # optional, for weighted draws
        tags: [general]                 # optional: general, reasoning, red-teaming
        stages: [judge, reward_model]   # judge, reward_model, rl
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields

from kubealign_components.config import require
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.origins import note_origin
from kubealign_components.data.packaged import check_members, checked_text, parse_document, read_shipped
from kubealign_components.errors import ConfigError
from kubealign_components.json_types import JsonObject

SCHEMA = "kubealign.principles/v1"
SHIPPED = ("judging", "rl", "interventions")
GENERAL, REASONING, RED_TEAMING = "general", "reasoning", "red-teaming"
TAGS = (GENERAL, REASONING, RED_TEAMING)
"""What a principle is about; the question types of prompts have the same names."""
JUDGE, REWARD_MODEL, RL = "judge", "reward_model", "rl"
STAGES = (JUDGE, REWARD_MODEL, RL)
"""What a principle is for: asking the judge, training the reward model, rollouts of PPO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Principle:
    """One quality that a completion can have or lack."""

    name: str
    positive: str
    """What a completion is like that has the quality."""
    negative: str | None = None
    """What a completion is like that has the opposite quality; null when the principle cannot be negated."""
    weight: float = 1.0
    """Relative weight in weighted draws."""
    tags: tuple[str, ...] = (GENERAL,)
    """Some of :data:`TAGS`."""
    stages: tuple[str, ...] = STAGES
    """Some of :data:`STAGES`."""

    def statement(self, *, negated: bool = False) -> str:
        """The text that a model is shown.

        Raises:
            ConfigError: negated, and the principle has no negative statement.
        """
        if not negated:
            return self.positive
        if self.negative is None:
            raise ConfigError(
                f"principle {self.name!r}: negative",
                None,
                "a negative statement, since principles are negated",
            )
        return self.negative


@dataclass(frozen=True, kw_only=True, slots=True)
class PrincipleSet:
    """Principles of one file, in its order; names are unique."""

    name: str
    version: int
    """Raised by its author whenever a principle changes."""
    principles: tuple[Principle, ...]

    def __iter__(self) -> Iterator[Principle]:
        return iter(self.principles)

    def __len__(self) -> int:
        return len(self.principles)

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(principle.name for principle in self.principles)

    def get(self, name: str) -> Principle:
        """The principle of that name.

        Raises:
            ConfigError: the set has none.
        """
        principle = next((principle for principle in self.principles if principle.name == name), None)
        if principle is None:
            raise ConfigError("principle", name, f"one of the set {self.name!r}: {', '.join(self.names)}")
        return principle

    def of_stage(self, stage: str) -> PrincipleSet:
        """The set with the principles for ``stage`` alone; possibly none."""
        chosen = tuple(p for p in self.principles if stage in p.stages)
        return PrincipleSet(name=self.name, version=self.version, principles=chosen)

    def only(self, names: Collection[str]) -> PrincipleSet:
        """The set with the named principles alone, in the set's order.

        Raises:
            ConfigError: the set lacks one of them.
        """
        named = {self.get(name) for name in names}
        chosen = tuple(p for p in self.principles if p in named)
        return PrincipleSet(name=self.name, version=self.version, principles=chosen)

    def digest(self) -> str:
        """SHA-256 of the content: name, version and every field of every principle, in order."""
        return digest(asdict(self))

    def identity(self) -> JsonObject:
        """What a recipe says of the set."""
        return {"name": self.name, "version": self.version, "digest": self.digest()}

    def statements(self) -> list[list[str]]:
        """Name and digest of the positive statement of each principle, in order.

        All that a recipe says of principles where a model is shown nothing else of them, so that work
        still holds when weights or negative statements have been edited.
        """
        return [[principle.name, digest(principle.positive)[:32]] for principle in self]


def load_principles(source: str) -> PrincipleSet:
    """The set at ``source``: a shipped name, a path, or a ``gs://`` or ``s3://`` URI.

    Raises:
        ConfigError: nothing there, or a file that breaks the format; names the file, the principle and
            the field.
    """
    read = read_shipped(source, parameter="principles", kind="set", folder="principles", names=SHIPPED)
    principles = parse_principles(*read)
    note_origin(principles.digest(), source)
    return principles


def parse_principles(content: bytes, file: str) -> PrincipleSet:
    """The set that the YAML text ``content`` describes; ``file`` is named in errors.

    Raises:
        ConfigError: the text breaks the format.
    """
    body = parse_document(content, file, schema=SCHEMA, members=("principles",))
    listed = body["principles"]
    require(isinstance(listed, list) and bool(listed), f"{file}: principles", listed, "a list of principles")
    principles = tuple(_principle(item, number, file) for number, item in enumerate(listed, start=1))
    for number, principle in enumerate(principles):
        earlier = {p.name.casefold() for p in principles[:number]}
        where = f"{file}: principle {principle.name!r} (number {number + 1}): name"
        require(principle.name.casefold() not in earlier, where, principle.name, "a name of its own")
    return PrincipleSet(name=body["name"], version=body["version"], principles=principles)


def _principle(item: object, number: int, file: str) -> Principle:
    name = item.get("name") if isinstance(item, Mapping) else None
    where = f"{file}: principle {name!r} (number {number})"
    check_members(item, [f.name for f in fields(Principle)], ("name", "positive"), where)
    assert isinstance(item, Mapping)
    negative = item.get("negative")
    return Principle(
        name=checked_text(item["name"], f"{where}: name"),
        positive=checked_text(item["positive"], f"{where}: positive"),
        negative=None if negative is None else checked_text(negative, f"{where}: negative"),
        weight=_weight(item.get("weight", 1.0), f"{where}: weight"),
        tags=_some_of(item.get("tags", [GENERAL]), TAGS, f"{where}: tags"),
        stages=_some_of(item.get("stages", list(STAGES)), STAGES, f"{where}: stages"),
    )


def _weight(value: object, where: str) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    require(0 < number < math.inf, where, value, "a positive number")
    return float(number)


def _some_of(value: object, choices: Collection[str], where: str) -> tuple[str, ...]:
    fits = isinstance(value, list) and bool(value) and all(item in choices for item in value)
    require(fits, where, value, f"a list of some of {', '.join(choices)}")
    assert isinstance(value, list)
    return tuple(dict.fromkeys(value))
