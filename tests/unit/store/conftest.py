"""Fixtures: a folder of its own for each test, in each of the stores."""

from __future__ import annotations

import http.client
import os
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.store_servers import ACCESS, BUCKET, SeaweedFS, fake_gcs_server, place_in, seaweedfs
from support.store_wire import Wire


@pytest.fixture(scope="session", autouse=True)
def only_these_servers() -> Iterator[pytest.MonkeyPatch]:
    """No setting of the developer's own clouds reaches the tests, nor their metadata services."""
    with pytest.MonkeyPatch.context() as environment:
        for name in list(os.environ):
            if name.startswith(("AWS_", "GOOGLE_", "STORAGE_")):
                environment.delenv(name)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield environment


@pytest.fixture(scope="session")
def gs_server(only_these_servers: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a fake-gcs-server, which the environment names."""
    with fake_gcs_server() as address:
        only_these_servers.setenv("STORAGE_EMULATOR_HOST", address)
        yield address


@pytest.fixture(scope="session")
def seaweed(
    only_these_servers: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SeaweedFS]:
    """A SeaweedFS, which the environment names."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        for name, value in {**ACCESS, "AWS_ENDPOINT_URL": server.s3}.items():
            only_these_servers.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3_server(seaweed: SeaweedFS) -> str:
    """Address of its S3 service."""
    return seaweed.s3


@pytest.fixture(scope="session")
def minio_server(s3_server: str) -> str:
    """Address of the same service, which Kubeflow calls ``minio://``."""
    return s3_server


@pytest.fixture(params=("file", "gs", "s3", "minio"))
def place(request: pytest.FixtureRequest) -> str:
    """A folder of its own in each of the stores."""
    return place_in(request, request.param)


@pytest.fixture(params=("gs", "s3"))
def remote(request: pytest.FixtureRequest) -> str:
    """A folder of its own in each of the stores behind a network."""
    return place_in(request, request.param)


@pytest.fixture
def wire(remote: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire to the server behind ``remote``."""
    scheme = remote.partition(":")[0]
    wire = Wire(request.getfixturevalue(f"{scheme}_server"))
    with wire.open() as address:
        monkeypatch.setenv({"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}[scheme], address)
        yield wire


@pytest.fixture(params=("gs", "s3"))
def crowded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A folder with objects ``00000`` to ``09999``, and the address of its server."""
    folder = uuid.uuid4().hex
    if request.param == "s3":
        seaweed: SeaweedFS = request.getfixturevalue("seaweed")
        fill(seaweed.filer, f"/buckets/{BUCKET}/{folder}")
        yield f"s3://{BUCKET}/{folder}", seaweed.s3
        return
    with fake_gcs_server(tmp_path) as address:
        # Written one by one, each object takes longer than the one before; this server's are files.
        store = f"{address}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={folder}/00000"
        urllib.request.urlopen(store, b"x", timeout=10).close()
        for number in range(1, 10_000):
            os.link(tmp_path / BUCKET / folder / "00000", tmp_path / BUCKET / folder / f"{number:05d}")
        yield f"gs://{BUCKET}/{folder}", address


def fill(server: str, folder: str) -> None:
    """Write 10,000 objects in the shortest way."""

    def write(names: range) -> None:
        connection = http.client.HTTPConnection(server.removeprefix("http://"))
        for name in names:
            connection.request("PUT", f"{folder}/{name:05d}", b"x")
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 201), answer.status
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [range(start, 10_000, 4) for start in range(4)]))
