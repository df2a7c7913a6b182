"""TrainJobs that nobody waits for any more: those whose run was stopped or lost, and those long finished.

A TrainJob belongs to the Argo Workflow of its run, and Kubernetes deletes it with that. A Workflow that
ended stays for a while, and what it started may go on holding GPUs until then.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob.api import ClusterApi
from kubealign_components.trainjob.manifest import MANAGED_BY, RUN
from kubealign_components.trainjob.states import JobState, condition, state_of
from kubealign_components.trainjob.workflow import is_workflow, why_over

ENDED = (JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOver:
    """A TrainJob to delete."""

    name: str
    uid: str
    run: str
    """Id of the run that started it, where it is known."""
    reason: str


def left_over(
    api: ClusterApi, *, keep: datetime.timedelta, grace: datetime.timedelta, now: datetime.datetime
) -> Iterator[LeftOver]:
    """The TrainJobs of KubeAlign that are to go.

    Args:
        api: the cluster and namespace.
        keep: how long one that ended stays, for its pods' logs.
        grace: how long one that has not ended stays once nobody waits for it.
        now: the time.
    """
    for job in api.jobs(",".join(f"{name}={value}" for name, value in MANAGED_BY.items())):
        reason = _reason(api, job, keep, grace, now)
        meta = job["metadata"]
        if reason and not meta.get("deletionTimestamp"):
            run = (meta.get("labels") or {}).get(RUN, "")
            yield LeftOver(name=meta["name"], uid=meta["uid"], run=run, reason=reason)


def _reason(
    api: ClusterApi,
    job: JsonObject,
    keep: datetime.timedelta,
    grace: datetime.timedelta,
    now: datetime.datetime,
) -> str:
    """Why ``job`` is to go; empty where it stays."""
    state = state_of(job)
    if state in ENDED:
        kind = "Complete" if state is JobState.SUCCEEDED else "Failed"
        since = now - _time(condition(job, kind)["lastTransitionTime"])
        return f"{state} {_hours(since)} ago" if since > keep else ""
    left = [_time(job["metadata"]["creationTimestamp"])]
    for owner in job["metadata"].get("ownerReferences") or []:
        ended = _left(api, owner)
        if ended is None:
            return ""
        left += ended
    since = now - max(left)
    return f"{state}, and no run has waited for it for {_hours(since)}" if since > grace else ""


def _left(api: ClusterApi, owner: JsonObject) -> list[datetime.datetime] | None:
    """When ``owner`` stopped to wait, where that is known; None while it waits."""
    if is_workflow(owner):
        workflow = api.workflow(owner["name"])
        if not why_over(workflow, owner["uid"]):
            return None
        same = workflow is not None and workflow["metadata"]["uid"] == owner["uid"]
        finished = (workflow.get("status") or {}).get("finishedAt") if workflow and same else None
        return [_time(finished)] if finished else []
    if owner["kind"] != "Pod":
        return None
    pod = api.pod(owner["name"])
    if pod is None or pod["metadata"]["uid"] != owner["uid"]:
        return []
    ended = _ended(pod)
    return None if ended is None else [ended]


def _ended(pod: JsonObject) -> datetime.datetime | None:
    """When ``pod`` ended; None while it has not."""
    status = pod.get("status") or {}
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    times = [pod["metadata"]["creationTimestamp"]]
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        times += [ended["finishedAt"]] if ended.get("finishedAt") else []
    return max(_time(one) for one in times)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text[:19]).replace(tzinfo=datetime.UTC)


def _hours(span: datetime.timedelta) -> str:
    return f"{span.total_seconds() / 3600:.1f} h"
