"""Kubeflow Pipelines over HTTP, and the Kubernetes API below it, as far as the command line asks them.

They answer in the form of the recordings of the real servers (``tests/recordings``) and refuse what those
refuse. Request bodies must be what the models of KFP's client say.
"""

from __future__ import annotations

import json
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kfp_server_api
import yaml

API = "/apis/v2beta1"
RECORDINGS = Path(__file__).parents[1] / "recordings"
KINDS = {
    "runs": ("V2beta1Run", "run_id"),
    "recurringruns": ("V2beta1RecurringRun", "recurring_run_id"),
    "experiments": ("V2beta1Experiment", "experiment_id"),
    "pipelines": ("V2beta1Pipeline", "pipeline_id"),
}
PLAIN = {"str": str, "int": int, "bool": bool, "object": dict, "datetime": str}
STOPPABLE = {"PAUSED", "PENDING", "RUNNING", "RUNTIME_STATE_UNSPECIFIED"}
NEVER = "1970-01-01T00:00:00Z"
"""What the server says of a time that has not come."""

Json = dict[str, Any]


def recording(name: str) -> Json:
    """What a real server answered."""
    content: Json = json.loads((RECORDINGS / f"{name}.json").read_text())
    return content


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


class Server(ThreadingHTTPServer):
    """A server on this machine that keeps what it was asked."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self.shutdown()
            self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Hands requests to ``respond``, which gives status and content."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        self.server.asked.append(f"{self.command} {url.path}")
        self.server.headers.append(dict(self.headers))
        self.answer(*self.respond(self.command, url.path, dict(urllib.parse.parse_qsl(url.query)), body))

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        raise NotImplementedError


class Kfp(Server):
    """Kubeflow Pipelines: its state."""

    def __init__(self) -> None:
        super().__init__(KfpHandler)
        self.held: dict[str, list[Json]] = {kind: [] for kind in KINDS}
        self.versions: list[Json] = []
        self.problems: list[str] = []
        self.token = ""
        self.namespace = ""
        """Of its experiments; empty in an installation without profiles."""

    def add_run(self, **fields: Any) -> Json:
        """A run as the server tells it."""
        run = {
            "run_id": str(uuid.uuid4()),
            "display_name": "one",
            "experiment_id": str(uuid.uuid4()),
            "created_at": f"2026-11-26T19:{len(self.held['runs']):02d}:00Z",
            "finished_at": NEVER,
            "state": "RUNNING",
            "runtime_config": {"parameters": {}},
            **fields,
        }
        self.held["runs"].insert(0, run)
        return run


class KfpHandler(Handler):
    """KFP's API server."""

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return 401, {"message": "no valid token"}
        try:
            return self._respond(method, path, query, body)
        except AssertionError as error:
            self.server.problems.append(str(error))
            return 400, {"message": str(error)}

    def _respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == f"{API}/healthz":
            return 200, {"multi_user": bool(self.server.namespace)}
        if path.startswith("/apis/v1alpha1/"):
            # Status 200, whatever happens: it is sent before the log is looked for.
            return 200, '{"error_message":"Failed to read logs for run","error_details":"pods not found"}'
        if path == f"{API}/pipelines/upload_version":
            return self._upload(query, body)
        kind, _, rest = path.removeprefix(f"{API}/").partition("/")
        if "/versions" in rest:
            return self._versions(*rest.split("/versions"), query)
        if method == "POST" and not rest:
            return self._create(kind, json.loads(body))
        if not rest:
            name = "recurringRuns" if kind == "recurringruns" else kind
            return 200, {name: _filtered(self.server.held[kind], query)}
        return self._one(method, kind, *rest.partition(":")[::2], query)

    def _upload(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        assert b"pipelineInfo" in body
        if any(
            v["pipeline_id"] == query["pipelineid"] and v["name"] == query["name"]
            for v in self.server.versions
        ):
            return 409, {"message": "already exists"}
        content = body[body.index(b"# PIPELINE") : body.rindex(b"\r\n--")]
        pipeline, *platforms = list(yaml.load_all(content, Loader=yaml.CSafeLoader))
        spec = {"pipeline_spec": pipeline, **({"platform_spec": platforms[0]} if platforms else {})}
        version = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": str(uuid.uuid4()),
            "name": query["name"],
            "display_name": query["name"],
            "pipeline_spec": spec,
        }
        self.server.versions.append(version)
        return 200, version

    def _versions(self, pipeline: str, version: str, query: dict[str, str]) -> tuple[int, Any]:
        found = [v for v in self.server.versions if v["pipeline_id"] == pipeline]
        if not version:
            return 200, {"pipeline_versions": _filtered(found, query)}
        one = [v for v in found if v["pipeline_version_id"] == version.lstrip("/")]
        return (200, one[0]) if one else (404, {"message": "version not found"})

    def _create(self, kind: str, content: Json) -> tuple[int, Any]:
        model, key = KINDS[kind]
        check(content, model, kind)
        made = {**content, key: str(uuid.uuid4())}
        if kind in ("runs", "recurringruns"):
            reference = content.get("pipeline_version_reference")
            known = [v["pipeline_version_id"] for v in self.server.versions]
            assert "pipeline_spec" in content or reference["pipeline_version_id"] in known
        if kind == "experiments":
            made["namespace"] = self.server.namespace
        if kind == "runs":
            return 200, self.server.add_run(**made, state="PENDING")
        self.server.held[kind].append(made)
        return 200, made

    def _one(
        self, method: str, kind: str, identity: str, verb: str, query: dict[str, str]
    ) -> tuple[int, Any]:
        held, key = self.server.held, KINDS[kind][1]
        if kind == "experiments":
            return 200, {"experiment_id": identity, "namespace": self.server.namespace}
        found = [one for one in held[kind] if one[key] == identity]
        if not found:
            return 404, {"message": f"{identity} not found"}
        if kind == "runs" and verb:
            return _change(found[0], verb)
        if method == "DELETE":
            held[kind].remove(found[0])
            if query.get("propagation_policy") != "ORPHAN":
                # Its Workflows belong to the ScheduledWorkflow, and Kubernetes collects them with it.
                held["runs"] = [run for run in held["runs"] if run.get("recurring_run_id") != identity]
        elif verb:
            found[0]["mode"] = verb.upper()
        return 200, found[0] if method == "GET" else {}


