"""How the fake Kubernetes API server answers: paths, permissions, validation, log streams, faults."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from support.fake_admission import refused_change, refused_creation

if TYPE_CHECKING:
    from support.fake_kubernetes import FakeKubernetes

Json = dict[str, Any]

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "unit" / "manifests" / "schemas" / "TrainJob.v1alpha1.json").read_text()
)
NAMESPACE = "team"
GROUPS = {
    "trainjobs": "trainer.kubeflow.org",
    "workloads": "kueue.x-k8s.io",
    "workflows": "argoproj.io",
    "pods": "",
    "pods/log": "",
    "events": "",
}


def closed(schema: Any) -> Any:
    """``schema`` that refuses fields it does not name, as the API server does under strict validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


STRICT_SPEC = jsonschema.Draft202012Validator(closed(SCHEMA["properties"]["spec"]))


def merged(before: Any, patch: Any) -> Any:
    """``before`` under a JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        after[name] = merged(after.get(name), value)
    return {name: value for name, value in after.items() if value is not None}


def handler(server: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    """Handles the requests to ``server``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 65536

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve("get")

        def do_POST(self) -> None:
            self._serve("create")

        def do_PATCH(self) -> None:
            self._serve("patch")

        def do_DELETE(self) -> None:
            self._serve("delete")

        def _serve(self, verb: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            kind, name, sub = _target(url.path)
            resource = f"{kind}/{sub}" if sub else kind
            verb = "list" if verb == "get" and not name else verb
            permission = (verb, GROUPS[resource], resource)
            server.requests.append((permission, self.path))
            with server.looks:
                server.looks.notify_all()
            fault = next((f for f in server.faults if f[0] == f"{verb} {resource}"), None)
            if fault is not None:
                server.faults.remove(fault)
                if fault[1]:
                    return self._status(fault[1], "the server is busy")
            if server.granted is not None and permission not in server.granted:
                who = f"system:serviceaccount:{NAMESPACE}:kubealign"
                return self._status(403, f'User "{who}" cannot {verb} resource "{resource}"')
            if sub == "log":
                return self._log(name, query)
            status, answer = self._answer(verb, kind, name, query, body)
            if fault is not None:  # it was done, and nobody hears of it
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                return self.connection.close()
            if status >= 400:
                return self._status(status, str(answer))
            return self._json(status, answer)

        def _answer(self, verb: str, kind: str, name: str, query: Json, body: Any) -> tuple[int, Any]:
            if kind == "workloads" and server.no_kueue:
                return 404, "the server could not find the requested resource"
            if kind == "trainjobs" and verb != "list":
                return self._train_job(verb, name, query, body)
            store = server.objects().get(kind)
            if verb == "get":
                assert store is not None
                return (200, store[name]) if name in store else (404, f'{kind} "{name}" not found')
            items = server.events if store is None else list(store.values())
            return 200, {"items": [one for one in items if _selected(one, query)]}

        def _train_job(self, verb: str, name: str, query: Json, body: Any) -> tuple[int, Any]:
            if verb == "create":
                return self._create(query, body)
            if name not in server.jobs:
                return 404, f'trainjobs.trainer.kubeflow.org "{name}" not found'
            job = server.jobs[name]
            if verb == "patch":
                # A custom resource takes no strategic merge patch.
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                after = merged(job, body)
                refusal = refused_change(job, after)
                if refusal is not None:
                    return refusal
                job.update(after)
            if verb == "delete":
                uid = body.get("preconditions", {}).get("uid", job["metadata"]["uid"])
                if uid != job["metadata"]["uid"]:
                    return 409, "the UID in the precondition does not match"
                server.deleted.append((name, body))
                del server.jobs[name]
            return 200, job

        def _create(self, query: Json, body: Json) -> tuple[int, Any]:
            assert query["fieldValidation"] == "Strict"
            for error in STRICT_SPEC.iter_errors(body["spec"]):
                return 400, f"strict decoding error: {error.message}"
            refusal = refused_creation(body, server.runtimes)
            if refusal is not None:
                return refusal
            if body["metadata"]["name"] in server.jobs:
                return 409, "already exists"
            if query.get("dryRun") == "All":
                server.dry_runs += 1
                return 201, body
            return 201, copy.deepcopy(server.add(body).body)

        def _log(self, pod: str, query: Json) -> None:
            if pod not in server.logs:
                return self._status(404, f'pods "{pod}" not found')
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                for text in self._lines(pod, query):
                    data = f"{text}\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    self.wfile.flush()
                if not server.cut.is_set():
                    self.wfile.write(b"0\r\n\r\n")
            if server.cut.is_set():
                self.close_connection = True
            return None

        def _lines(self, pod: str, query: Json) -> Iterator[str]:
            stamped = query.get("timestamps") == "true"
            sent = 0
            lines = server.logs[pod]
            since = query.get("sinceTime", "")[:19]
            if "tailLines" in query:
                sent = max(0, len(lines) - int(query["tailLines"]))
            while True:
                if len(lines) < sent:
                    sent = 0
                while sent < len(lines):
                    at, text = lines[sent]
                    sent += 1
                    if at[:19] >= since:
                        yield f"{at} {text}" if stamped else text
                running = server.pods.get(pod, {}).get("status", {}).get("phase") == "Running"
                if query.get("follow") != "true" or not running or server.cut.is_set():
                    return
                time.sleep(0.01)

        def _status(self, code: int, message: str) -> None:
            self._json(code, {"kind": "Status", "status": "Failure", "message": message, "code": code})

        def _json(self, code: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _target(path: str) -> tuple[str, str, str]:
    """Resource, name and subresource of a namespaced path."""
    parts = path.strip("/").split("/")
    at = parts.index("namespaces")
    assert parts[at + 1] == NAMESPACE, path
    prefix = "/".join(parts[:at])
    assert prefix in (
        "api/v1",
        "apis/trainer.kubeflow.org/v1alpha1",
        "apis/kueue.x-k8s.io/v1beta2",
        "apis/argoproj.io/v1alpha1",
    ), path
    kind, name, sub = [*parts[at + 2 :], "", ""][:3]
    return kind, name, sub


def _selected(one: Json, query: Json) -> bool:
    labels = one["metadata"].get("labels") or {}
    wanted = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
    field, _, value = query.get("fieldSelector", "").partition("=")
    assert field in ("", "involvedObject.uid"), field
    return all(labels.get(key) == text for key, text in wanted) and (
        not field or one["involvedObject"]["uid"] == value
    )
