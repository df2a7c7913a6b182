"""A process of its own for calls that may hang, exit or crash: the caller gets an error with a name.

Started as ``python -m kubealign_components.engines.worker``; it reads pickled calls and writes pickled
results, and ends with the one who started it. What the called code prints goes to standard error.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_START_SECONDS = 120.0


class TimedOut(Exception):
    """A call took longer than it may."""


class WorkerDied(Exception):
    """The process ended amid a call; the text says how."""


class CallFailed(Exception):
    """The called function raised; ``kind`` is the name of the exception's class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind, self.text = kind, text


class Worker:
    """A process that calls functions, started with the first call and anew after it had to be ended.

    Args:
        name: what it is for, for those who look at the list of processes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """What ``function``, one of a module, gives for ``arguments``; both are copied to the process.

        Raises:
            TimedOut: it took longer than ``seconds``.
            WorkerDied: the process ended.
            CallFailed: the function raised.
        """
        with self._lock:
            fresh = self._process is None
            process = self._started()
            try:
                return self._ask(process, function, arguments, seconds + _START_SECONDS * fresh)
            except (TimedOut, WorkerDied):
                self._end()
                raise

    @property
    def is_running(self) -> bool:
        """Whether there is a process, with what was called in it."""
        return self._process is not None

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._end()

    def _ask(
        self, process: subprocess.Popen[bytes], function: Callable[..., Any], arguments: Any, seconds: float
    ) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], seconds)[0]:
                raise TimedOut
            kind, value = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise WorkerDied(f"its process ended with code {process.wait()}") from error
        if kind == "raised":
            raise CallFailed(*value)
        return value

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            folders = [folder or str(Path.cwd()) for folder in sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, self._name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
            )
            atexit.register(self.close)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            atexit.unregister(self.close)
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()


def main() -> None:
    """Answer calls until the other end closes."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    while True:
        try:
            answer = _answered(calls)
        except EOFError:
            return
        try:
            data = pickle.dumps(answer)
        except Exception as error:  # what the function gave back cannot be copied
            data = pickle.dumps(("raised", (type(error).__name__, str(error))))
        answers.write(data)
        answers.flush()


def _answered(calls: Any) -> tuple[str, Any]:
    try:
        function, arguments = pickle.load(calls)
        return "value", function(*arguments)
    except EOFError:
        raise
    except KeyboardInterrupt:
        raise EOFError from None
    except BaseException as error:  # SystemExit, too, is an error of the function
        return "raised", (type(error).__name__, str(error)[:2000])


if __name__ == "__main__":
    main()
