"""A Hugging Face hub: what its client asks for when it makes, fills and reads a dataset, or reads a model.

Files are kept in commits. Those of more than text go the way of Git LFS, as the hub's own rules for Parquet
say; writing needs the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import DatasetCard

TOKEN = "hf_of_the_tests"
LISTED_LICENSES = ("cc-by-4.0", "mit", "unknown", "other")
Files = dict[str, bytes]
_API = r"/api/(?:datasets|models)/(?P<name>[^/]+/[^/]+)"


class FakeHub:
    """Repositories by name, each a list of commits, and the objects of Git LFS."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, list[tuple[str, Files]]] = {}
        self.objects: dict[str, bytes] = {}
        self.lfs: set[str] = set()
        """Digests of files that came as objects of Git LFS."""
        self.lock = Lock()
        self.sent = 0
        """Bytes of its answers."""

    def files(self, name: str, revision: str = "main") -> Files:
        """The files of a repository at a branch or commit."""
        commits = self.repositories[name]
        return next((files for commit, files in commits if commit == revision), commits[-1][1])

    def commit(self, name: str, files: Files) -> str:
        """Add a commit that has ``files``."""
        commits = self.repositories.setdefault(name, [])
        content = {path: hashlib.sha256(body).hexdigest() for path, body in files.items()}
        named = hashlib.sha1(json.dumps([len(commits), sorted(content.items())]).encode()).hexdigest()
        commits.append((named, files))
        return named


class _Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status)
        self.status, self.code = status, code


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on this machine while the context lasts."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def hub_run(hub: FakeHub, folder: Path, code: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """``code`` in a Python of its own, because the client reads its settings once; large files go as they did
    before Xet, a protocol of binary chunks that no test server speaks."""
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": token, "HF_HOME": str(folder / "hf")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answered(
            {
                rf"{_API}(?:/revision/(?P<revision>[^/]+))?": self._info,
                rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?": self._tree,
                r"(?:/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": self._file,
            }
        )

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        self._answered({r"/objects/(?P<oid>\w+)": self._object})

    def do_POST(self) -> None:
        self._answered(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": self._validate,
                r"/api/datasets/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)": self._paths,
                r"/api/datasets/(?P<name>[^/]+/[^/]+)/preupload/[^/]+": self._preupload,
                r"/datasets/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
                r"/api/datasets/(?P<name>[^/]+/[^/]+)/commit/[^/]+": self._commit,
            }
        )

    def _answered(self, routes: dict[str, Callable[..., None]]) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            for pattern, answer in routes.items():
                if found := re.fullmatch(pattern, path):
                    with self.hub.lock:
                        answer(**{k: v for k, v in found.groupdict().items() if v is not None})
                    return
            raise _Refused(404)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self._json({"error": refused.code or "refused"}, refused.status, headers)

    def _known(self, name: str, revision: str = "main") -> Files:
        if name not in self.hub.repositories:
            raise _Refused(404, "RepoNotFound")
        if revision not in ("main", *(commit for commit, _ in self.hub.repositories[name])):
            raise _Refused(404, "RevisionNotFound")
        return self.hub.files(name, revision)

    def _may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401)

    def _validate(self) -> None:
        """The hub has a list of licences; of it, here is what tests state."""
        said = DatasetCard(json.loads(self.body)["content"]).data.get("license") or []
        stated = said if isinstance(said, list) else [said]
        refused = [{"message": f'"license" cannot be {x}'} for x in stated if x not in LISTED_LICENSES]
        self._json({"errors": refused, "warnings": []}, 400 if refused else 200)

    def _create(self) -> None:
        self._may_write()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            raise _Refused(409)
        self.hub.commit(name, {".gitattributes": b"*.parquet filter=lfs\n"})
        self._json({"url": f"{self.hub.address}/datasets/{name}", "name": name})

    def _info(self, name: str, revision: str = "main") -> None:
        files = self._known(name, revision)
        commits = [commit for commit, _ in self.hub.repositories[name]]
        self._json(
            {
                "_id": "0", "id": name, "private": False, "disabled": False, "gated": False, "tags": [],
                "downloads": 0, "likes": 0, "sha": revision if revision in commits else commits[-1],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [self._sibling(name, revision, path) for path in files],
            }
        )  # fmt: skip

    def _sibling(self, name: str, revision: str, path: str) -> dict[str, Any]:
        """A file, with what is kept of it where that is asked for."""
        if "blobs=true" not in urlsplit(self.path).query.lower():
            return {"rfilename": path}
        entry = self._entry(name, revision, path)
        facts = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            facts["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
        return facts

    def _tree(self, name: str, revision: str, path: str = "") -> None:
        below = f"{path}/" if path else ""
        inside = [p for p in self._known(name, revision) if p.startswith(below)]
        if path and not inside:
            raise _Refused(404, "EntryNotFound")
        deep = "recursive=true" in urlsplit(self.path).query.lower()
        folders = {below + p.removeprefix(below).partition("/")[0] for p in inside if "/" in p[len(below) :]}
        shown = [self._entry(name, revision, p) for p in inside if deep or "/" not in p[len(below) :]]
        self._json([*shown, *({"type": "directory", "path": f, "oid": "0", "size": 0} for f in folders)])

    def _paths(self, name: str, revision: str) -> None:
        asked = json.loads(self.body)["paths"]
        files = self._known(name, revision)
        folders = [p for p in asked if p and any(path.startswith(f"{p}/") for path in files)]
        found = [self._entry(name, revision, p) for p in asked if p in files]
        self._json([*found, *({"type": "directory", "path": f, "oid": "0", "size": 0} for f in folders)])

    def _entry(self, name: str, revision: str, path: str) -> dict[str, Any]:
        body = self.hub.files(name, revision)[path]
        oid = hashlib.sha256(body).hexdigest()
        lfs = {"lfs": {"oid": oid, "size": len(body), "pointerSize": 134}} if oid in self.hub.lfs else {}
        return {"type": "file", "path": path, "size": len(body), "oid": oid[:40], **lfs}

    def _preupload(self, name: str) -> None:
        self._may_write()
        self._known(name)
        files = json.loads(self.body)["files"]
        mode = {True: "lfs", False: "regular"}
        self._json(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": mode[f["path"].endswith(".parquet")],
                        "shouldIgnore": False,
                    }
                    for f in files
                ]
            }
        )

    def _batch(self, name: str) -> None:
        self._may_write()
        self._known(name)
        asked = json.loads(self.body)["objects"]
        href = f"{self.hub.address}/objects/"
        objects = [o | {"actions": {"upload": {"href": href + o["oid"]}}} for o in asked]
        self._json({"transfer": "basic", "objects": objects})

    def _object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400)
        self.hub.objects[oid] = self.body
        self._send(b"")

    def _commit(self, name: str) -> None:
        self._may_write()
        files = dict(self._known(name))
        for line in self.body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header" and value.get("parentCommit", "") not in (
                "",
                self.hub.repositories[name][-1][0],
            ):
                raise _Refused(412)
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                self.hub.lfs.add(value["oid"])
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(name, files)
        url = f"{self.hub.address}/datasets/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _file(self, name: str, revision: str, path: str) -> None:
        files = self._known(name, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound")
        body = files[path]
        commits = [commit for commit, _ in self.hub.repositories[name]]
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": revision if revision in commits else commits[-1],
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(body, headers=headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        self._send(body[start : end + 1], 206, headers)

    def _json(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(json.dumps(body).encode(), status, {**kind, **(headers or {})})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent += len(body)
            self.wfile.write(body)
