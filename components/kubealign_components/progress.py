"""Progress of long work: a bar on a terminal, and elsewhere plain lines with counts and rates."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

SECONDS = "KUBEALIGN_PROGRESS_SECONDS"
"""Environment variable: how often the lines come where nobody sees a bar."""
_LINE = re.compile(
    r"^(?P<name>[^|]+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>[A-Za-z]+), "
    r"(?P<rate>[\d.]+|\?) (?P=unit)/s, (?P<left>[\d:]+|\?) left(?:, (?P<notes>.*))?$"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BarState:
    """How far a stage has come, as one of its lines says."""

    name: str
    """What is done, such as ``evaluate: reference``."""
    done: int
    total: int
    unit: str
    """What is counted, in the plural."""
    rate: float | None
    """Units per second of late; None before there are two points in time."""
    left: float | None
    """Seconds to the end at that rate."""
    notes: str
    """Such as ``loss=0.6931``."""


def progress_bar(total: int, unit: str, description: str) -> tqdm[Any]:
    """A bar over ``total`` units; call ``update(k)`` as work finishes, or use it as a context.

    ``KUBEALIGN_PROGRESS_SECONDS`` sets how often a bar that is not on a terminal writes its line.
    """
    settings: dict[str, Any] = {"total": total, "unit": f" {unit}", "desc": description}
    if sys.stderr.isatty():
        return _Bar(**settings, mininterval=0.5, dynamic_ncols=True)
    return _Lines(**settings, mininterval=float(os.environ.get(SECONDS, "30")))


def note(bar: tqdm[Any], text: str) -> None:
    """Write ``text`` as a line beside ``bar``."""
    if isinstance(bar, _Lines):
        bar.fp.write(f"{text}\n")
        bar.fp.flush()
    else:
        bar.write(text, file=sys.stderr)


def read_line(line: str) -> BarState | None:
    """The state that a line of :func:`progress_bar` tells; None for any other line."""
    match = _LINE.match(line.strip())
    if match is None:
        return None
    rate, left = match["rate"], match["left"]
    return BarState(
        name=match["name"],
        done=int(match["done"]),
        total=int(match["total"]),
        unit=match["unit"],
        rate=None if rate == "?" else float(rate),
        left=None if left == "?" else _seconds(left),
        notes=match["notes"] or "",
    )


class _Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs alone
    """tqdm's bar, which can also be closed where an interrupt ended its making."""

    disable = True
    """Until it is made."""


class _Lines(_Bar):
    """A bar whose states are lines of their own: nothing is ever written over."""

    def __init__(self, **settings: Any) -> None:
        form = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"
        super().__init__(**settings, bar_format=form)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
        """Write the state as a line; an empty one, by which tqdm clears a bar, is left out."""
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(" ".join(text.split()) + "\n")
            self.fp.flush()

    def close(self) -> None:
        """Write the last state, once."""
        if not self.disable:
            self.leave = False  # tqdm's own way of leaving a bar behind ends in a blank line
            if self.last_print_n < self.n:
                self.display()
        super().close()


def _seconds(clock: str) -> float:
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return float(seconds)
