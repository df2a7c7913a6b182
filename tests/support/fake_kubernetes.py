"""A Kubernetes API server over HTTP, as much of one as training on several nodes talks to.

It keeps objects, validates TrainJobs by their CRD's schema, grants what a Role grants, and notes every
permission that a request took. What the cluster then does with a TrainJob is a *story*: a function of the
test, run in a thread of its own, that moves the job along.
"""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from support.fake_kubernetes_http import NAMESPACE, handler

Json = dict[str, Any]
Permission = tuple[str, str, str]
"""Verb, API group and resource."""
Story = Callable[["FakeKubernetes", "Job"], None]

LAUNCHER = "train-pod"
WORKFLOW = "offline-alignment-x7k2p"
PATIENCE = 20.0


def granted_by(role: Path) -> set[Permission]:
    """What the Role in the file ``role`` grants."""
    rules = yaml.safe_load(role.read_text())["rules"]
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def now(after: float = 0.0) -> str:
    """A time in RFC 3339 with nanoseconds, ``after`` seconds from now."""
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=after)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class Job:
    """A TrainJob of the server, with what a cluster does to one."""

    def __init__(self, server: FakeKubernetes, body: Json) -> None:
        self.server, self.body = server, body
        self.name = body["metadata"]["name"]
        self.restarts = 0

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    def condition(self, kind: str, status: str, reason: str = "Because", message: str = "") -> None:
        """Set a condition of the TrainJob."""
        _set_condition(self.body, kind, status, reason, message)

    def queue(self, message: str = "insufficient unused quota for nvidia.com/gpu, 16 more needed") -> None:
        """Kueue suspends the job and makes a workload of it."""
        self.body["spec"]["suspend"] = True
        self.condition("Suspended", "True", "Suspended")
        workload = self.server.workloads.setdefault(
            self.name,
            {
                "metadata": {
                    "name": f"trainjob-{self.name}",
                    "uid": str(uuid.uuid4()),
                    "labels": {"kueue.x-k8s.io/job-uid": self.uid},
                },
                "spec": {"queueName": "alignment"},
                "status": {"conditions": []},
            },
        )
        _set_condition(workload, "QuotaReserved", "False", "Pending", message)

    def resume(self) -> None:
        """Kueue admits the job."""
        for kind in ("QuotaReserved", "Admitted"):
            _set_condition(self.server.workloads[self.name], kind, "True", "Admitted", "")
        _set_condition(self.server.workloads[self.name], "Evicted", "False", "QuotaReserved", "")
        self.body["spec"]["suspend"] = False
        self.condition("Suspended", "False", "Resumed")

    def evict(self, message: str = "Preempted to accommodate a workload of higher priority") -> None:
        """Kueue takes the quota away: the pods go, the job waits again."""
        workload = self.server.workloads[self.name]
        _set_condition(workload, "Evicted", "True", "Preempted", message)
        _set_condition(workload, "Admitted", "False", "NoReservation", "")
        workload["status"]["requeueState"] = {"count": 1}
        self.body["spec"]["suspend"] = True
        self.condition("Suspended", "True", "Suspended")
        self.body["status"].pop("jobsStatus", None)
        for name in [n for n, pod in self.server.pods.items() if n != LAUNCHER]:
            self.server.pods.pop(name)

    def pods(self, phase: str = "Pending") -> list[str]:
        """The job's pods come, in ``phase``; their names."""
        nodes = self.body["spec"]["trainer"]["numNodes"]
        return [self._pod(node, phase) for node in range(nodes)]

    def restart(self, number: int) -> None:
        """A node is lost, and the JobSet starts all of them anew."""
        for name in [n for n in self.server.pods if n.startswith(f"{self.name}-node")]:
            del self.server.pods[name]
        self._counts(active=1)
        self.restarts = number

    def _pod(self, node: int, phase: str) -> str:
        name = f"{self.name}-node-0-{node}-{uuid.uuid4().hex[:5]}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": self.name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "jobset.sigs.k8s.io/restart-attempt": str(self.restarts),
            "batch.kubernetes.io/job-completion-index": str(node),
        }
        meta = {"name": name, "uid": str(uuid.uuid4()), "labels": labels, "creationTimestamp": now()}
        self.server.pods[name] = {"metadata": meta, "spec": {}, "status": {"phase": phase}}
        self.server.logs[name] = []
        return name

    def run(self) -> list[str]:
        """All pods run; their names."""
        waiting = [name for name in self.server.pods if name.startswith(f"{self.name}-node")]
        names = waiting or self.pods()
        for name in names:
            self.server.pods[name]["status"]["phase"] = "Running"
        self._counts(ready=1, active=1)
        return names

    def complete(self) -> None:
        """All pods end well."""
        for name in self.server.pods:
            if name.startswith(f"{self.name}-node"):
                self.server.pods[name]["status"]["phase"] = "Succeeded"
        self._counts(succeeded=1)
        self.condition("Complete", "True", "JobsCompleted", "jobset completed successfully")

    def fail(self, message: str = "jobset failed due to one or more job failures", **kwargs: str) -> None:
        """The job fails; pods that still run go."""
        for name, pod in list(self.server.pods.items()):
            if name.startswith(f"{self.name}-node") and pod["status"]["phase"] != "Failed":
                del self.server.pods[name]
        self._counts(failed=1)
        self.condition("Failed", "True", kwargs.get("reason", "FailedJobs"), message)

    def end_pod(self, name: str, code: int, reason: str = "Error", message: str = "", at: float = 0) -> None:
        """The pod's container ends."""
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": now(at)[:19] + "Z"}
        statuses = [{"name": "node", "state": {"terminated": ended}}]
        self.server.pods[name]["status"] = {"phase": "Failed", "containerStatuses": statuses}

    def event(self, uid: str, reason: str, message: str, kind: str = "Warning", count: int = 1) -> None:
        """Something is noted about the object of that uid."""
        self.server.events.append(
            {
                "metadata": {"uid": str(uuid.uuid4())},
                "involvedObject": {"uid": uid, "kind": "TrainJob", "name": self.name},
                "type": kind,
                "reason": reason,
                "message": message,
                "count": count,
            }
        )

    def _counts(self, **counts: int) -> None:
        zero = dict.fromkeys(("active", "failed", "ready", "succeeded", "suspended"), 0)
        self.body["status"]["jobsStatus"] = [{"name": "node", **zero, **counts}]


