"""What a schedule is: when a pipeline runs again, and what happens when it falls behind."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from kubealign_components.config import require

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_EVERY = re.compile(r"([1-9]\d*)([smhd]?)")
_CRON = re.compile(r"[-\d*?/,A-Za-z]+")
CRON_FIELDS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A recurring run, found by its name."""

    name: str
    """Unique among the schedules of a namespace."""
    cron: str = ""
    """Six fields: second, minute, hour, day of month, month, day of week; in UTC."""
    every: str = ""
    """Instead of cron: an interval such as 90s, 30m, 6h or 1d."""
    experiment: str = "Default"
    """Experiment of the runs."""
    catch_up: bool = False
    """Whether runs that were missed are made up for."""
    at_once: int = 1
    """Most runs at the same time."""
    paused: bool = False
    """Whether it starts no runs for now."""
    pipeline_root: str = ""
    """Where outputs go; empty: the installation's default."""
    service_account: str = ""
    """Of the pods; empty: the installation's default."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "a name")
        require(bool(self.cron) != bool(self.every), "--cron", self.cron, "either --cron or --every")
        if self.cron:
            fields = self.cron.split()
            fits = len(fields) == CRON_FIELDS and all(_CRON.fullmatch(field) for field in fields)
            expected = "six fields: second minute hour day month weekday, such as '0 0 3 * * *'"
            require(fits, "--cron", self.cron, expected)
        else:
            fits = _EVERY.fullmatch(self.every) is not None
            require(fits, "--every", self.every, "a number with s, m, h or d, such as 6h")
        # KFP starts at most ten runs of one schedule at a time.
        require(1 <= self.at_once <= 10, "--at-once", self.at_once, "1 to 10 runs")

    @property
    def seconds(self) -> int:
        """The interval."""
        match = _EVERY.fullmatch(self.every)
        return int(match[1]) * _UNITS[match[2]] if match else 0

    def digest(self, package: Iterable[object], parameters: Mapping[str, object]) -> str:
        """Of everything that a recurring run is made of, so that one can tell whether it has changed."""
        settings = asdict(self)
        del settings["paused"]
        text = json.dumps([settings, list(package), dict(parameters)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
