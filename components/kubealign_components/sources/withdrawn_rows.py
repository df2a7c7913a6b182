"""Rows of sources that were taken back: left out, counted, and named in the recipe."""

from __future__ import annotations

from collections.abc import Iterable

from kubealign_components.data.withdrawals import WITHDRAWN, Withdrawal
from kubealign_components.sources.source import Unwanted


class WithdrawnRows:
    """Notes which part of a withdrawal rows were dropped for: what the recipe says of it."""

    def __init__(self, withdrawal: Withdrawal) -> None:
        self._withdrawal = withdrawal
        self._prompt_ids: dict[int, set[str]] = {}
        self._sources: dict[int, set[str]] = {}

    def forget(self, number: int) -> None:
        """Forget the rows of the source of that number."""
        self._prompt_ids.pop(number, None)
        self._sources.pop(number, None)

    def check(self, number: int, prompt_id: str, source: str) -> None:
        """Raise :class:`Unwanted` for a row of the source of that number and name that was taken back."""
        if self._withdrawal.holds(prompt_id, source):
            self.note(number, [prompt_id], [source])
            raise Unwanted(WITHDRAWN)

    def note(self, number: int, prompt_ids: Iterable[str], sources: Iterable[str]) -> None:
        """Note rows of the source of that number that were taken back."""
        self._sources.setdefault(number, set()).update(sources)
        self._prompt_ids.setdefault(number, set()).update(prompt_ids)

    @property
    def withdrawal(self) -> Withdrawal:
        """The part that rows were dropped for."""
        return self._withdrawal.among(
            set().union(*self._prompt_ids.values()), set().union(*self._sources.values())
        )
