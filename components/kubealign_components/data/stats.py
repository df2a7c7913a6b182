"""Counting: rows in are rows out plus rows dropped, each drop under a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from kubealign_components.json_types import JsonObject

LABEL_VALUE = "reward_label_"
"""What the sum of the values of a label of a reward model is called, before the label's name."""


@dataclass(kw_only=True, slots=True)
class Stats:
    """What a stage did. ``check()`` holds it to rows_in = rows_out + dropped."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows dropped, by reason."""
    counts: Counter[str] = field(default_factory=Counter)
    """Other things counted: completions dropped by reason, chunks reused, …"""
    numbers: dict[str, float] = field(default_factory=dict)
    """Measured values, such as a confidence bound."""
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and count of values seen, by name: unlike a mean, they add up over parts."""

    def observe(self, name: str, values: Collection[float]) -> None:
        """Add ``values`` to what is known of ``name``; its mean is among :meth:`metrics`."""
        self._add_sum(name, sum(values), len(values))

    def drop(self, reason: str, rows: int = 1) -> None:
        """Count ``rows`` rows as dropped for ``reason``."""
        if rows:
            self.dropped[reason] += rows

    def add(self, other: Stats) -> None:
        """Add the counts of ``other``; ``numbers`` of ``other`` win."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped.update(other.dropped)
        self.counts.update(other.counts)
        self.numbers.update(other.numbers)
        for name, (total, count) in other.sums.items():
            self._add_sum(name, total, count)

    def less(self, other: Stats, always: Collection[str] = ()) -> Stats:
        """What is left without the rows that ``other`` counted; sums within rounding.

        Args:
            other: of some of the rows.
            always: names of counts that stand there when they are 0, too; others go then.
        """
        left = Stats(
            rows_in=self.rows_in - other.rows_in,
            rows_out=self.rows_out - other.rows_out,
            dropped=self.dropped - other.dropped,
            numbers=dict(self.numbers),
        )
        counts = {name: count - other.counts[name] for name, count in self.counts.items()}
        left.counts.update({name: count for name, count in counts.items() if count or name in always})
        for name, (total, count) in self.sums.items():
            gone, seen = other.sums.get(name, (0.0, 0))
            left._add_sum(name, total - gone, count - seen)
        return left

    def _add_sum(self, name: str, total: float, count: int) -> None:
        if count:
            before, seen = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before + total, seen + count)

    def check(self) -> None:
        """Raise AssertionError when rows appeared from or vanished to nowhere."""
        dropped = sum(self.dropped.values())
        if self.rows_in != self.rows_out + dropped:
            raise AssertionError(f"{self.rows_in} rows in, {self.rows_out} out and {dropped} dropped")

    @classmethod
    def from_json(cls, kept: JsonObject) -> Stats:
        """What :meth:`to_json` gave."""
        return cls(
            rows_in=kept["rows_in"],
            rows_out=kept["rows_out"],
            dropped=Counter(kept["dropped"]),
            counts=Counter(kept["counts"]),
            numbers=dict(kept["numbers"]),
            sums={name: (total, count) for name, (total, count) in kept["sums"].items()},
        )

    def metrics(self) -> dict[str, float]:
        """Flat numbers for ``dsl.Metrics``, which takes nothing else."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            **{f"dropped_{reason}": n for reason, n in sorted(self.dropped.items())},
            **dict(sorted(self.counts.items())),
            **{f"{name}_mean": total / count for name, (total, count) in sorted(self.sums.items())},
            **self.numbers,
        }

    def to_json(self) -> dict[str, object]:
        """The form that manifests keep."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(sorted(self.dropped.items())),
            "counts": dict(sorted(self.counts.items())),
            "numbers": self.numbers,
            "sums": {name: list(pair) for name, pair in sorted(self.sums.items())},
        }
