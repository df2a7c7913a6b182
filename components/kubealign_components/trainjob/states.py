"""In which state a TrainJob is, read from the object alone.

Its conditions are Suspended, Complete and Failed; that it runs shows in the counts of its jobs. A job that
was ever suspended keeps the condition Suspended=False, so that conditions alone never say it.
"""

from __future__ import annotations

from enum import StrEnum

from kubealign_components.json_types import JsonObject


class JobState(StrEnum):
    """States of a TrainJob."""

    CREATED = "created"
    """Not suspended; its pods do not all run yet."""
    QUEUED = "queued"
    """Suspended before its pods ever ran."""
    RESUMED = "resumed"
    """Out of the queue; its pods do not all run yet."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """It ran, and its runtime starts all its pods anew, since one was lost."""
    EVICTED = "evicted"
    """Suspended after it ran, or was admitted: it waits for its turn again."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Deleted, by another hand than ours."""


WAITING = (JobState.CREATED, JobState.QUEUED, JobState.RESUMED, JobState.RESTARTING, JobState.EVICTED)
SUSPENDED = (JobState.QUEUED, JobState.EVICTED)
DEADLINE = "DeadlineExceeded"


def state_of(job: JsonObject | None, *, before: JobState | None = None, evicted: bool = False) -> JobState:
    """The state of ``job``.

    Args:
        job: the TrainJob, None where it is gone.
        before: its state at the last look, None at the first one.
        evicted: whether it is known to have run, or to have been admitted, before.
    """
    if job is None:
        return JobState.CANCELLED
    for name, state in (("Complete", JobState.SUCCEEDED), ("Failed", JobState.FAILED)):
        if condition(job, name).get("status") == "True":
            return state
    if job["metadata"].get("deletionTimestamp"):
        return JobState.CANCELLED
    suspended = condition(job, "Suspended").get("status")
    if suspended == "True" or job["spec"].get("suspend"):
        return JobState.EVICTED if evicted else JobState.QUEUED
    counts = (job.get("status") or {}).get("jobsStatus") or []
    if any(one.get("ready", 0) or one.get("succeeded", 0) for one in counts):
        return JobState.RUNNING
    if before in (JobState.RUNNING, JobState.RESTARTING):
        return JobState.RESTARTING
    return JobState.RESUMED if suspended == "False" else JobState.CREATED


def condition(one: JsonObject, kind: str) -> JsonObject:
    """The condition ``kind`` in the status of ``one``; empty where there is none."""
    for candidate in (one.get("status") or {}).get("conditions") or []:
        if candidate["type"] == kind:
            return dict(candidate)
    return {}