def _change(run: Json, verb: str) -> tuple[int, Any]:
    if verb == "terminate" and run["state"] not in STOPPABLE:
        return 400, {"message": f"Failed to terminate a run {run['run_id']}. Row not found"}
    if verb == "retry" and run["state"] != "FAILED":
        return 400, {"message": "Workflow must be Failed/Error to retry"}
    run["state"] = {"terminate": "CANCELING", "retry": "PENDING"}[verb]
    return 200, {}


def _filtered(entries: list[Json], query: dict[str, str]) -> list[Json]:
    wanted = json.loads(query.get("filter") or '{"predicates": []}')["predicates"]
    for predicate in wanted:
        entries = [one for one in entries if one.get(predicate["key"]) == predicate["stringValue"]]
    return entries


class Kube(Server):
    """The API server of Kubernetes: collections by path, logs by pod, and who may do what."""

    def __init__(self) -> None:
        super().__init__(KubeHandler)
        self.collections: dict[str, list[Json]] = {}
        self.objects: dict[str, Json] = {}
        self.logs: dict[str, str] = {}
        self.pod_defaults: list[Json] = []
        self.forbidden: set[str] = set()
        """Paths that whoever asks may not read, and ``verb resource`` that it may not do."""

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig of this server, written to ``path``."""
        content = {
            "current-context": "one",
            "clusters": [{"name": "one", "cluster": {"server": self.host}}],
            "users": [{"name": "one", "user": {"token": "t"}}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
        }
        path.write_text(json.dumps(content))
        return path


class KubeHandler(Handler):
    """Kubernetes' API server."""

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path in self.server.forbidden:
            return 403, {"kind": "Status", "message": f"cannot {method} {path}"}
        if method == "POST" and path.endswith("/selfsubjectaccessreviews"):
            return 201, self._review(json.loads(body))
        if method == "POST" and path.endswith("/pods"):
            assert query["dryRun"] == "All", "nothing is made"
            return self._admit(path.split("/")[-2], json.loads(body))
        if path.endswith("/log"):
            pod = path.split("/")[-2]
            missing = {"kind": "Status", "message": f'pods "{pod}" not found'}
            return (200, self.server.logs[pod]) if pod in self.server.logs else (404, missing)
        if path in self.server.collections:
            found = [one for one in self.server.collections[path] if _selected(one, query)]
            return 200, {"items": found, "metadata": {}}
        if path in self.server.objects:
            return 200, self.server.objects[path]
        return 404, {"kind": "Status", "message": "the server could not find the requested resource"}

    def _admit(self, namespace: str, pod: Json) -> tuple[int, Any]:
        """A pod as admission makes it: by the namespace's pod security, and by the PodDefaults' webhook."""
        labels = self.server.objects[f"/api/v1/namespaces/{namespace}"]["metadata"].get("labels", {})
        (container,) = pod["spec"]["containers"]
        restricted = labels.get("pod-security.kubernetes.io/enforce") == "restricted"
        if restricted and not container["securityContext"].get("runAsNonRoot"):
            words = (
                'pods "kubealign-doctor" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
            )
            return 403, {"kind": "Status", "message": words}
        chosen = [
            one
            for one in self.server.pod_defaults
            if one["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        ]
        for one in chosen:
            for place, key in (("env", "name"), ("volumeMounts", "mountPath")):
                ours = {item[key]: item for item in container.get(place, [])}
                clash = [item[key] for item in one.get(place, []) if ours.get(item[key], item) != item]
                if clash:
                    words = f"conflict occurred while applying poddefaults on {clash[0]}"
                    return 403, {"kind": "Status", "message": words}
        pod["spec"]["volumes"] += [volume for one in chosen for volume in one.get("volumes", [])]
        return 201, pod

    def _review(self, review: Json) -> Json:
        asked = review["spec"]["resourceAttributes"]
        allowed = f"{asked['verb']} {asked['resource']}" not in self.server.forbidden
        return {**review, "status": {"allowed": allowed}}


def _selected(item: Json, query: dict[str, str]) -> bool:
    """Whether the labels of ``item`` are those of ``a=b`` or ``a in (b,c)``."""
    selector = query.get("labelSelector", "")
    if not selector:
        return True
    name, _, values = selector.replace(" in (", "=").rstrip(")").partition("=")
    return item["metadata"].get("labels", {}).get(name) in values.split(",")
