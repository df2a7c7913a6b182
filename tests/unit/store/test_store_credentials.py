"""How a process proves to Google who it is: Workload Identity, key files, and those that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kubealign_components.errors import StoreError
from kubealign_components.store import store_for
from support.fake_kfp import Handler, Server
from support.store_servers import BUCKET
from support.store_wire import Wire

PUBLISH = """
import sys
from kubealign_components.store import store_for
print(store_for(sys.argv[1]).publish(sys.argv[1], b"x"))
"""


@dataclass
class TokenServer:
    """What gives out tokens: Google's, for a key file, or the metadata service of a node, for its pods."""

    status: int = 200
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[str]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.asked.append(self.path)
                token = {"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}
                account = {"email": "pod@example.org", "scopes": ["storage"], "aliases": []}
                refusal = {"error": "invalid_grant", "error_description": "account not found"}
                body = account if "recursive" in self.path else token
                if "universe" in self.path or "project" in self.path:  # older nodes know neither
                    self.send_error(404)
                    return
                text = json.dumps(body if server.status == 200 else refusal).encode()
                self.send_response(server.status)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            yield f"127.0.0.1:{listening.server_address[1]}"
            listening.shutdown()


@pytest.fixture
def google(gs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire to a service that is no emulator to the client: it wants credentials."""
    wire = Wire(gs_server)
    with wire.open() as address:
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.setenv("API_ENDPOINT_OVERRIDE", address)
        yield wire


def key_file(folder: Path, tokens: str) -> Path:
    """A service account's key; Google's tokens come from the address ``tokens``."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    content = {
        "type": "service_account",
        "client_email": "robot@example.org",
        "private_key": text.decode(),
        "token_uri": f"http://{tokens}/token",
    }
    path = folder / "key.json"
    path.write_text(json.dumps(content))
    return path


def test_workload_identity(google: Wire) -> None:
    """In a process of its own: Google's library reads where the metadata are when it is imported."""
    tokens = TokenServer()
    with tokens.open() as address:
        places = {"GCE_METADATA_HOST": address, "GCE_METADATA_IP": address, "CLOUDSDK_CONFIG": os.devnull}
        done = subprocess.run(
            [sys.executable, "-c", PUBLISH, f"gs://{BUCKET}/{uuid.uuid4().hex}"],
            env={**os.environ, **places},
            capture_output=True,
            text=True,
        )
    assert done.stdout == "True\n", done.stderr
    assert any("service-accounts/default/token" in path for path in tokens.asked)
    assert {headers["authorization"] for _, _, headers in google.requests} == {"Bearer a-token"}


def test_a_key_file(google: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenServer()
    uri = f"gs://{BUCKET}/{uuid.uuid4().hex}"
    with tokens.open() as address:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path, address)))
        assert store_for(uri).publish(uri, b"x")
    assert {headers["authorization"] for _, _, headers in google.requests} == {"Bearer a-token"}


def test_a_key_that_was_revoked(google: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"gs://{BUCKET}/{uuid.uuid4().hex}"
    with TokenServer(status=400).open() as address:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path, address)))
        with pytest.raises(StoreError, match=rf"{uri}.*invalid_grant.*GOOGLE_APPLICATION_CREDENTIALS"):
            store_for(uri).publish(uri, b"x")
    assert google.requests == []


class Page(Handler):
    """A page that answers everything: the console of MinIO, or what a proxy logs in at."""

    def respond(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return self.server.status, "<html><title>Sign in</title></html>"

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(code, message)
        self.send_header("Content-Type", "text/html")
        self.send_header("Location", f"{self.server.host}/login")

    do_HEAD = do_PUT = Handler._handle  # noqa: N815


ASK: dict[str, Callable[[str], object]] = {
    "read": lambda uri: store_for(uri).read(uri),
    "list": lambda uri: list(store_for(uri).list(uri)),
    "publish": lambda uri: store_for(uri).publish(uri, b"rows"),
    "delete": lambda uri: store_for(uri).delete(uri),
    "leftovers": lambda uri: list(store_for(uri).leftovers(uri)),
}


@pytest.mark.parametrize(
    ("action", "status", "says"),
    [
        *[(action, 200, "as no S3 server does; AWS_ENDPOINT_URL") for action in ASK],
        ("read", 302, "redirects to .*/login, as none does; AWS_ENDPOINT_URL"),
        ("list", 403, "access denied"),
    ],
)
def test_a_page_in_the_place_of_s3(
    action: str, status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(Page)
    server.status = status
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.host)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    with server.serving(), pytest.raises(StoreError, match=rf"s3://bucket/one: .*{says}"):
        ASK[action]("s3://bucket/one")


@pytest.mark.parametrize("action", ASK)
def test_a_page_in_the_place_of_google(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Page)
    server.status = 200
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.host)
    with server.serving(), pytest.raises(StoreError, match=r"gs://bucket/one: .*text/html of http"):
        ASK[action]("gs://bucket/one")
