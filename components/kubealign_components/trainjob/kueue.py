"""Why a TrainJob waits: Kueue's view of it, and the events of the job, its workload and its pods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob.api import ClusterApi, Forbidden
from kubealign_components.trainjob.pods import pods_of, waits
from kubealign_components.trainjob.states import condition

_CONDITIONS = ("Evicted", "QuotaReserved", "Admitted", "PodsReady")


class QueueWatch:
    """Tells what is new about a waiting TrainJob.

    Args:
        api: the cluster.
        say: takes a line.
    """

    def __init__(self, api: ClusterApi, say: Callable[[str], None]) -> None:
        self._api, self._say = api, say
        self._seen: set[tuple[str, object]] = set()
        self._workload_text = ""
        self._mute: set[str] = set()
        self.evicted = False
        """Whether Kueue took the job's quota away at some time."""

    def look(self, job: JsonObject) -> None:
        """Tell what is new about ``job``."""
        meta = job["metadata"]
        workload = self._try("workloads", lambda: self._api.workload(meta["uid"]))
        subjects = [meta["uid"]]
        if workload:
            self.evicted = condition(workload, "Evicted").get("status") == "True"
            text = workload_text(workload)
            if text != self._workload_text:
                self._say(text)
                self._workload_text = text
            subjects.append(workload["metadata"]["uid"])
        pods = self._try("pods", lambda: pods_of(self._api, meta["name"])) or []
        # One pod that waits speaks for all: they ask for the same.
        subjects += [pod["metadata"]["uid"] for pod in pods if waits(pod)][:1]
        for uid in subjects:
            self._events(uid)

    def _events(self, uid: str) -> None:
        for event in self._try("events", lambda: self._api.events(uid)) or []:
            key = (event["metadata"].get("uid", ""), event.get("count", 1))
            if key not in self._seen:
                self._seen.add(key)
                subject = event["involvedObject"]
                self._say(
                    f"{event.get('type', 'Normal')} {event.get('reason', '')} "
                    f"({subject.get('kind')} {subject.get('name')}): {event.get('message', '')}"
                )

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """What ``call`` gives. It only informs: a missing permission is told once and stops nothing."""
        if what in self._mute:
            return None
        try:
            return call()
        except Forbidden as error:
            self._mute.add(what)
            self._say(f"cannot tell why it waits: {error}")
            return None


def workload_text(workload: JsonObject) -> str:
    """Kueue's conditions in words."""
    queue = workload.get("spec", {}).get("queueName", "")
    parts = []
    for kind in _CONDITIONS:
        state = condition(workload, kind)
        if state and (state["status"] == "True") == (kind == "Evicted"):
            parts.append(f"{kind}={state['status']} ({state.get('reason', '')}): {state.get('message', '')}")
    again = (workload.get("status") or {}).get("requeueState") or {}
    if again.get("count"):
        parts.append(f"requeued {again['count']} times")
    return f"Kueue, queue {queue}: " + ("; ".join(parts) or "admitted")
