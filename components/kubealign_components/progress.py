"""Progress of long work: a bar on a terminal, and elsewhere plain lines with counts and rates."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

SECONDS = "KUBEALIGN_PROGRESS_SECONDS"
"""Environment variable: how often the lines come where nobody sees a bar."""
_LINE = re.compile(
    r"^(?P<name>[^|]+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>[A-Za-z]+), "
    r"(?P<rate>[\d.]+|\?) (?P=unit)/s, (?P<left>[\d:]+|\?) left(?:, (?P<notes>.*))?$"
)
_PROCESS = re.compile(r"(?P<whole>.+) process (?P<number>\d+)/(?P<count>\d+)")


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

    def __str__(self) -> str:
        """The line of it, which :func:`read_line` reads."""
        rate = "?" if self.rate is None else f"{self.rate:.2f}"
        left = "?" if self.left is None else tqdm.format_interval(self.left)
        line = f"{self.name}: {self.done}/{self.total} {self.unit}, {rate} {self.unit}/s, {left} left"
        return f"{line}, {self.notes}" if self.notes else line


@dataclass(kw_only=True, slots=True)
class ProcessBars:
    """Makes one bar of those of a pod's engine processes, each of which counts the rows of its share."""

    _of: dict[str, dict[int, BarState]] = field(default_factory=dict)
    """The last states by what is done, and by process."""

    def joined(self, state: BarState) -> BarState:
        """The state of all processes that have said something, once one of them says ``state``."""
        match = _PROCESS.fullmatch(state.name)
        if match is None:
            return state
        states = self._of.setdefault(match["whole"], {})
        states[int(match["number"])] = state
        processes = list(states.values())
        busy = [one for one in processes if one.done < one.total]
        rates = [one.rate for one in busy if one.rate is not None]
        return BarState(
            name=match["whole"],
            done=sum(one.done for one in processes),
            total=sum(one.total for one in processes),
            unit=state.unit,
            rate=sum(rates) if rates else None,
            left=max((one.left for one in busy if one.left is not None), default=None),
            notes=f"{len(processes)} of {match['count']} processes",
        )

    def line(self, line: str) -> str | None:
        """``line``; where a process wrote it of its bar the line of all, once for all that go on."""
        state = read_line(line)
        match = _PROCESS.fullmatch(state.name) if state else None
        if state is None or match is None:
            return line
        whole, states = self.joined(state), self._of[match["whole"]]
        busy = [number for number, one in states.items() if one.done < one.total]
        tells = int(match["number"]) == min(busy, default=0) or not busy
        return str(whole) if tells else None


def progress_bar(total: int, unit: str, description: str) -> tqdm[Any]:
    """A bar over ``total`` units; call ``update(k)`` as work finishes, or use it as a context.

    ``KUBEALIGN_PROGRESS_SECONDS`` sets how often a bar that is not on a terminal writes its line.
    """
    settings: dict[str, Any] = {"total": total, "unit": f" {unit}", "desc": description}
    if sys.stderr.isatty():
        return _Bar(**settings, mininterval=0.5, dynamic_ncols=True)
    return _Lines(**settings, mininterval=float(os.environ.get(SECONDS) or 30))


def process_name(whole: str, number: int, count: int) -> str:
    """What the bar of a process is called, ``number`` from 1, that has a share of ``whole``.

    >>> process_name("sample 1/4", 3, 8)
    'sample 1/4 process 3/8'
    """
    return f"{whole} process {number}/{count}"


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
