"""The log of the first training pod, line by line, also over rotation, broken connections and new pods."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kubealign_components.errors import EngineError
from kubealign_components.trainjob.api import ClusterApi, Forbidden
from kubealign_components.trainjob.manifest import CONTAINER
from kubealign_components.trainjob.pods import node_of, pods_of, waits


class Position:
    """Where in a log one is: the last timestamp, and the lines that bear it.

    The server takes whole seconds to go on from, so that lines come twice; lines have nanoseconds.
    """

    def __init__(self) -> None:
        self._last = ""
        self._lines: set[str] = set()

    @property
    def since(self) -> dict[str, str]:
        """The query that goes on from here."""
        return {"sinceTime": f"{self._last[:19]}Z"} if self._last else {}

    def fresh(self, line: str) -> str | None:
        """The text of the timestamped ``line``, or None where it was there before."""
        stamp, _, text = line.partition(" ")
        if not stamp[:4].isdigit():
            return line  # the kubelet's own words, about the log
        at = _comparable(stamp)
        if at < self._last or (at == self._last and text in self._lines):
            return None
        if at > self._last:
            self._last, self._lines = at, set()
        self._lines.add(text)
        return text


class LogStream:
    """Follows the log of node 0 in a thread of its own.

    Args:
        api: the cluster, over connections that nobody else uses.
        job: name of the TrainJob.
        write: takes a line.
        pause: seconds before a broken stream is taken up again.
    """

    def __init__(self, api: ClusterApi, job: str, write: Callable[[str], None], pause: float) -> None:
        self._api, self._job, self._write, self._pause = api, job, write, pause
        self._stopped = threading.Event()
        self._pod, self._position = "", Position()
        self._forbidden = False
        self._thread = threading.Thread(target=self._run, name="training log", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; a stream that is open ends with the process."""
        self._stopped.set()

    def finish(self, patience: float) -> None:
        """The rest of the log, for which the thread has ``patience`` seconds."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(patience)
        if not self._thread.is_alive() and not self._forbidden:
            self._once(follow=False)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._once(follow=True)
            except Forbidden as error:
                self._forbidden = True
                self._write(f"no log of the training pods: {error}")
                return
            self._stopped.wait(self._pause)

    def _once(self, *, follow: bool) -> None:
        """One request, to its end."""
        query = {"timestamps": "true"} | ({"follow": "true"} if follow else {})
        try:
            pod = self._current()
            if pod:
                for line in self._api.log_lines(pod, CONTAINER, query | self._position.since):
                    text = self._position.fresh(line)
                    if text is not None:
                        self._write(text)
        except Forbidden:
            raise
        except EngineError:
            return  # a pod that is gone or has no log yet, or a broken connection: again, from here on

    def _current(self) -> str:
        """The newest pod of node 0 that has started; its log is a new one."""
        pods = [pod for pod in pods_of(self._api, self._job) if node_of(pod) == 0 and not waits(pod)]
        if not pods:
            return ""
        name = str(pods[-1]["metadata"]["name"])
        if name != self._pod:
            self._pod, self._position = name, Position()
        return name


def _comparable(stamp: str) -> str:
    """An RFC 3339 time in UTC with its nanoseconds written out, so that texts compare as times do."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}"
