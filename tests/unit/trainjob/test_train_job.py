"""What becomes of a TrainJob, on a fake Kubernetes API server that grants what the shipped Role grants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kubealign_components.errors import EngineError
from kubealign_components.trainjob.manifest import JOB_URI, job_name
from kubealign_components.trainjob.settings import PodShape
from kubealign_components.trainjob.states import JobState, state_of
from support.fake_kubernetes import LAUNCHER, WORKFLOW, FakeKubernetes, Job
from support.train_jobs import LABELS, SHAPE, URI, failing, left_running, run, states, succeed


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The downward API of a KFP step's pod."""
    monkeypatch.setenv("KFP_POD_NAME", LAUNCHER)


def test_created_running_succeeded(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(succeed)
    lines = run(server)
    assert states(lines) == ["created", "running", "succeeded"]
    assert server.dry_runs == 1
    assert server.requests[1][0][0] == "get" and [p[0] for p, _ in server.requests[2:4]] == ["create"] * 2
    assert not server.deleted


def test_the_object_has_what_the_launching_pod_and_its_task_have(
    cluster: Callable[..., FakeKubernetes],
) -> None:
    server = cluster(succeed)
    run(server, nodes=3, run_timeout=3600, annotations={"note": "x"}, shared_memory="64Gi")
    body = server.jobs[job_name(URI)]
    meta, spec = body["metadata"], body["spec"]
    assert meta["name"].startswith("kubealign-") and len(meta["name"]) <= 33
    assert meta["annotations"][JOB_URI] == URI
    owner = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "name": WORKFLOW,
        "uid": server.workflows[WORKFLOW]["metadata"]["uid"],
    }
    assert meta["ownerReferences"] == [owner]
    assert meta["labels"] == LABELS | {
        "app.kubernetes.io/managed-by": "kubealign",
        "pipeline/runid": "run-1",
    }
    assert spec["activeDeadlineSeconds"] == 3600
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "torch-distributed",
    }
    assert spec["trainer"] == {
        "image": "registry.example.com/kubealign/train@sha256:ab",
        "command": [
            *("python", "-m", "kubealign_components.supervisor"),
            *("-m", "kubealign_components.training.node", URI),
        ],
        "env": [{"name": "PYTHONSAFEPATH", "value": "1"}, {"name": "AWS_REGION", "value": "us"}],
        "numNodes": 3,
        "numProcPerNode": 8,
        "resourcesPerNode": SHAPE.resources,
    }
    (patch,) = spec["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = nodes["template"]["spec"]["template"]
    assert nodes["name"] == "node"
    # Kueue queues the TrainJob: its pods must not be queued once more, one by one.
    assert template["metadata"] == {
        "labels": {"sidecar.istio.io/inject": "false", "app.kubernetes.io/part-of": "kubealign"},
        "annotations": {"note": "x"},
    }
    pod = template["spec"]
    assert pod["serviceAccountName"] == "kubealign" and pod["imagePullSecrets"] == [{"name": "registry"}]
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}
    assert pod["volumes"] == [*SHAPE.volumes, memory]
    mount = {"name": "shared-memory", "mountPath": "/dev/shm"}
    assert pod["containers"][0]["volumeMounts"] == [*SHAPE.volume_mounts, mount]
    assert pod["nodeSelector"] == SHAPE.node_selector and pod["tolerations"] == list(SHAPE.tolerations)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"nvidia.com/gpu": "4", "rdma/hca": "2"}, 4),
        ({"nvidia.com/mig-3g.20gb": "2"}, 2),
        ({"cpu": "8"}, 0),
    ],
)
def test_processes_of_a_node_are_its_accelerators(limits: dict[str, str], expected: int) -> None:
    assert PodShape(resources={"limits": limits}).accelerators() == expected


