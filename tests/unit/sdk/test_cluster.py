"""Commands against a Kubeflow Pipelines API over HTTP; request bodies must be what its models say."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from click.testing import CliRunner, Result

from kubealign.cli.main import main

GIVEN = [
    "--set",
    "sources=[{name: a, uri: a.json}]",
    "--set",
    "policy=org/model",
    "--set",
    "reward_functions=['kubealign_components.rewards.functions:brevity']",
    "--set",
    "work=gs://b/work",
]
API = "/apis/v2beta1"
KINDS = {
    "runs": ("V2beta1Run", "run_id"),
    "recurringruns": ("V2beta1RecurringRun", "recurring_run_id"),
    "experiments": ("V2beta1Experiment", "experiment_id"),
    "pipelines": ("V2beta1Pipeline", "pipeline_id"),
}
PLAIN = {"str": str, "int": int, "bool": bool, "object": dict, "datetime": str}


def check(value: Any, kind: str, where: str) -> None:
    """``value`` is JSON of the model ``kind``: no unknown field, none of another type."""
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{where}: {value!r} is no {kind}"
    elif kind.startswith("dict("):
        assert isinstance(value, dict), where
    elif kind.startswith("list["):
        for item in value:
            check(item, kind[5:-1], where)
    else:
        model = getattr(kfp_server_api, kind)
        if not model.openapi_types:
            assert value in model.allowable_values, f"{where}: {value!r}"
            return
        fields = {name: model.openapi_types[key] for key, name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in fields, f"{where}.{name}: no field of {kind}"
            check(item, fields[name], f"{where}.{name}")


class Api(ThreadingHTTPServer):
    """The server's state, and what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.held: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        self.versions: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.problems: list[str] = []
        self.token = ""

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_DELETE(self) -> None:
        self.handle_one("DELETE")

    def handle_one(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.server.asked.append(f"{method} {url.path}")
        self.server.headers.append(dict(self.headers))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, {"message": "no valid token"})
            return
        try:
            self.answer(*self.respond(method, url.path, query, body))
        except AssertionError as error:
            self.server.problems.append(str(error))
            self.answer(400, {"message": str(error)})

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        held = self.server.held
        if path == f"{API}/healthz":
            return 200, {"multi_user": False}
        if path.startswith("/apis/v1alpha1/"):
            return 200, f"hello from {path.split('/')[-2]}\nbye\n"
        if path == f"{API}/pipelines/upload_version":
            assert b"pipelineInfo" in body
            version = (query["pipelineid"], query["name"])
            if version in self.server.versions:
                return 409, {"message": "already exists"}
            self.server.versions.append(version)
            return 200, {"pipeline_id": version[0], "pipeline_version_id": "v-1"}
        kind, _, rest = path.removeprefix(f"{API}/").partition("/")
        model, key = KINDS[kind]
        if method == "POST" and not rest:
            content = json.loads(body)
            check(content, model, kind)
            held[kind].append({**content, key: str(uuid.uuid4())})
            return 200, held[kind][-1]
        if not rest:
            wanted = json.loads(query.get("filter") or '{"predicates": []}')["predicates"]
            names = {p["stringValue"] for p in wanted}
            found = [e for e in held[kind] if not names or e["display_name"] in names]
            name = "recurringRuns" if kind == "recurringruns" else kind
            return 200, {name: found}
        identity, _, verb = rest.partition(":")
        found = [e for e in held[kind] if e[key] == identity]
        if not found:
            return 404, {"message": f"{identity} not found"}
        if method == "DELETE":
            held[kind].remove(found[0])
            if query.get("propagation_policy") != "ORPHAN":
                # Its Workflows belong to the ScheduledWorkflow, and Kubernetes collects them with it.
                held["runs"] = [run for run in held["runs"] if run.get("recurring_run_id") != identity]
        elif verb:
            found[0]["mode"] = verb.upper()
        return 200, found[0] if method == "GET" else {}


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    assert not server.problems


