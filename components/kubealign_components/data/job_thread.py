"""One thread beside the caller's, with one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVarTuple

A = TypeVarTuple("A")


class JobThread:
    """Runs jobs one after the other, while the caller prepares the next one.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._job: Future[None] | None = None

    def run(self, job: Callable[[*A], None], *arguments: *A) -> None:
        """Start ``job`` once the one before it has ended; raises the error of that one."""
        self.wait()
        self._job = self._pool.submit(job, *arguments)

    def wait(self) -> None:
        """Wait for the last job, and raise its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def end(self) -> None:
        """Wait for the last job, whatever becomes of it; none can follow."""
        self._pool.shutdown()