class FakeKubernetes:
    """The server.

    Args:
        story: what the cluster does with a TrainJob that is created.
        granted: what requests may do; None for everything.
    """

    def __init__(self, story: Story | None = None, granted: set[Permission] | None = None) -> None:
        self.story, self.granted = story, granted
        self.jobs: dict[str, Json] = {}
        self.workloads: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.workflows: dict[str, Json] = {}
        self.events: list[Json] = []
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.cut = threading.Event()
        """Set: open log streams break off."""
        self.requests: list[tuple[Permission, str]] = []
        """Permission and path of every request, in order."""
        self.deleted: list[tuple[str, Json]] = []
        self.dry_runs = 0
        self.faults: list[tuple[str, int]] = []
        """(verb and resource, HTTP status) of the next requests that fail; 0 breaks the connection before
        the answer."""
        self.runtimes = {"torch-distributed"}
        """Training runtimes that there are."""
        self.no_kueue = False
        self.error: BaseException | None = None
        self.looks = threading.Condition()
        self.workflow()
        self.launch_pod()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        """End; raises what went wrong in a story."""
        self._http.shutdown()
        self._http.server_close()
        if self.error is not None:
            raise self.error

    def objects(self) -> dict[str, dict[str, Json]]:
        """What there is, by resource and name."""
        return {
            "pods": self.pods,
            "workloads": self.workloads,
            "trainjobs": self.jobs,
            "workflows": self.workflows,
        }

    def collect_garbage(self) -> None:
        """Delete what has owners and none of them is left, as the cluster's collector does."""
        everything = {one["metadata"]["uid"] for kind in self.objects().values() for one in kind.values()}
        for kind in self.objects().values():
            for name, one in list(kind.items()):
                owners = one["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in everything for owner in owners):
                    del kind[name]
                    return self.collect_garbage()
        return None

    def workflow(self, name: str = WORKFLOW) -> Json:
        """The Argo Workflow of a run."""
        self.workflows[name] = {
            "metadata": {"name": name, "uid": str(uuid.uuid4())},
            "spec": {},
            "status": {"phase": "Running"},
        }
        return self.workflows[name]

    def terminate_run(self, name: str = WORKFLOW) -> None:
        """What KFP does when a run is cancelled."""
        self.workflows[name]["spec"]["activeDeadlineSeconds"] = 0

    def launch_pod(self, name: str = LAUNCHER, workflow: str = WORKFLOW) -> Json:
        """A KFP step's pod."""
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": workflow,
            "uid": self.workflows[workflow]["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        pod = {
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": now(),
                "labels": {"pipeline/runid": "run-1", "kueue.x-k8s.io/queue-name": "alignment"},
                "ownerReferences": [owner],
            },
            "spec": {
                "serviceAccountName": "kubealign",
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [
                    {"name": "wait", "image": "argoexec"},
                    {"name": "main", "image": "registry.example.com/kubealign/train@sha256:ab"},
                ],
            },
            "status": {"phase": "Running"},
        }
        self.pods[name] = pod
        return pod

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig for this server, at ``path``."""
        named = {
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "secret"}}],
            "contexts": [
                {"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}
            ],
        }
        path.write_text(
            yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "fake", **named})
        )
        return path

    def used(self) -> set[Permission]:
        """The permissions that requests took."""
        return {permission for permission, _ in self.requests}

    def seen(self, times: int = 2) -> None:
        """Wait until the launcher has looked at its TrainJob ``times`` more times."""
        target = self._looked() + times
        with self.looks:
            if not self.looks.wait_for(lambda: self._looked() >= target, PATIENCE):
                raise TimeoutError("nobody looks at the TrainJob")

    def write(self, pod: str, *lines: str, at: str = "") -> None:
        """Lines of a pod's log."""
        for line in lines:
            self.logs[pod].append((at or now(), line))

    def rotate(self, pod: str) -> None:
        """The kubelet rotates the pod's log: what was written is gone, and streams end."""
        self.logs[pod].clear()
        self.break_streams()

    def break_streams(self) -> None:
        """Open log streams break off."""
        self.cut.set()
        time.sleep(0.1)
        self.cut.clear()

    def add(self, body: Json) -> Job:
        """Keep a TrainJob, and start its story."""
        meta = body["metadata"]
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()[:19] + "Z", "namespace": NAMESPACE}
        body["status"] = {"conditions": []}
        self.jobs[meta["name"]] = body
        job = Job(self, body)
        if self.story is not None:
            threading.Thread(target=self._tell, args=(self.story, job), daemon=True).start()
        return job

    def _tell(self, story: Story, job: Job) -> None:
        try:
            story(self, job)
        except BaseException as error:
            self.error = error

    def _looked(self) -> int:
        return sum(p == ("get", "trainer.kubeflow.org", "trainjobs") for p, _ in self.requests)


def _set_condition(one: Json, kind: str, status: str, reason: str, message: str) -> None:
    found = one.setdefault("status", {}).setdefault("conditions", [])
    found[:] = [c for c in found if c["type"] != kind]
    found.append(
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now()[:19] + "Z",
        }
    )
