"""Commands against a Kubeflow Pipelines API over HTTP; request bodies must be what its models say."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kubealign.cli.main import main
from kubealign.cluster.outputs import StoredOutput, fetch_output
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import StoreError
from kubealign_components.store import ObjectInfo
from support.fake_kfp import Kfp, KfpHandler, Kube
from support.tiny import prompt_row

GIVEN = [
    "--set",
    "sources=[{name: a, uri: org/data}]",
    "--set",
    "policy=org/model",
    "--set",
    "reward_functions=['kubealign_components.rewards.functions:brevity']",
    "--set",
    "work=gs://b/work",
]


@pytest.fixture
def api() -> Iterator[Kfp]:
    server = Kfp()
    with server.serving():
        yield server
    assert not server.problems


@pytest.fixture(autouse=True)
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    """The cluster below; a developer's own is never asked."""
    server = Kube()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    with server.serving():
        yield server


def call(api: Kfp, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--host", api.host])


def test_submit_sends_what_was_checked_and_compiled(api: Kfp, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("pipeline: offline_alignment\ncompile: {registry: r.example/k, labels: {team: a}}\n")
    done = call(api, "submit", "-f", str(file), *GIVEN, "--name", "one", "--pipeline-root", "gs://b/r")
    assert done.exit_code == 0, done.output
    (run,) = api.held["runs"]
    assert run["run_id"] in done.output and run["display_name"] == "one"
    assert run["runtime_config"]["parameters"]["policy"] == "org/model"
    assert run["runtime_config"]["pipeline_root"] == "gs://b/r"
    (version,) = api.versions
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    text = json.dumps(version["pipeline_spec"])
    assert '"image": "r.example/k/' in text and '"team"' in text


def test_a_bad_parameter_sends_nothing(api: Kfp) -> None:
    done = call(api, "submit", "offline_alignment", *GIVEN, "--set", "sample_n=-1")
    assert done.exit_code == 2 and "sample_n=-1" in done.output and not api.asked


def test_a_schedule_is_applied_by_name(api: Kfp) -> None:
    words = ["schedule", "apply", "nightly", "offline_alignment", *GIVEN]
    assert "created" in call(api, *words, "--cron", "0 0 3 * * *").output
    (made,) = api.held["recurringruns"]
    assert made["mode"] == "ENABLE" and made["no_catchup"] is True and made["max_concurrency"] == "1"
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert "unchanged" in call(api, *words, "--cron", "0 0 3 * * *").output
    assert "replaced" in call(api, *words, "--every", "6h").output
    (made,) = api.held["recurringruns"]
    assert made["trigger"] == {"periodic_schedule": {"interval_second": "21600"}}
    assert call(api, "schedule", "pause", "nightly").exit_code == 0 and made["mode"] == "DISABLE"
    assert "paused" in call(api, "schedule", "list").output
    assert call(api, "schedule", "resume", "nightly").exit_code == 0 and made["mode"] == "ENABLE"
    assert call(api, "schedule", "delete", "nightly").exit_code == 0 and not api.held["recurringruns"]
    again = call(api, "schedule", "delete", "nightly")
    assert again.exit_code == 1 and "'nightly'" in again.output


def test_replacing_and_deleting_a_schedule_leaves_its_runs_alone(api: Kfp) -> None:
    words = ["schedule", "apply", "nightly", "offline_alignment", *GIVEN]
    for change in (["--every", "6h"], ["--every", "12h"]):
        call(api, *words, *change)
        (made,) = api.held["recurringruns"]
        run = {"run_id": str(uuid.uuid4()), "display_name": "night", "state": "RUNNING"}
        api.held["runs"].append({**run, "recurring_run_id": made["recurring_run_id"]})
    assert call(api, "schedule", "delete", "nightly").exit_code == 0
    assert not api.held["recurringruns"] and len(api.held["runs"]) == 2


@pytest.mark.parametrize("when", [["--cron", "0 3 * * *"], ["--every", "6 hours"], []])
def test_a_bad_schedule_sends_nothing(api: Kfp, when: list[str]) -> None:
    done = call(api, "schedule", "apply", "x", "offline_alignment", *GIVEN, *when)
    assert done.exit_code == 2 and not api.asked


def test_runs_of_a_schedule_share_their_work(api: Kfp) -> None:
    without = [*GIVEN, "--set", "work=''"]
    done = call(api, "schedule", "apply", "x", "offline_alignment", *without, "--every", "1d")
    assert done.exit_code == 2 and "work='': expected a prefix that the runs share" in done.output
    assert not api.asked


def test_a_version_is_uploaded_once(api: Kfp) -> None:
    assert call(api, "upload", "offline_alignment", *GIVEN).exit_code == 0
    again = call(api, "upload", "offline_alignment", *GIVEN)
    assert again.exit_code == 1 and re.search(r"offline-alignment.*409", again.output)
    assert len(api.held["pipelines"]) == len(api.versions) == 1


def test_equal_pipelines_are_one_version(api: Kfp) -> None:
    for name, extra in (("one", []), ("two", ["--set", "sample_n=3"])):
        done = call(api, "submit", "offline_alignment", *GIVEN, *extra, "--name", name)
        assert done.exit_code == 0, done.output
    assert len(api.versions) == 1 and len(api.held["runs"]) == 2
    assert api.versions[0]["display_name"].startswith("0.1.0-")


def test_a_run_is_stopped_and_goes_on(api: Kfp) -> None:
    run = api.add_run(display_name="one")
    assert "canceling" in call(api, "cancel", "one").output and run["state"] == "CANCELING"
    run["state"] = "FAILED"
    assert call(api, "cancel", "one").exit_code == 2
    assert "goes on" in call(api, "retry", run["run_id"]).output and run["state"] == "PENDING"
    assert call(api, "retry", "one").exit_code == 2
    assert call(api, "cancel", "other").exit_code == 1


def states(api: Kfp) -> dict[str, str]:
    done = call(api, "runs", "--json")
    assert done.exit_code == 0, done.output
    return {row["name"]: row["state"] for row in json.loads(done.stdout)}


def workflow(run: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "w", "labels": {"pipeline/runid": run["run_id"]}}, "spec": spec}


def test_a_state_is_what_can_be_known(api: Kfp, kube: Kube) -> None:
    goes = api.add_run(display_name="goes")
    api.add_run(display_name="gone")
    stopped = api.add_run(display_name="stopped", state="FAILED")
    failed = api.add_run(display_name="failed", state="FAILED")
    api.add_run(display_name="failed long ago", state="FAILED")
    api.add_run(display_name="done", state="SUCCEEDED")
    told = {"failed": "failed", "failed long ago": "failed", "done": "succeeded"}
    # Nothing is known of Workflows: KFP's word is all there is.
    assert states(api) == {**told, "goes": "running", "gone": "running", "stopped": "failed"}
    kube.collections["/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"] = [
        workflow(goes),
        workflow(stopped, activeDeadlineSeconds=0),
        workflow(failed, activeDeadlineSeconds=86400),
    ]
    assert states(api) == {**told, "goes": "running", "gone": "unknown", "stopped": "canceled"}


def pod(name: str, node: str, phase: str, run: dict[str, Any], created: str = "") -> dict[str, Any]:
    metadata = {
        "name": name,
        "creationTimestamp": created,
        "labels": {"pipeline/runid": run["run_id"]},
        "annotations": {"workflows.argoproj.io/node-name": f"w(0).root(0).{node}"},
    }
    return {"metadata": metadata, "status": {"phase": phase}}


@pytest.fixture
def submitted(api: Kfp, kube: Kube, tmp_path: Path) -> dict[str, Any]:
    """A run with two chunks of samples, one of which failed once, and a training that failed."""
    call(api, "submit", "offline_alignment", *GIVEN, "--name", "one", "--pipeline-root", str(tmp_path / "r"))
    (run,) = api.held["runs"]
    chunk = "for-loop-1(0).iteration-iterations({0}:{0})(0).iteration-item(0).sample(0).executor({1})"
    kube.collections["/api/v1/namespaces/kubeflow/pods"] = [
        pod("t", "train(0).executor(0)", "Failed", run, "2026-11-26T19:50:00Z"),
        pod("b", chunk.format(1, 0), "Succeeded", run, "2026-11-26T19:41:00Z"),
        pod("a2", chunk.format(0, 1), "Succeeded", run, "2026-11-26T19:42:00Z"),
        pod("a1", chunk.format(0, 0), "Failed", run, "2026-11-26T19:40:00Z"),
        pod("d", "train-driver(0)", "Succeeded", run),
    ]
    kube.logs = {name: f"hello from {name}\nbye\n" for name in ("t", "a1", "a2", "b", "d")}
    return run


def test_logs_come_from_the_pods_chunk_by_chunk(api: Kfp, submitted: dict[str, Any]) -> None:
    assert call(api, "logs", "one").output == "== train t Failed\nhello from t\nbye\n"
    done = call(api, "logs", submitted["run_id"], "sample")
    heads = [line for line in done.output.splitlines() if line.startswith("==")]
    assert heads == [
        "== sample, chunk 1 a1 Failed",
        "== sample, chunk 1, attempt 2 a2 Succeeded",
        "== sample, chunk 2 b Succeeded",
    ]
    wrong = call(api, "logs", "one", "tran")
    assert wrong.exit_code == 2 and "one of sample, train" in wrong.output


def test_the_processes_of_a_pod_tell_one_progress(api: Kfp, kube: Kube, submitted: dict[str, Any]) -> None:
    of = "prompts, 1.00 prompts/s, 00:05 left\n"
    kube.logs["t"] = f"sample 1/1 process 1/2: 5/10 {of}sample 1/1 process 2/2: 4/10 {of}loaded\n" * 2
    written = call(api, "logs", "one").output.splitlines()
    assert written.count("loaded") == 2 and len(written) == 5
    assert written[3] == "sample 1/1: 9/20 prompts, 2.00 prompts/s, 00:05 left, 2 of 2 processes"


def test_logs_are_followed_to_the_end_of_the_run(
    api: Kfp, kube: Kube, submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubealign.cluster.pods.time.sleep", lambda _: submitted.update(state="SUCCEEDED"))
    pods = kube.collections["/api/v1/namespaces/kubeflow/pods"]
    pods[0]["status"]["phase"] = "Pending"
    done = call(api, "logs", "one", "--follow")
    assert done.exit_code == 0, done.output
    assert re.findall("hello from ([a-z0-9]+)", done.output) == ["a1", "a2", "b"]


def test_a_log_that_cannot_be_read_is_one_line(api: Kfp, kube: Kube, submitted: dict[str, Any]) -> None:
    del kube.logs["t"]
    kube.forbidden.add("/api/v1/namespaces/kubeflow/pods/b/log")
    output = call(api, "logs", "one", "sample").output
    (line,) = [line for line in output.splitlines() if line.startswith("--")]
    assert "403" in line and "{" not in output


def leave(root: Path, run: dict[str, Any], task: str, name: str, content: str = "x") -> Path:
    place = root / "offline-alignment" / run["run_id"] / task / "u" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    return place


def test_logs_of_pods_that_are_gone_come_from_the_store(
    api: Kfp, kube: Kube, submitted: dict[str, Any], tmp_path: Path
) -> None:
    kube.collections["/api/v1/namespaces/kubeflow/pods"] = []
    nothing = call(api, "logs", "one")
    assert nothing.exit_code == 1 and "none of its pods is left in namespace kubeflow" in nothing.output
    for attempt in (0, 1):
        leave(tmp_path / "r", submitted, "train-2", f"executor-logs-{attempt}", f"try {attempt}\n")
    leave(tmp_path / "r", submitted, "sample", "executor-logs", "samples\n")
    output = call(api, "logs", "one", "train").output
    assert [line for line in output.splitlines() if line[0] != "="] == ["try 0", "try 1"]
    kube.forbidden.add("/api/v1/namespaces/kubeflow/pods")
    assert call(api, "logs", "one", "train").output == output


def test_a_folder_is_fetched_whole(api: Kfp, submitted: dict[str, Any], tmp_path: Path) -> None:
    model = leave(tmp_path / "r", submitted, "train-2", "model/sub/a.bin", "abc").parent.parent
    (model / "config.json").write_text("{}")
    done = call(api, "fetch", "one", "-o", str(tmp_path / "here"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "here" / "sub" / "a.bin").read_bytes() == b"abc"
    assert call(api, "fetch", "one", "-o", str(tmp_path / "here")).exit_code == 2
    assert call(api, "fetch", "one", "train.model", "-o", str(tmp_path / "by-stage")).exit_code == 0
    wrong = call(api, "fetch", "one", "weights", "-o", str(tmp_path / "there"))
    assert wrong.exit_code == 2 and "train-2.model" in wrong.output


def test_of_several_models_the_evaluated_one_is_the_runs(
    api: Kfp, submitted: dict[str, Any], tmp_path: Path
) -> None:
    leave(tmp_path / "r", submitted, "another", "model", "another")
    leave(tmp_path / "r", submitted, "train", "model", "aligned")
    done = call(api, "fetch", "one", "-o", str(tmp_path / "here"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "here").read_text() == "aligned"
    leave(tmp_path / "r", submitted, "train", "page", "a")
    leave(tmp_path / "r", submitted, "another", "page", "b")
    unclear = call(api, "fetch", "one", "page", "-o", str(tmp_path / "there"))
    assert unclear.exit_code == 2 and "one of another.page, train.page" in unclear.output


def test_the_root_is_that_of_the_namespace(
    api: Kfp, kube: Kube, submitted: dict[str, Any], tmp_path: Path
) -> None:
    submitted["runtime_config"].pop("pipeline_root")
    leave(tmp_path / "r", submitted, "train", "model")
    kube.objects["/api/v1/namespaces/kubeflow/configmaps/kfp-launcher"] = {
        "data": {"defaultPipelineRoot": str(tmp_path / "r")}
    }
    assert call(api, "fetch", "one", "-o", str(tmp_path / "here")).exit_code == 0
    kube.forbidden.add("/api/v1/namespaces/kubeflow/configmaps/kfp-launcher")
    refused = call(api, "fetch", "one", "-o", str(tmp_path / "there"))
    assert refused.exit_code == 2 and "--pipeline-root" in refused.output and "403" in refused.output


def test_what_the_cache_answered_is_found_where_it_was_made(
    api: Kfp, submitted: dict[str, Any], tmp_path: Path
) -> None:
    """A night with nothing new leaves nothing in its own folder."""
    leave(tmp_path / "r", submitted, "train", "model", "first night")
    words = ["submit", "offline_alignment", *GIVEN, "--pipeline-root", str(tmp_path / "r")]
    call(api, *words, "--name", "other", "--set", "sample_n=3")
    other, _ = api.held["runs"]
    leave(tmp_path / "r", other, "train", "model", "another recipe")
    call(api, *words, "--name", "night2")
    done = call(api, "fetch", "night2", "-o", str(tmp_path / "model"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model").read_text() == "first night"


def test_inherited_datasets_are_found_by_their_run(
    api: Kfp, submitted: dict[str, Any], tmp_path: Path
) -> None:
    """The training of this run took what an earlier run, of another recipe, had selected."""
    before = api.add_run(display_name="before")
    root = tmp_path / "r" / "offline-alignment"
    selected = dataset(root / before["run_id"] / "select-2" / "u" / "dataset")
    dataset(root / submitted["run_id"] / "train-2" / "u" / "model", training=selected)
    done = call(api, "fetch", "one", "select.dataset", "-o", str(tmp_path / "here"))
    assert done.exit_code == 0, done.output
    assert Dataset.open(str(tmp_path / "here")).manifest.fingerprint == selected.manifest.fingerprint
    told = call(api, "lineage", "one")
    assert told.exit_code == 0 and "found: training" in told.output
    shown = call(api, "show", "one", "select.dataset")
    assert shown.exit_code == 0 and "kubealign.prompts/v1" in shown.output


def dataset(place: Path, **inputs: Dataset) -> Dataset:
    provenance = derive(place.parent.parent.name, 1, {}, inputs=inputs, slug=["x"])
    with DatasetWriter(str(place), PROMPTS, provenance) as writer:
        writer.write_rows([prompt_row("hello", ["fine"])])
        return writer.commit(Stats(rows_in=1, rows_out=1))


def test_an_object_that_leads_out_of_its_folder_is_not_fetched(tmp_path: Path) -> None:
    for name in ("../../evil", "a//b", "/etc/evil"):
        uri = f"s3://b/r/p/run/train/u/model/{name}"
        output = StoredOutput(
            task="train", execution="u", name="model", uri="s3://b/r/p/run/train/u/model",
            objects=(ObjectInfo(uri, 1),),
        )  # fmt: skip
        with pytest.raises(StoreError, match="could lie outside"):
            fetch_output(output, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_credentials_reach_the_server(api: Kfp, tmp_path: Path) -> None:
    api.token = "secret"
    refused = call(api, "runs")
    assert refused.exit_code == 1 and "401" in refused.output and refused.output.count("\n") == 1
    assert call(api, "runs", "--token", "secret", "--cookies", "session=1").exit_code == 0
    assert api.headers[-1]["Cookie"] == "session=1"
    file = tmp_path / "token"
    file.write_text("secret")
    assert call(api, "runs", "--token-file", str(file)).exit_code == 0


def test_what_is_not_there_is_one_line(api: Kfp) -> None:
    missing = str(uuid.uuid4())
    done = call(api, "logs", missing)
    assert done.exit_code == 1 and missing in done.output and "404" in done.output
    nobody = CliRunner().invoke(main, ["runs", "--host", "http://127.0.0.1:1"])
    assert nobody.exit_code == 1 and "http://127.0.0.1:1" in nobody.output
    assert nobody.output.count("\n") == 1


class _Faulty(KfpHandler):
    """KFP's API behind a proxy that answers some requests itself."""

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        faults: list[tuple[str, int, str]] = self.server.faults
        if faults and faults[0][0] in path:
            return faults.pop(0)[1:]
        return super().respond(method, path, query, body)


@pytest.fixture
def faulty(api: Kfp) -> Kfp:
    api.RequestHandlerClass = _Faulty
    api.faults = []  # type: ignore[attr-defined]
    return api


LOGIN = "<!DOCTYPE html><html><head><title>Log in\n to Dex</title></head><body><form></form></body></html>"


@pytest.mark.parametrize(
    ("path", "status", "text", "says"),
    [
        (
            "healthz",
            200,
            LOGIN,
            "'Log in to Dex': a page to log in at, when credentials are missing or expired",
        ),
        ("healthz", 200, "", "no JSON object but 'nothing'"),
        ("healthz", 200, "null", "no JSON object but 'null'"),
        ("runs", 200, LOGIN, "list runs: the answer is no JSON object but 'Log in to Dex'"),
        ("runs", 200, '{"runs": [', "list runs: the answer is no JSON object"),
        ("healthz", 404, '{"code": 5, "message": "Not Found"}', "no API of Kubeflow Pipelines 2 is at that"),
        ("runs", 413, LOGIN, "answers 413: the pipeline is larger than the proxy before it lets through"),
        (
            "runs",
            502,
            "<html><title>502 Bad Gateway</title></html>",
            "overloaded, try again (502 Bad Gateway)",
        ),
    ],
)
def test_an_answer_that_is_none_of_the_api_s_is_no_empty_list(
    faulty: Kfp, path: str, status: int, text: str, says: str
) -> None:
    faulty.faults = [(path, status, text)]  # type: ignore[attr-defined]
    told = call(faulty, "runs")
    assert told.exit_code == 1 and says in told.output and "html" not in told.output


def test_a_server_that_is_restarted_does_not_end_the_wait_for_a_run(faulty: Kfp) -> None:
    run = faulty.add_run(state="FAILED", error={"code": 2, "message": "no room"})
    faulty.faults = [("retry", 200, "{}"), ("runs", 503, "no backend")]  # type: ignore[attr-defined]
    told = call(faulty, "retry", run["run_id"], "--wait")
    assert told.exit_code == 1 and "failed: no room" in told.output and "503" not in told.output
