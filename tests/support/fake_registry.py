"""Kubeflow's model registry over HTTP: what its REST API answers of models, versions and artifacts.

Bodies are held to the schemas of its OpenAPI document, as the models of its client have them. What handlers
and database refuse beyond them is refused here, too: unknown fields, required texts that are empty, names
that are taken, names and integers that the columns do not hold, parents that are not there.
"""

from __future__ import annotations

import json
from typing import Any

import mr_openapi.models as schemas
from pydantic import ValidationError

from support.fake_kfp import Handler, Server

API = "/api/model_registry/v1"
COLUMN = 255
"""Letters that the database has for a name, with the id of what it belongs to before it."""
KINDS = {
    "registered_models": ("registered_model", schemas.RegisteredModelCreate, schemas.RegisteredModelUpdate),
    "model_versions": ("model_version", schemas.ModelVersionCreate, schemas.ModelVersionUpdate),
    "model_artifacts": ("model_artifact", schemas.ModelArtifact, schemas.ModelArtifactUpdate),
}
PARENTS = {"model_versions": "registered_models", "model_artifacts": "model_versions"}
Json = dict[str, Any]


class Refused(Exception):
    """A status, its text and the reason."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = status, {"code": code, "message": message}


class Registry(Server):
    """Its state."""

    def __init__(self) -> None:
        super().__init__(RegistryHandler)
        self.held: dict[str, list[Json]] = {kind: [] for kind in KINDS}
        self.token = ""
        self.fails_at = ""
        """Method and path of a request that is answered by status 500."""


class RegistryHandler(Handler):
    """Its requests."""

    def answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PATCH = Handler._handle  # noqa: N815

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return 401, {"code": "Unauthorized", "message": "no valid token"}
        parts = path.removeprefix(f"{API}/").split("/")
        if f"{method} {parts[-1]}" == self.server.fails_at:
            return 500, {"code": "Internal Server Error", "message": "Error 1205: Lock wait timeout exceeded"}
        if not path.startswith(API):
            return 404, {"code": "Not Found", "message": "404 page not found"}
        try:
            return self._respond(
                method, parts, query, json.loads(body, parse_constant=_no_json) if body else {}
            )
        except Refused as refused:
            return refused.answer
        except ValueError as error:
            return 400, {"code": "Bad Request", "message": str(error)}

    def _respond(self, method: str, parts: list[str], query: dict[str, str], body: Json) -> tuple[int, Any]:
        singular = {KINDS[kind][0]: kind for kind in KINDS}
        if method == "GET" and parts[0] in singular and len(parts) == 1:
            return 200, self._find(singular[parts[0]], query)
        if method == "GET" and parts == ["registered_models"]:
            items = self.server.held["registered_models"][: int(query.get("pageSize", 100))]
            return 200, {"items": items, "size": len(items), "pageSize": len(items), "nextPageToken": ""}
        if method == "PATCH" and len(parts) == 2:
            return 200, self._update(parts[0], parts[1], body)
        if method == "POST" and len(parts) == 1:
            return 201, self._create(parts[0], body, body.get("registeredModelId", ""))
        if method == "POST" and parts[0::2] == ["model_versions", "artifacts"]:
            assert body["artifactType"] == "model-artifact"
            return 201, self._create("model_artifacts", body, parts[1])
        return 405, {"code": "Method Not Allowed", "message": f"{method} {'/'.join(parts)}"}

    def _find(self, kind: str, query: dict[str, str]) -> Json:
        parent = query.get("parentResourceId", "")
        if "externalId" not in query and ("name" not in query or (kind in PARENTS and not parent)):
            raise Refused(400, "Bad Request", "invalid parameters call: bad request")
        for one in self.server.held[kind]:
            if one["name"] == query.get("name") and one.get("_parent", "") == parent:
                return _shown(one)
        name = kind.replace("_", " ")
        raise Refused(404, "Not Found", f"no {name} found for name={query.get('name')}: not found")

    def _create(self, kind: str, body: Json, parent: str) -> Json:
        _check(body, KINDS[kind][1])
        held = self.server.held
        if kind in PARENTS and all(one["id"] != parent for one in held[PARENTS[kind]]):
            raise Refused(404, "Not Found", f"no {PARENTS[kind]} for id {parent}: not found")
        if any(one["name"] == body["name"] and one.get("_parent", "") == parent for one in held[kind]):
            raise Refused(409, "Conflict", f"{kind} with name {body['name']} already exists: conflict")
        if len(f"{parent}:{body['name']}" if parent else body["name"]) > COLUMN:
            raise Refused(500, "Internal Server Error", "Error 1406 (22001): Data too long for column 'name'")
        number = str(sum(map(len, held.values())) + 1)
        times = dict.fromkeys(("createTimeSinceEpoch", "lastUpdateTimeSinceEpoch"), "1764270000000")
        held[kind].append({"state": "LIVE"} | _given(body) | times | {"id": number, "_parent": parent})
        return _shown(held[kind][-1])

    def _update(self, kind: str, number: str, body: Json) -> Json:
        _check(body, KINDS[kind][2])
        for one in self.server.held[kind]:
            if one["id"] == number:
                one.update(_given(body))
                return _shown(one)
        raise Refused(404, "Not Found", f"no {kind} found for id {number}: not found")


def _given(body: Json) -> Json:
    return {name: value for name, value in body.items() if value is not None}


def _shown(one: Json) -> Json:
    return {name: value for name, value in one.items() if name != "_parent"}


def _check(body: Json, schema: Any) -> None:
    names = {field.alias or name for name, field in schema.model_fields.items()}
    if unknown := body.keys() - names:
        raise Refused(400, "Bad Request", f'json: unknown field "{min(unknown)}"')
    try:
        schema.from_dict(body)
    except ValidationError as error:
        missing = error.errors()[0]
        raise Refused(422, "Bad Request", f"required field '{missing['loc'][0]}' is zero value.") from error
    for name, value in (body.get("customProperties") or {}).items():
        kind = value["metadataType"]
        if kind == "MetadataIntValue" and abs(int(value["int_value"])) >= 2**31:
            raise Refused(400, "Bad Request", f"unable to decode as int64 value out of range for key {name}")
        if len(name) > COLUMN:
            raise Refused(500, "Internal Server Error", "Error 1406 (22001): Data too long for column 'name'")


def _no_json(text: str) -> float:
    raise ValueError(f"invalid character '{text[0]}' looking for beginning of value")