def call(api: Api, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--host", api.host])


def test_submit_sends_what_was_checked_and_compiled(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("pipeline: offline_alignment\ncompile: {registry: r.example/k, labels: {team: a}}\n")
    done = call(api, "submit", "-f", str(file), *GIVEN, "--name", "one", "--pipeline-root", "gs://b/r")
    assert done.exit_code == 0, done.output
    (run,) = api.held["runs"]
    assert run["run_id"] in done.output and run["display_name"] == "one"
    assert run["runtime_config"]["parameters"]["policy"] == "org/model"
    assert run["runtime_config"]["pipeline_root"] == "gs://b/r"
    text = json.dumps(run["pipeline_spec"])
    assert '"image": "r.example/k/' in text and '"team"' in text


def test_a_bad_parameter_sends_nothing(api: Api) -> None:
    done = call(api, "submit", "offline_alignment", *GIVEN, "--set", "sample_n=0")
    assert done.exit_code == 2 and "sample_n=0" in done.output and not api.asked


def test_a_schedule_is_applied_by_name(api: Api) -> None:
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


def test_replacing_and_deleting_a_schedule_leaves_its_runs_alone(api: Api) -> None:
    words = ["schedule", "apply", "nightly", "offline_alignment", *GIVEN]
    for change in (["--every", "6h"], ["--every", "12h"]):
        call(api, *words, *change)
        (made,) = api.held["recurringruns"]
        run = {"run_id": str(uuid.uuid4()), "display_name": "night", "state": "RUNNING"}
        api.held["runs"].append({**run, "recurring_run_id": made["recurring_run_id"]})
    assert call(api, "schedule", "delete", "nightly").exit_code == 0
    assert not api.held["recurringruns"] and len(api.held["runs"]) == 2


@pytest.mark.parametrize("when", [["--cron", "0 3 * * *"], ["--every", "6 hours"], []])
def test_a_bad_schedule_sends_nothing(api: Api, when: list[str]) -> None:
    done = call(api, "schedule", "apply", "x", "offline_alignment", *GIVEN, *when)
    assert done.exit_code == 2 and not api.asked


def test_runs_of_a_schedule_share_their_work(api: Api) -> None:
    without = [*GIVEN, "--set", "work=''"]
    done = call(api, "schedule", "apply", "x", "offline_alignment", *without, "--every", "1d")
    assert done.exit_code == 2 and "work='': expected a prefix that the runs share" in done.output
    assert not api.asked


def test_a_version_is_uploaded_once(api: Api) -> None:
    assert call(api, "upload", "offline_alignment", *GIVEN).exit_code == 0
    again = call(api, "upload", "offline_alignment", *GIVEN)
    assert again.exit_code == 1 and re.search(r"offline-alignment.*409", again.output)
    assert len(api.held["pipelines"]) == len(api.versions) == 1


def test_runs_logs_and_fetch(api: Api, tmp_path: Path) -> None:
    call(api, "submit", "offline_alignment", *GIVEN, "--name", "one", "--pipeline-root", str(tmp_path / "r"))
    (run,) = api.held["runs"]
    run["run_details"] = {
        "task_details": [
            {
                "task_id": "1",
                "display_name": "train",
                "pod_name": "n-1",
                "child_tasks": [{"pod_name": "n-2"}],
            },
            {"task_id": "2", "display_name": "executor", "pod_name": "n-2", "state": "FAILED"},
            {"task_id": "3", "display_name": "train-driver", "pod_name": "n-3"},
        ]
    }
    assert run["run_id"] in call(api, "runs").output
    assert call(api, "logs", "one").output == "== train n-2 FAILED\nhello from n-2\nbye\n"
    assert call(api, "logs", "one", "tran").exit_code == 2
    model = tmp_path / "r" / "offline-alignment" / run["run_id"] / "train" / "u" / "model"
    (model / "sub").mkdir(parents=True)
    (model / "sub" / "a.bin").write_bytes(b"abc")
    done = call(api, "fetch", "one", "-o", str(tmp_path / "here"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "here" / "sub" / "a.bin").read_bytes() == b"abc"
    assert call(api, "fetch", "one", "-o", str(tmp_path / "here")).exit_code == 2
    wrong = call(api, "fetch", "one", "weights", "-o", str(tmp_path / "there"))
    assert wrong.exit_code == 2 and "train.model" in wrong.output


def test_credentials_reach_the_server(api: Api, tmp_path: Path) -> None:
    api.token = "secret"
    refused = call(api, "runs")
    assert refused.exit_code == 1 and "401" in refused.output and refused.output.count("\n") == 1
    assert call(api, "runs", "--token", "secret", "--cookies", "session=1").exit_code == 0
    assert api.headers[-1]["Cookie"] == "session=1"
    file = tmp_path / "token"
    file.write_text("secret")
    assert call(api, "runs", "--token-file", str(file)).exit_code == 0


def test_what_is_not_there_is_one_line(api: Api) -> None:
    missing = str(uuid.uuid4())
    done = call(api, "logs", missing)
    assert done.exit_code == 1 and missing in done.output and "404" in done.output
    nobody = CliRunner().invoke(main, ["runs", "--host", "http://127.0.0.1:1"])
    assert nobody.exit_code == 1 and "http://127.0.0.1:1" in nobody.output
    assert nobody.output.count("\n") == 1