def test_queued_and_resumed_with_kueues_reasons(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.queue()
        job.event(job.uid, "QuotaShort", "waiting for quota")
        job.event(server.workloads[job.name]["metadata"]["uid"], "Pending", "16 more needed", "Normal")
        server.seen(4)
        job.resume()
        server.seen()
        names = job.pods()
        job.event(server.pods[names[0]]["metadata"]["uid"], "FailedScheduling", "0/9 nodes available")
        server.seen(3)
        job.run()
        server.seen()
        job.complete()

    lines = run(cluster(story))
    assert states(lines)[-4:] == ["queued", "resumed", "running", "succeeded"]
    text = "\n".join(lines)
    assert "queue alignment: QuotaReserved=False (Pending): insufficient unused quota" in text
    for message in ("waiting for quota", "16 more needed", "0/9 nodes available"):
        assert text.count(f": {message}") == 1, text


def test_a_job_that_was_ever_suspended_is_seen_to_run() -> None:
    job: dict[str, Any] = {
        "metadata": {},
        "spec": {"suspend": False},
        "status": {"conditions": [{"type": "Suspended", "status": "False", "reason": "Resumed"}]},
    }
    assert state_of(job) is JobState.RESUMED
    job["status"]["jobsStatus"] = [{"name": "node", "ready": 0, "active": 1}]
    assert state_of(job) is JobState.RESUMED
    job["status"]["jobsStatus"] = [{"name": "node", "ready": 1, "active": 1}]
    assert state_of(job) is JobState.RUNNING


def test_evicted_waits_for_its_turn_again_and_time_in_the_queue_starts_anew(
    cluster: Callable[..., FakeKubernetes],
) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.queue()
        time.sleep(1.8)
        job.resume()
        job.run()
        server.seen()
        job.evict()
        time.sleep(1.8)
        job.resume()
        job.run()
        server.seen()
        job.complete()

    lines = run(cluster(story), queue_timeout=3)
    assert states(lines)[-5:] == ["queued", "running", "evicted", "running", "succeeded"]
    assert "Evicted=True (Preempted): Preempted to accommodate" in "\n".join(lines)
    assert "requeued 1 times" in "\n".join(lines)


def test_what_kueue_evicted_before_it_was_adopted_is_evicted(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.queue()
        job.evict()
        server.seen(4)
        job.resume()
        succeed(server, job)

    assert "evicted" in states(run(cluster(story)))


def test_too_long_in_the_queue(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(lambda _, job: job.queue())
    message = failing(server, queue_timeout=1)
    assert "queued for 1 s, longer than queue_timeout=1" in message
    assert [name for name, _ in server.deleted] == [job_name(URI)]


def test_running_too_long_is_the_clusters_to_say(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.run()
        time.sleep(job.body["spec"]["activeDeadlineSeconds"] - 0.8)
        job.fail("TrainJob was active longer than its deadline", reason="DeadlineExceeded")

    message = failing(cluster(story), run_timeout=1)
    assert "active longer than its deadline (run_timeout=1 seconds)" in message


def test_the_first_pod_that_failed_is_the_reason(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        first, second = job.run()
        server.write(first, "ConnectionResetError: peer")
        server.write(second, *(f"line {n}" for n in range(40)), "ValueError: bad row")
        server.seen()
        job.end_pod(first, 1, at=5.0)
        job.end_pod(second, 1)
        job.fail()

    message = failing(cluster(story))
    assert "jobset failed" in message and "node 1 (pod " in message and "exit code 1" in message
    assert message.endswith("  ValueError: bad row")
    assert "line 21" in message and "line 20" not in message and "peer" not in message


def test_out_of_memory_and_the_termination_message_are_told(
    cluster: Callable[..., FakeKubernetes],
) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        first, _ = job.run()
        limits = {"limits": {"memory": "512Gi"}}
        server.pods[first]["spec"] = {"containers": [{"name": "node", "resources": limits}]}
        job.end_pod(first, 137, "OOMKilled", "the last words")
        job.fail()

    message = failing(cluster(story))
    assert "exit code 137, OOMKilled (its memory limit is 512Gi: raise it" in message
    assert message.endswith("the last words")


def test_a_pod_that_the_kubelet_evicted_is_told(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        _, second = job.run()
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on disk."}
        server.pods[second]["status"] = status
        server.pods.pop(next(n for n in server.pods if n.startswith(f"{job.name}-node") and n != second))
        job.condition("Failed", "True", "FailedJobs", "jobset failed")

    assert "was taken away, Evicted:\nThe node was low on disk." in failing(cluster(story))


def test_a_failure_without_pods_still_has_its_message(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(lambda _, job: job.fail("no pods were ever made"))
    assert failing(server) == f"TrainJob {job_name(URI)} failed: no pods were ever made"


def test_deleted_by_another_hand(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.run()
        server.seen()
        del server.jobs[job.name]

    assert "was deleted while this run waited" in failing(cluster(story))


def test_a_job_outlives_its_pod_and_the_step_s_retry_adopts_it(
    cluster: Callable[..., FakeKubernetes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = cluster()
    workflow = left_running(server)
    del server.pods[LAUNCHER]
    server.collect_garbage()
    uid = server.jobs[job_name(URI)]["metadata"]["uid"]
    server.launch_pod("train-pod-2")
    monkeypatch.setenv("KFP_POD_NAME", "train-pod-2")
    before = len(server.requests)
    job = Job(server, server.jobs[job_name(URI)])
    job.run()
    _later(server, job.complete)
    lines = run(server)
    assert any("adopted, running" in line for line in lines)
    adopted = server.jobs[job_name(URI)]["metadata"]
    assert adopted["uid"] == uid and [one["uid"] for one in adopted["ownerReferences"]] == [workflow]
    assert {p[0] for p, _ in server.requests[before:]} <= {"get", "list"} and not server.deleted
    del server.workflows[WORKFLOW]
    server.collect_garbage()
    assert not server.jobs


def test_another_run_that_wants_the_same_training_owns_it_too(
    cluster: Callable[..., FakeKubernetes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = cluster()
    first = left_running(server)
    again = server.workflow("offline-alignment-2")
    server.launch_pod("train-pod-2", "offline-alignment-2")
    monkeypatch.setenv("KFP_POD_NAME", "train-pod-2")
    job = Job(server, server.jobs[job_name(URI)])
    job.run()
    _later(server, job.complete)
    run(server)
    owners = server.jobs[job_name(URI)]["metadata"]["ownerReferences"]
    assert [one["uid"] for one in owners] == [first, again["metadata"]["uid"]]
    del server.workflows[WORKFLOW]
    server.collect_garbage()
    assert server.jobs


@pytest.mark.parametrize(
    ("owners", "kind", "name"),
    [
        ([], "Pod", LAUNCHER),
        (
            [{"apiVersion": "batch/v1", "kind": "Job", "name": "by-hand", "uid": "7", "controller": True}],
            "Job",
            "by-hand",
        ),
    ],
)
def test_a_pod_of_no_workflow_is_said(
    cluster: Callable[..., FakeKubernetes], owners: list[dict[str, Any]], kind: str, name: str
) -> None:
    server = cluster(succeed)
    server.pods[LAUNCHER]["metadata"]["ownerReferences"] = owners
    lines = run(server)
    assert f"belongs to {kind} {name} and is deleted with it" in lines[0]
    (owner,) = server.jobs[job_name(URI)]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == (kind, name) and "controller" not in owner


def test_a_lost_node_restarts_all_and_that_is_told(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        _, second = job.run()
        server.seen()
        job.end_pod(second, 143)
        job._counts(active=1)
        server.seen()
        job.restart(1)
        job.pods()
        server.seen()
        job.run()
        server.seen()
        job.complete()

    lines = run(cluster(story))
    assert states(lines) == ["running", "succeeded"] or states(lines) == ["created", "running", "succeeded"]
    text = "\n".join(lines)
    assert "restarting, since a node was lost. node 1 (pod" in text and "exit code 143" in text
    assert "running, restart 1: all nodes go on from their last checkpoint" in text


def _later(server: FakeKubernetes, act: Callable[[], Any]) -> None:
    def wait() -> None:
        server.seen(3)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_one_that_succeeded_is_not_run_again(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(succeed)
    run(server)
    before = len(server.requests)
    assert states(run(server)) == ["succeeded"]
    assert {p[0] for p, _ in server.requests[before:]} <= {"get", "list"}


def test_one_that_failed_is_deleted_and_run_again(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(lambda _, job: job.fail())
    failing(server)
    uid = server.jobs[job_name(URI)]["metadata"]["uid"]
    server.story = succeed
    assert states(run(server))[-1] == "succeeded"
    ((name, options),) = server.deleted
    assert name == job_name(URI) and options["preconditions"] == {"uid": uid}


def test_one_with_other_pods_that_runs_is_an_error(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster()
    left_running(server)
    Job(server, server.jobs[job_name(URI)]).run()
    with pytest.raises(EngineError, match=r"is running for this very training, with other nodes.*kubectl"):
        run(server, nodes=4)
    assert not server.deleted
