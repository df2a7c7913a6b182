"""Reading the next batch while this one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class _Stop:
    """What the reading thread puts last: nothing more, or the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """The ``items``, up to ``depth`` of them read ahead in a thread.

    Reading Parquet, hashing and NumPy all run outside the interpreter's lock, so that a stage which
    reads, computes and writes batch by batch keeps two cores busy. An error of ``items`` is raised
    here, after the items before it.
    """
    ready: queue.Queue[T | _Stop] = queue.Queue(maxsize=depth)
    closed = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, closed), name="read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _Stop):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        while thread.is_alive():  # a full queue would hold the thread
            _drain(ready)
            thread.join(timeout=0.01)


def _fill(items: Iterator[T], ready: queue.Queue[T | _Stop], closed: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            if closed.is_set():
                break
            ready.put(item)
    except BaseException as caught:  # raised again by the reader
        error = caught
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()  # here, in the thread that ran it: it removes its temporary files
        ready.put(_Stop(error))


def _drain(ready: queue.Queue[T | _Stop]) -> None:
    try:
        while True:
            ready.get_nowait()
    except queue.Empty:
        return
