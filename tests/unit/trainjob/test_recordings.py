"""What real servers answered, played to the client and held against the fakes."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubealign_components.trainjob.kueue import QueueWatch
from kubealign_components.trainjob.logs import LogStream
from kubealign_components.trainjob.manifest import MANAGER, job_name, train_job_body
from kubealign_components.trainjob.pods import failure, node_of, pods_of, restart_of, waits
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings
from kubealign_components.trainjob.states import JobState, state_of
from kubealign_components.trainjob.step_pod import Owner, StepPod, this_pod
from kubealign_components.trainjob.workflow import is_workflow, why_over
from support.argo_retries import ERROR, FAILED, Attempt, Retries
from support.fake_admission import Refusal, refused_change, refused_creation, refused_pod
from support.fake_kubernetes import FakeKubernetes
from support.train_jobs import api_of

TESTS = Path(__file__).parents[2]
RECORDINGS = TESTS / "recordings" / "trainjob"
RUNTIMES = {"torch-distributed"}
Json = dict[str, Any]


def recorded(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


@pytest.fixture
def server(cluster: Callable[..., FakeKubernetes]) -> FakeKubernetes:
    """The fake with what was recorded in it."""
    made = cluster()
    job = recorded("train-job")
    made.jobs[job["metadata"]["name"]] = job
    made.pods |= {pod["metadata"]["name"]: pod for pod in recorded("pods")}
    made.workloads |= {one["metadata"]["name"]: one for one in recorded("workloads")}
    uids = {one["metadata"]["name"]: one["metadata"]["uid"] for one in (job, *recorded("workloads"))}
    for number, event in enumerate(recorded("events")):
        event["metadata"] = {"uid": str(number)}
        event["involvedObject"]["uid"] = uids.get(event["involvedObject"]["name"], "")
        made.events.append(event)
    for name in made.pods:
        made.logs[name] = [("2026-11-26T19:48:00.000000000Z", f"the log of {name}")]
    return made


def test_a_job_that_ended_well_and_its_pods(server: FakeKubernetes) -> None:
    job = recorded("train-job")
    name = job["metadata"]["name"]
    assert state_of(job) is JobState.SUCCEEDED
    assert name == job_name(job["metadata"]["annotations"]["kubealign/job"])
    api = api_of(server)
    pods = pods_of(api, name)
    assert [node_of(pod) for pod in pods] == [0, 1] and restart_of(pods) == 0
    assert not any(waits(pod) for pod in pods) and failure(api, name) == ""


def test_a_job_before_its_end_as_its_conditions_were(server: FakeKubernetes) -> None:
    job = recorded("train-job")
    job["status"]["conditions"] = job["status"]["conditions"][:1]
    job["status"]["jobsStatus"][0] |= {"succeeded": 0, "ready": 1, "active": 1}
    assert state_of(job) is JobState.RUNNING
    job["status"]["jobsStatus"][0]["ready"] = 0
    assert state_of(job) is JobState.RESUMED and state_of(job, before=JobState.RUNNING) is JobState.RESTARTING


def test_the_queue_and_the_events_of_it(server: FakeKubernetes) -> None:
    lines: list[str] = []
    QueueWatch(api_of(server), lines.append).look(recorded("train-job"))
    assert lines[0] == "Kueue, queue alignment: admitted"
    assert any("CreatedWorkload (TrainJob kubealign-173a8f1d2e6d690e)" in line for line in lines)
    assert any("Admitted by ClusterQueue kubealign" in line for line in lines)


def test_the_log_of_node_0(server: FakeKubernetes) -> None:
    lines: list[str] = []
    name = recorded("train-job")["metadata"]["name"]
    LogStream(api_of(server), name, lines.append, 0.01).finish(1.0)
    assert lines == ["the log of kubealign-173a8f1d2e6d690e-node-0-0-26tfx"]


def test_a_step_s_pod_belongs_to_its_workflow(
    server: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = json.loads((TESTS / "recordings" / "stage-pod.json").read_text())
    server.pods[pod["metadata"]["name"]] = pod
    monkeypatch.setenv("KFP_POD_NAME", pod["metadata"]["name"])
    found = this_pod(api_of(server))
    assert found.image == "kubealign/data:0.1.0" and is_workflow(found.owner.reference)
    assert found.owner.name == pod["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    assert found.owner.reference.keys() == {"apiVersion", "kind", "name", "uid"}


def test_a_run_that_was_terminated_wants_its_job_no_more() -> None:
    workflow = recorded("workflow-lost-pod")
    workflow["metadata"]["uid"] = "u"
    assert why_over(workflow, "u") == "its run was terminated"
    del workflow["spec"]["activeDeadlineSeconds"]
    assert why_over(workflow, "u") == "its Workflow is Failed"
    workflow["status"] = {"phase": "Running"}
    assert why_over(workflow, "u") == "" and why_over(workflow, "another") == "its Workflow is gone"


def body(name: str = "refusal") -> Json:
    """A TrainJob as we make it."""
    job = recorded("train-job")
    pod = {"image": "i", "service_account": "kubealign", "labels": {}, "name": "pod"}
    owner = Owner(api_version="argoproj.io/v1alpha1", kind="Workflow", name="w", uid="u")
    made = train_job_body(
        job["metadata"]["annotations"]["kubealign/job"],
        2,
        1,
        pod=StepPod(**pod, owner=owner),
        shape=PodShape(),
        settings=TrainJobSettings(shared_memory="1Gi"),
    )
    made["metadata"]["name"] = name
    return made


def with_(change: Callable[[Json], object], name: str = "refusal") -> Json:
    made = body(name)
    change(made)
    return made


def _node(made: Json) -> Json:
    (patch, *_) = made["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return {"container": container, "replicated": replicated, "patch": patch}


CREATED: dict[str, Callable[[Json], object]] = {
    "as made, manager mended": lambda b: None,
    "manager that is no domain path": lambda b: _node(b)["patch"].update(manager="kubealign"),
    "manager with empty path": lambda b: _node(b)["patch"].update(manager="kubealign.org/"),
    "two patches of one manager": lambda b: b["spec"]["runtimePatches"].append({"manager": MANAGER}),
    "env on container node in a patch": lambda b: _node(b)["container"].update(
        env=[{"name": "A", "value": "b"}]
    ),
    "container of another name": lambda b: _node(b)["container"].update(name="other"),
    "reserved PET_NNODES": lambda b: b["spec"]["trainer"].update(env=[{"name": "PET_NNODES", "value": "2"}]),
    "unknown runtime": lambda b: b["spec"]["runtimeRef"].update(name="no-such-runtime"),
    "name of 64": lambda b: b["metadata"].update(name="a" * 64),
    "name of 60": lambda b: b["metadata"].update(name="a" * 60),
    "name of 50": lambda b: b["metadata"].update(name="a" * 50),
    "name with a dot": lambda b: b["metadata"].update(name="a.b"),
    "numNodes 0": lambda b: b["spec"]["trainer"].update(numNodes=0),
    "numProcPerNode auto": lambda b: b["spec"]["trainer"].update(numProcPerNode="auto"),
    "numProcPerNode 1.5": lambda b: b["spec"]["trainer"].update(numProcPerNode="1.5"),
    "replicated job of another name in a patch": lambda b: _node(b)["replicated"].update(name="other"),
    "label value of 64": lambda b: b["metadata"]["labels"].update(x="a" * 64),
    "queue name label that is no name": lambda b: b["metadata"]["labels"].update(
        {"kueue.x-k8s.io/queue-name": "Not_A_Name"}
    ),
}
CONTROLLERS = [{"kind": "Pod", "name": name, "uid": name, "controller": True} for name in "ab"]
CHANGED: dict[str, Callable[[Json], object]] = {
    "patch: change image": lambda b: b["spec"]["trainer"].update(image="other"),
    "patch: change numNodes": lambda b: b["spec"]["trainer"].update(numNodes=9),
    "patch: change runtimeRef": lambda b: b["spec"]["runtimeRef"].update(name="other"),
    "patch: resume": lambda b: b["spec"].update(suspend=False),
    "patch: new label": lambda b: b["metadata"]["labels"].update(new="label"),
    "patch: another owner": lambda b: b["metadata"]["ownerReferences"].append(CONTROLLERS[0]),
    "patch: two controlling owners": lambda b: b["metadata"].update(ownerReferences=CONTROLLERS),
    "patch: patches while suspended": lambda b: b["spec"].update(suspend=True, runtimePatches=[]),
}
OTHER = {
    "unknown field",  # refused by the schema, under the strict validation that the client asks for
    "same name again",
    "delete what is not there",
    "restricted namespace: pod without runAsNonRoot",
}


def test_every_recorded_answer_has_its_request() -> None:
    assert {one["request"] for one in recorded("refusals")} == CREATED.keys() | CHANGED.keys() | OTHER


@pytest.mark.parametrize("request_", sorted(CREATED | CHANGED))
def test_the_fake_answers_as_the_servers_did(request_: str) -> None:
    (answer,) = (one for one in recorded("refusals") if one["request"] == request_)
    if request_ in CREATED:
        refused = refused_creation(with_(CREATED[request_]), RUNTIMES)
    else:
        before = body("living")
        refused = refused_change(before, with_(CHANGED[request_], "living") | {"kind": "TrainJob"})
        assert before == body("living")
    _same(refused, answer)


def _same(refused: Refusal | None, answer: Json) -> None:
    if answer["code"] < 300:
        assert refused is None
        return
    assert refused is not None and refused[0] == answer["code"]
    # As far as the server's words go before it quotes what it was sent.
    assert refused[1].split(": Invalid value")[0] == answer["message"].split(": Invalid value")[0]


def test_a_restricted_namespace_wants_what_the_training_runtime_has() -> None:
    (answer,) = (one for one in recorded("refusals") if one["request"].startswith("restricted namespace"))
    bare: Json = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main"}]}}
    refused = refused_pod(bare)
    assert refused == (answer["code"], answer["message"])
    runtime = yaml.safe_load((TESTS.parent / "manifests" / "base" / "training-runtime.yaml").read_text())
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = copy.deepcopy(job["template"]["spec"]["template"]) | {"metadata": {"name": "node"}}
    assert refused_pod(pod) is None


def ours() -> Retries:
    """The retry policy that is compiled into every task."""
    golden = next(yaml.safe_load_all((TESTS / "golden" / "offline_alignment.yaml").read_text()))
    policies = [
        task["retryPolicy"]
        for dag in [golden["root"], *golden["components"].values()]
        for task in dag.get("dag", {}).get("tasks", {}).values()
        if "retryPolicy" in task
    ]
    assert len({str(policy) for policy in policies}) == 1
    return Retries.compiled(policies[0])


def seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def test_argo_retried_the_lost_pod_and_not_the_terminated_one() -> None:
    nodes = recorded("workflow-lost-pod")["status"]["nodes"]
    lost, terminated = sorted((n for n in nodes if n["type"] == "Pod"), key=lambda n: str(n["startedAt"]))
    attempts = [
        Attempt(started=seconds(n["startedAt"]), finished=seconds(n["finishedAt"]), phase=n["phase"])
        for n in (lost, terminated)
    ]
    begins, _ = ours().after(attempts[:1], "2.17")
    assert begins is not None and 0 <= attempts[1].started - begins <= 20  # and the scheduler's time
    deadline = attempts[1].started  # a deadline of 0 seconds is one that has passed
    begins, why = ours().after(attempts, "2.17", deadline=deadline)
    assert begins is None and next(n for n in nodes if n["type"] == "Retry")["message"].startswith(why)


@pytest.mark.parametrize(
    ("release", "phase", "retried"),
    [("2.16", FAILED, True), ("2.16", ERROR, False), ("2.17", FAILED, False), ("2.17", ERROR, True)],
)
@pytest.mark.parametrize("minutes", [1, 11, 300, 6 * 24 * 60])
def test_which_lost_work_kubeflow_begins_again(release: str, phase: str, retried: bool, minutes: int) -> None:
    attempt = Attempt(started=0, finished=60 * minutes, phase=phase)
    begins, why = ours().after([attempt], release)
    assert (begins is not None) is retried, why


def test_a_short_window_would_end_it() -> None:
    short = Retries(limit=2, duration=1, factor=2, max_duration=20)
    attempt = Attempt(started=0, finished=25, phase=ERROR)
    assert short.after([attempt], "2.17") == (None, "Max duration limit exceeded")
