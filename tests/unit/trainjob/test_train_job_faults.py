"""A TrainJob where something is missing, fails or ends: permissions, connections, logs, the run itself."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp import dsl

from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.trainjob.launcher import launcher_for, train_job
from kubealign_components.trainjob.logs import Position
from kubealign_components.trainjob.manifest import SPEC_DIGEST, job_name
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings
from support import fake_kubernetes
from support.fake_kubernetes import LAUNCHER, WORKFLOW, FakeKubernetes, Job, granted_by
from support.train_jobs import FAST, ROLE, SHAPE, URI, api_of, failing, left_running, run, states, succeed


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The downward API of a KFP step's pod."""
    monkeypatch.setenv("KFP_POD_NAME", LAUNCHER)


def test_a_refused_dry_run_creates_nothing(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster()
    server.runtimes.clear()
    assert '"torch-distributed" not found' in failing(server)
    assert not server.jobs


def test_a_body_that_the_crd_does_not_take_is_refused(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster()
    shape = PodShape(volumes=({"name": "x", "emptyDirectory": {}},))
    with pytest.raises(EngineError, match="emptyDirectory"):
        train_job(api_of(server), 2, 1, shape, TrainJobSettings(**FAST), [].append)(URI)


def test_a_missing_permission_is_named(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster()
    assert server.granted is not None
    server.granted -= {("create", "trainer.kubeflow.org", "trainjobs")}
    message = failing(server)
    assert "permission missing: create trainjobs.trainer.kubeflow.org in namespace team" in message
    assert "Roles in manifests/base" in message


def test_missing_permissions_to_look_do_not_stop_training(cluster: Callable[..., FakeKubernetes]) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.queue()
        server.seen(3)
        job.resume()
        succeed(server, job)

    server = cluster(story)
    assert server.granted is not None
    server.granted -= {("list", "", "events"), ("list", "", "pods"), ("list", "kueue.x-k8s.io", "workloads")}
    text = "\n".join(run(server))
    for what in ("list events", "list pods", "list workloads.kueue.x-k8s.io"):
        assert what in text
    assert text.count("list events") == 1


def test_a_cluster_without_kueue(cluster: Callable[..., FakeKubernetes]) -> None:
    server = cluster(succeed)
    server.no_kueue = True
    assert states(run(server))[-1] == "succeeded"


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_server_that_fails_for_a_while(cluster: Callable[..., FakeKubernetes], status: int) -> None:
    server = cluster(succeed)
    verbs = (
        "get pods",
        "get trainjobs",
        "create trainjobs",
        "create trainjobs",
        "get trainjobs",
        "list pods",
    )
    server.faults = [(verb, status) for verb in verbs for _ in range(2)]
    lines = run(server)
    assert states(lines)[-1] == "succeeded" and len(server.jobs) == 1 and not server.faults
    assert not server.deleted


def test_a_server_that_stays_away_is_an_error_and_the_job_stays(
    cluster: Callable[..., FakeKubernetes],
) -> None:
    def story(server: FakeKubernetes, job: Job) -> None:
        job.run()
        server.faults = [("get trainjobs", 503)] * 1000

    server = cluster(story)
    with pytest.raises(EngineError, match=r"did not get trainjobs.* within 0.3 s: 503"):
        api = api_of(server, deadline=0.3)
        train_job(api, 2, 0, SHAPE, TrainJobSettings(**FAST), [].append)(URI)
    assert server.jobs and not server.deleted


def test_the_log_of_the_first_pod_comes_once_and_whole(cluster: Callable[..., FakeKubernetes]) -> None:
    """Over a broken connection, the same second again, rotation, and a pod that came anew."""
    lines: list[str] = []

    def until(text: str) -> None:
        end = time.monotonic() + 20
        while text not in lines and time.monotonic() < end:
            time.sleep(0.01)

    def story(server: FakeKubernetes, job: Job) -> None:
        first, second = job.run()
        server.write(second, "of another node")
        server.write(first, "one", "two")
        until("two")
        server.break_streams()
        server.write(first, "three")
        until("three")
        server.rotate(first)
        server.write(first, "four")
        until("four")
        for name in (first, second):
            server.pods.pop(name)
        job.pods()
        first, _ = job.run()
        server.write(first, "five")
        until("five")
        server.write(first, "the end")
        job.complete()

    train_job(api_of(cluster(story)), 2, 0, SHAPE, TrainJobSettings(**FAST), lines.append)(URI)
    text = [line for line in lines if not line.startswith("[TrainJob")]
    assert text == ["one", "two", "three", "four", "five", "the end"]


def test_a_position_in_a_log_knows_lines_it_had() -> None:
    position = Position()
    first = "2026-11-21T10:00:00.5Z one"
    assert position.fresh(first) == "one"
    assert position.fresh("2026-11-21T10:00:00.500000001Z two") == "two"
    assert position.since == {"sinceTime": "2026-11-21T10:00:00Z"}
    assert position.fresh(first) is None
    assert position.fresh("2026-11-21T10:00:00.500000001Z two") is None
    assert position.fresh("2026-11-21T10:00:00.500000001Z also then") == "also then"
    assert position.fresh("failed to rotate the log") == "failed to rotate the log"
    assert position.fresh("2026-11-21T10:00:01Z") == ""


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us to ignore it
from kubealign_components.trainjob.launcher import launcher_for
start = launcher_for(2, 1, None, {"poll_seconds": 0.05})
try:
    start(sys.argv[1])
finally:
    print("ended", flush=True)
"""


def signalled(
    server: FakeKubernetes, tmp_path: Path, how: signal.Signals, before: Callable[[], object] = lambda: None
) -> tuple[str, float]:
    """What a launcher writes that is sent a signal while its TrainJob runs, and its seconds to the end."""

    def story(server: FakeKubernetes, job: Job) -> None:
        server.write(job.run()[0], "step 1")

    server.story = story
    environment = os.environ | {"KUBECONFIG": str(server.kubeconfig(tmp_path / "config"))}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, URI], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "step 1\n":
            assert process.poll() is None
        before()
        began = time.monotonic()
        process.send_signal(how)
        process.wait(10)
        took = time.monotonic() - began
        assert process.returncode == (143 if how is signal.SIGTERM else -signal.SIGINT)
        return process.stdout.read(), took


CANCELLED = {
    "terminated": lambda s: s.terminate_run(),
    "stopped": lambda s: s.workflows[WORKFLOW]["spec"].update(shutdown="Terminate"),
    "being deleted": lambda s: s.workflows[WORKFLOW]["metadata"].update(
        deletionTimestamp="2026-11-26T20:00:00Z"
    ),
    "gone": lambda s: s.workflows.clear(),
    "another of its name": lambda s: s.workflow(),
    "failed": lambda s: s.workflows[WORKFLOW]["status"].update(phase="Failed"),
}


@pytest.mark.parametrize("cancel", CANCELLED.values(), ids=CANCELLED)
def test_sigterm_in_a_run_that_is_cancelled_deletes_the_job_at_once(
    cluster: Callable[..., FakeKubernetes], tmp_path: Path, cancel: Callable[[FakeKubernetes], object]
) -> None:
    server = cluster()
    text, took = signalled(server, tmp_path, signal.SIGTERM, lambda: cancel(server))
    ((name, options),) = server.deleted
    assert name == job_name(URI) and "deleted: its " in text
    assert options["gracePeriodSeconds"] == 0 and options["propagationPolicy"] == "Background"
    assert took < 5  # of the 30 that a pod has; a busy machine takes its time


def test_ctrl_c_deletes_the_job(cluster: Callable[..., FakeKubernetes], tmp_path: Path) -> None:
    server = cluster()
    signalled(server, tmp_path, signal.SIGINT)
    assert [name for name, _ in server.deleted] == [job_name(URI)]


def test_a_pod_that_is_only_moved_leaves_the_job_to_the_retry(
    cluster: Callable[..., FakeKubernetes], tmp_path: Path
) -> None:
    server = cluster()
    text, _ = signalled(server, tmp_path, signal.SIGTERM)
    assert not server.deleted and "a retry takes it on" in text
    assert Job(server, server.jobs[job_name(URI)]).body["status"]["jobsStatus"][0]["ready"] == 1


def test_where_nobody_can_say_whether_the_run_is_cancelled_the_job_stays(
    cluster: Callable[..., FakeKubernetes], tmp_path: Path
) -> None:
    server = cluster()
    assert server.granted is not None
    server.granted -= {("get", "argoproj.io", "workflows")}
    text, _ = signalled(server, tmp_path, signal.SIGTERM, server.terminate_run)
    assert not server.deleted and "get workflows.argoproj.io" in text


def test_a_job_that_another_run_has_taken_on_outlives_the_cancelled_one(
    cluster: Callable[..., FakeKubernetes], tmp_path: Path
) -> None:
    server = cluster()

    def taken_on() -> None:
        other = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "other", "uid": "9"}
        server.jobs[job_name(URI)]["metadata"]["ownerReferences"].append(other)
        server.terminate_run()

    text, _ = signalled(server, tmp_path, signal.SIGTERM, taken_on)
    assert not server.deleted and "another run wants the TrainJob" in text


def test_one_node_needs_no_cluster() -> None:
    assert launcher_for(1, 0) is None


@pytest.mark.parametrize("stage", ["train", "train_reward_model", "train_ppo"])
def test_a_component_asks_for_several_nodes_before_it_reads_anything(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    component = getattr(importlib.import_module(f"kubealign_components.{stage}.component"), stage)
    parameters = inspect.signature(component.python_func).parameters.values()
    artifacts = {p.name: dsl.Artifact() for p in parameters if p.default is inspect.Parameter.empty}
    with pytest.raises(EngineError, match="no Kubernetes cluster"):
        component.python_func(**artifacts | {"policy": "none", "nodes": 2, "work": "/work"})


def test_settings_are_checked_for_one_node_as_well() -> None:
    with pytest.raises(ConfigError, match="queue_timout"):
        launcher_for(1, 0, None, {"queue_timout": 3})


def test_outside_of_a_pod_that_is_said(
    cluster: Callable[..., FakeKubernetes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "laptop")
    assert "leave nodes at 1" in failing(cluster())


def test_without_a_cluster_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="no Kubernetes cluster"):
        launcher_for(2, 0)


def test_the_role_grants_what_is_called_and_nothing_else() -> None:
    """Every way that a TrainJob goes, with every permission: what the code asks for is what the Role has."""
    used: set[fake_kubernetes.Permission] = set()

    def queued_then_failed(server: FakeKubernetes, job: Job) -> None:
        job.queue()
        server.seen(3)
        job.resume()
        first, _ = job.run()
        server.write(first, "text")
        server.seen(3)
        job.evict()
        server.seen(3)
        job.resume()
        first, _ = job.run()
        server.write(first, "text")
        server.seen(3)
        job.end_pod(first, 1)
        job.fail()

    server = FakeKubernetes(queued_then_failed)
    failing(server)
    server.story = succeed
    run(server)
    server.jobs.clear()
    left_running(server)
    server.workflow("another-run")
    server.launch_pod(LAUNCHER, "another-run")
    job = Job(server, server.jobs[job_name(URI)])
    job.queue()
    failing(server, queue_timeout=1)
    used |= server.used()
    server.close()
    # Asked for by a launcher that is told to end.
    assert used | {("get", "argoproj.io", "workflows")} == granted_by(ROLE)


def test_the_digest_of_a_spec_does_not_depend_on_who_starts_it(
    cluster: Callable[..., FakeKubernetes],
) -> None:
    server = cluster(succeed)
    run(server)
    first = server.jobs.pop(job_name(URI))
    server.workflow()
    server.launch_pod(LAUNCHER)
    run(server)
    second = server.jobs[job_name(URI)]
    assert first["metadata"]["ownerReferences"] != second["metadata"]["ownerReferences"]
    assert first["metadata"]["annotations"] == second["metadata"]["annotations"]
    assert SPEC_DIGEST in json.dumps(first["metadata"])
