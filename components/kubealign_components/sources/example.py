"""What a row says, whatever its format: the columns it has, and the example that comes of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from kubealign_components.data.answers import reference_answer
from kubealign_components.sources.messages import Message, Reading
from kubealign_components.sources.values import (
    Malformed,
    is_media,
    is_missing,
    number_of,
    small_value,
    verdict_of,
)

_TELLING = re.compile(
    r"(?:\A|[_ -])(?:response|completion|answer|reply|chosen|rejected|output|better|winner"
    r"|preferred|preference|human_ref|rank(?:ing)?|reasoning|thinking|thought|cot|rationale"
    r"|score|rating|reward|label|vote|margin|feedback|thumb|verdict|context|passage|document"
    r"|dispreferred|accepted|win|lose|loser|winning|losing|positive|negative|y_[wl]"
    r"|truth|gold|target|helpfulness|quality|grade|point|star)s?\d*"
    r"(?:[_ -]|\Z)",
    re.IGNORECASE,
)
"""Names of columns that a file of prompts, answers or preferences means something by."""
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offline:
    """A completion that came with the source."""

    messages: list[Message]
    label: str | None = None
    """chosen, rejected, or null."""
    score: float | None = None
    model: str | None = None


@dataclass(kw_only=True, slots=True)
class Example:
    """What a row of any format says."""

    messages: list[Message]
    completions: list[Offline] = field(default_factory=list)
    whole: bool = False
    """One unusable completion makes the row unusable, as in a pair."""
    tools: list[dict[str, Any]] | None = None
    answers: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Completions that were left out, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """What the row holds and the example does not, by name."""


class Columns:
    """A row whose columns are taken by name; what nobody took is metadata, or noted.

    Raises:
        Malformed: not_text, when a column holds pictures, sounds or films, without which the text is
            another.
    """

    def __init__(self, row: Mapping[str, object], reading: Reading | None = None) -> None:
        self._row = row
        self._taken: set[str] = set()
        self.reading = reading or Reading()
        if any(is_media(str(name), value) for name, value in row.items()):
            raise Malformed("not_text")

    def has(self, name: str) -> bool:
        """Whether the column is there and not missing."""
        return self.peek(name) is not None

    def names(self) -> set[str]:
        """The columns that are there and not missing."""
        return {str(name) for name, value in self._row.items() if not is_missing(value)}

    def peek(self, name: str) -> object:
        """The column, without taking it; None when it is missing."""
        value = self._row.get(name)
        return None if is_missing(value) else value

    def take(self, *names: str) -> Any:
        """The first of the columns that is there and not missing."""
        name = next((n for n in names if self.has(n)), None)
        if name is None:
            return None
        self._taken.add(name)
        return self._row[name]

    def number(self, *names: str) -> float | None:
        """The first of the columns as a number; noted when it is none."""
        return self.read_number(self.take(*names))

    def read_number(self, value: object) -> float | None:
        """A score as a number; noted when something stands there that is none."""
        number = number_of(value)
        if number is None and not is_missing(value) and value != "":
            self.reading.notes["scores_not_understood"] += 1
        return number

    def verdict(self, *names: str) -> str | None:
        """The first of the columns as a verdict; noted, and left to the metadata, when it is none."""
        for name in filter(self.has, names):
            verdict = verdict_of(self._row[name])
            self.reading.scales.verdict(name, self._row[name])
            if verdict is not None:
                self._taken.add(name)
                return verdict
            self.reading.notes["labels_not_understood"] += 1
        return None

    def rest(self) -> dict[str, Any]:
        """The other columns that are small scalars; those that are not are noted, and those whose names say
        that they hold an answer or a verdict."""
        kept = {}
        for name, value in self.others():
            if _TELLING.search(name) or _TELLING.search(_CAMEL.sub("_", name)):
                self.reading.notes[f"column_not_understood_{name}"] += 1
            small = small_value(value)
            if small is not None:
                kept[name] = small
            elif value not in ("", [], {}):
                self.reading.notes[f"column_not_kept_{name}"] += 1
        return kept

    def note_rest(self, kind: str) -> None:
        """Note the other columns of an object in a row, of which none is kept."""
        for name, value in self.others():
            if value not in ("", [], {}):
                self.reading.notes[f"{kind}_not_kept_{name}"] += 1

    def others(self) -> Iterator[tuple[str, object]]:
        """The columns that nobody took, and that are not missing."""
        return ((str(k), v) for k, v in self._row.items() if k not in self._taken and not is_missing(v))


def answers_of(value: object) -> list[str]:
    """Verifiable answers as text, one or a list of them; numbers without a needless ``.0``.

    Of a solution that ends with its answer, such as GSM8K's and MATH's, that answer
    (:func:`~kubealign_components.data.answers.reference_answer`). Of SQuAD's objects, their ``text``;
    of TriviaQA's, the ``value`` and its ``aliases``.

    Raises:
        Malformed: bad_answer, for anything but text and numbers.
    """
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if isinstance(value, Mapping) and isinstance(value.get("aliases"), list):
        value = [value.get("value"), *value["aliases"]]
    listed = value if isinstance(value, list) else [value]
    texts = [_answer_text(item) for item in listed if not is_missing(item)]
    return list(dict.fromkeys(text for text in texts if text))


def _answer_text(value: object) -> str:
    if isinstance(value, Decimal):
        return str(int(value)) if value == int(value) else f"{value.normalize():f}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise Malformed("bad_answer")
    text = str(value).strip()
    return reference_answer(text) if isinstance(value, str) else text
