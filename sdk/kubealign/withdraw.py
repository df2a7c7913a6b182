"""Withdrawals from here: which prompts and sources are taken back, and what still holds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kubealign_components.config import require
from kubealign_components.data.withdrawals import Withdrawal, read_withdrawal, withdrawal_text
from kubealign_components.errors import ConfigError
from kubealign_components.named_paths import FILE, kind_at
from kubealign_components.whole_file import write_whole

_BETWEEN = re.compile(r"[\s,]+")


def withdrawal_of(ids: Sequence[str], sources: Sequence[str]) -> Withdrawal:
    """The withdrawal of prompts and sources.

    Args:
        ids: ids of prompts, or files of ids with whitespace or commas between them.
        sources: names of sources.

    Raises:
        ConfigError: nothing is named, or something that is neither an id nor a file of them.
    """
    each = [one for given in ids for one in _ids(given)]
    require(bool(each or sources), "withdraw", [], "--ids or --source, with what is taken back")
    return Withdrawal(prompt_ids=frozenset(each), sources=frozenset(sources))


def write_withdrawal(withdrawal: Withdrawal, path: Path) -> Withdrawal:
    """Write ``withdrawal`` to ``path``, beside what was taken back there before; gives both.

    Raises:
        ConfigError: there is another file at ``path``.
    """
    both = withdrawal | (read_withdrawal(str(path)) if path.exists() else Withdrawal())
    write_whole(path, withdrawal_text(both))
    return both


def _ids(given: str) -> list[str]:
    path = Path(given)
    if kind_at(path) != FILE:
        return [given]
    try:
        return [one for one in _BETWEEN.split(path.read_text(encoding="utf-8")) if one]
    except UnicodeDecodeError as error:
        raise ConfigError("--ids", given, f"ids, or a text file of ids ({error.reason})") from error
