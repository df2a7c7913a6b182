"""`kubealign gc` against the fake Kubernetes API server, with the permissions of its own Role."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubealign.cli.main import main
from support.fake_kubernetes import LAUNCHER, WORKFLOW, FakeKubernetes, Job, granted_by

ROLE = Path(__file__).parents[3] / "manifests" / "base" / "role-gc.yaml"
OURS = {"app.kubernetes.io/managed-by": "kubealign", "pipeline/runid": "run-1"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    made = FakeKubernetes(granted=granted_by(ROLE))
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "config")))
    yield made
    made.close()


def hours_ago(hours: float) -> str:
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def add(server: FakeKubernetes, name: str, age: float, *owners: dict[str, Any], **labels: str) -> Job:
    references = [
        {
            "apiVersion": "v1"
            if "containers" in o.get("spec", {"containers": 0})
            else "argoproj.io/v1alpha1",
            "kind": "Pod" if "containers" in o.get("spec", {"containers": 0}) else "Workflow",
            "name": o["metadata"]["name"],
            "uid": o["metadata"]["uid"],
        }
        for o in owners
    ]
    meta = {"name": name, "labels": OURS | labels, "ownerReferences": references}
    job = server.add({"metadata": meta, "spec": {"trainer": {"numNodes": 2}}})
    job.body["metadata"]["creationTimestamp"] = hours_ago(age)
    return job


def end(pod: dict[str, Any], hours: float) -> dict[str, Any]:
    ended = {"state": {"terminated": {"exitCode": 143, "finishedAt": hours_ago(hours)}}}
    pod["metadata"]["creationTimestamp"] = hours_ago(99)
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "main", **ended}]}
    return pod


def finish(job: Job, kind: str, hours: float) -> None:
    job.condition(kind, "True")
    job.body["status"]["conditions"][-1]["lastTransitionTime"] = hours_ago(hours)


def gc(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["gc", *arguments])


def fill(server: FakeKubernetes) -> None:
    living = server.pods[LAUNCHER]
    stopped, just_now = end(server.launch_pod("stopped"), 1.0), end(server.launch_pod("just-now"), 0.1)
    gone = {"metadata": {"name": "gone", "uid": "0"}}
    reborn = {"metadata": {"name": LAUNCHER, "uid": "0"}}
    add(server, "watched", 500, living)
    add(server, "watched-again", 500, stopped, living)
    add(server, "stopped-job", 5, stopped).run()
    add(server, "about-to-be-retried", 5, stopped, just_now)
    add(server, "owner-gone", 5, gone).queue()
    add(server, "owner-has-anothers-name", 5, reborn)
    add(server, "young", 0.2, gone)
    ended, cancelled = server.workflow("ended"), server.workflow("cancelled")
    ended["status"] = {"phase": "Failed", "finishedAt": hours_ago(0.6)}
    server.terminate_run("cancelled")
    add(server, "of-a-living-run", 500, server.workflows[WORKFLOW]).run()
    add(server, "of-a-run-that-ended", 5, ended).run()
    add(server, "of-a-cancelled-run", 5, cancelled).queue()
    add(server, "of-a-run-that-another-adopted", 5, cancelled, server.workflows[WORKFLOW]).run()
    finish(add(server, "old", 400, stopped), "Complete", 200)
    finish(add(server, "old-failed", 400, living), "Failed", 169)
    finish(add(server, "finished-lately", 400, stopped), "Failed", 100)
    add(server, "somebody-elses", 500, gone, **{"app.kubernetes.io/managed-by": "me"})


EXPECTED = {
    *("stopped-job", "owner-gone", "owner-has-anothers-name", "old", "old-failed"),
    *("of-a-run-that-ended", "of-a-cancelled-run"),
}


def test_what_nobody_waits_for_goes_and_the_role_grants_just_that(server: FakeKubernetes) -> None:
    fill(server)
    done = gc()
    assert done.exit_code == 0, done.output
    assert {name for name, _ in server.deleted} == EXPECTED
    assert "deleted stopped-job (run run-1): running, and no run has waited for it for 1.0 h" in done.output
    assert "deleted owner-gone (run run-1): queued" in done.output
    assert "deleted old (run run-1): succeeded 200.0 h ago" in done.output
    assert done.output.endswith("7 TrainJobs in namespace team\n")
    assert server.used() == granted_by(ROLE)


def test_a_dry_run_deletes_nothing(server: FakeKubernetes) -> None:
    fill(server)
    done = gc("--dry-run")
    assert done.exit_code == 0 and not server.deleted
    assert done.output.count("would delete") == len(EXPECTED)


def test_times_can_be_set(server: FakeKubernetes) -> None:
    fill(server)
    assert gc("--keep-hours", "99", "--grace-minutes", "90", "--dry-run").output.count("would delete") == 6
    assert "finished-lately" in gc("--keep-hours", "99", "--dry-run").output
    assert gc("--grace-minutes", "-1").exit_code == 2


def test_a_missing_permission_is_one_line(server: FakeKubernetes) -> None:
    server.granted = set()
    done = gc()
    assert done.exit_code == 1
    assert done.output.startswith("Error: permission missing: list trainjobs.trainer.kubeflow.org")
    assert len(done.output.splitlines()) == 1


def test_no_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = gc()
    assert done.exit_code == 1
    assert done.output.startswith("Error: no Kubernetes cluster to talk to")
    assert len(done.output.splitlines()) == 1
