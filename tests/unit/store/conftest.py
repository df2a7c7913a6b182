"""Fixtures: a folder of its own for each test, in each of the stores."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from unit.store.store_servers import ACCESS, Wire, fake_gcs_server, place_in, seaweedfs


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
def s3_server(
    only_these_servers: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a SeaweedFS, which the environment names."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as address:
        for name, value in {**ACCESS, "AWS_ENDPOINT_URL": address}.items():
            only_these_servers.setenv(name, value)
        yield address


@pytest.fixture(params=("file", "gs", "s3"))
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
