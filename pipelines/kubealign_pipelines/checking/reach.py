"""What is asked of other machines and of the file system, in bounded time."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from typing import TypeVar

from kubealign_components.config import near_name
from kubealign_components.store import scheme_of, schemes

T = TypeVar("T")
_OF_HUB = re.compile(
    r"(?:https?://(?:www\.)?huggingface\.co|hf:/)/(?:datasets/|models/)?([^/]+/[^/]+)(?:/tree/[^/]+)?/?"
)
"""The page of a model or dataset, with its id."""

PATIENCE = 5.0
"""Seconds that a store, the hub or a function of a user's gets for an answer."""


def in_time(ask: Callable[[], T]) -> T | str:
    """What ``ask`` gives within :data:`PATIENCE`, else the reason why it gave nothing.

    One that is still waiting then does not keep the process: it ends without an answer.
    """
    quick = {"KUBEALIGN_STORE_DEADLINE": str(PATIENCE), "NO_GCE_CHECK": "true", "GCE_METADATA_TIMEOUT": "1"}
    before = {name: os.environ.get(name) for name in quick}
    os.environ.update({name: value for name, value in quick.items() if before[name] is None})
    answer: Future[T] = Future()
    threading.Thread(target=_answer, args=(ask, answer), name="asking", daemon=True).start()
    try:
        return answer.result(timeout=PATIENCE)
    except TooLate:
        return f"no answer in {PATIENCE:g} s"
    except Exception as error:  # no credentials, no network, no such bucket: each store has its own
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    finally:
        for name in [name for name, value in before.items() if value is None]:
            os.environ.pop(name, None)


def _answer(ask: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(ask())
    except BaseException as error:  # handed on, not handled: it is raised where the answer is waited for
        answer.set_exception(error)


def unserved(uri: str) -> str:
    """What to write for a URI that no store serves; an empty text for one that is served, and for paths."""
    scheme, rest = scheme_of(uri), uri.partition("://")[2]
    if scheme in schemes():
        return ""
    if hub := _OF_HUB.fullmatch(uri):
        return f"the hub id alone: {hub[1]}"
    near = near_name(scheme, schemes())
    beside = f"; did you mean {near}://{rest}?" if near else "; fetch what is elsewhere, and name its path"
    return f"a local path, file://, gs://, s3:// or minio:// URI, or a hub id{beside}"


def near_path(path: Path) -> str:
    """A folder beside it that was probably meant."""
    parent = path.parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except (OSError, ValueError):  # nothing that can be listed, or no path at all
        names = []
    near = near_name(path.name, names)
    return f"; did you mean {parent / near}?" if near and near != path.name else ""
