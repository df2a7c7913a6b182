"""Every recorded answer of the real servers, played to the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kubealign.cli.main import main
from kubealign.cluster.kube import Kubernetes
from kubealign.cluster.pods import pods_of
from kubealign.cluster.workflows import state_with, workflows_of
from support.fake_kfp import RECORDINGS, Kfp, Kube, recording

NAMESPACE = "kubealign"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
WORKFLOWS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows"
PLAYED = {
    "run-succeeded",
    "run-failed",
    "recurring-runs",
    "pods-of-a-run",
    "workflow-terminated",
    "stage-pod",
}


@pytest.fixture
def kfp() -> Iterator[Kfp]:
    server = Kfp()
    server.namespace = NAMESPACE
    server.held["runs"] = [recording("run-failed"), recording("run-succeeded")]
    server.held["recurringruns"] = recording("recurring-runs")["recurringRuns"]
    with server.serving():
        yield server


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    server = Kube()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    pods = [*recording("pods-of-a-run")["items"], recording("stage-pod")]
    workflow = recording("workflow-terminated")
    server.collections = {PODS: pods, WORKFLOWS: [workflow]}
    server.logs = {pod["metadata"]["name"]: f"{pod['metadata']['name']} wrote\n" for pod in pods}
    with server.serving():
        yield server


def call(kfp: Kfp, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--host", kfp.host, "--namespace", NAMESPACE])


def test_all_of_them_are_played() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.json")} == PLAYED


def test_runs_and_schedules_are_listed(kfp: Kfp, kube: Kube) -> None:
    rows = json.loads(call(kfp, "runs", "--json").stdout)
    assert [(row["name"], row["state"], row["seconds"]) for row in rows] == [
        ("second", "failed", "511"),
        ("third", "succeeded", "319"),
    ]
    (schedule,) = json.loads(call(kfp, "schedule", "list", "--json").stdout)
    assert (schedule["when"], schedule["state"], schedule["catch up"]) == ("every 7200 s", "running", "no")


def test_logs_of_a_run_are_those_of_its_executors(kfp: Kfp, kube: Kube) -> None:
    """The answer names no pod, and 34 of the run's 36 pods are drivers."""
    done = call(kfp, "logs", "third")
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if line.startswith("==")] == [
        "== evaluate-2 offline-alignment-7s7q8-metadata-0-1-retry-system-container-impl-3424998158 Succeeded",
        "== train-2 offline-alignment-7s7q8-metadata-0-1-retry-system-container-impl-56924555 Succeeded",
    ]
    assert done.output.count(" wrote\n") == 2
    one = call(kfp, "logs", "third", "train")
    assert one.exit_code == 0 and one.output.count("==") == 1


def test_a_run_without_pods_and_logs_is_told_so(kfp: Kfp, kube: Kube) -> None:
    done = call(kfp, "logs", "second")
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert "none of its pods is left" in done.output


def test_a_pod_of_a_stage_is_known_as_its_task(kube: Kube) -> None:
    run = recording("stage-pod")["metadata"]["labels"]["pipeline/runid"]
    (pod,) = pods_of(Kubernetes(), NAMESPACE, run)
    assert (pod.task, pod.chunks, pod.attempt, pod.phase) == ("select-2", (), 0, "Succeeded")


def test_a_terminated_workflow_is_canceled_and_not_failed(kube: Kube) -> None:
    run = recording("workflow-terminated")["metadata"]["labels"]["pipeline/runid"]
    found = workflows_of(Kubernetes(), NAMESPACE, [run])
    assert state_with("failed", found[run]) == "canceled"
