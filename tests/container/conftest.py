"""A Docker Engine, and the images built in it: CPU variants, from this tree."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker Engine; without one the tests are skipped."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker Engine answers ({error}); `.ci/run` as root starts one")
    with contextlib.closing(client):
        yield client


@pytest.fixture(scope="session")
def base_image(engine: Any) -> str:
    """What the images are built on: ``BASE_IMAGE``, else the Dockerfiles' default."""
    [default] = re.findall(r"^ARG BASE_IMAGE=(.+)$", (ROOT / "images/data/Dockerfile").read_text(), re.M)
    name: str = os.environ.get("BASE_IMAGE") or default
    try:
        engine.images.get(name)
    except docker.errors.ImageNotFound:
        try:
            engine.images.pull(name)
        except docker.errors.APIError as error:
            pytest.skip(f"no base image: {name} is not here and cannot be pulled ({error.explanation})")
    return name


@pytest.fixture(scope="session")
def built(base_image: str) -> dict[str, str]:
    """The images by kind."""
    command = [sys.executable, "images/build.py", "--variant", "cpu", "--base-image", base_image]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    names = done.stdout.split()
    return {name.partition(":")[0].rpartition("/")[2]: name for name in names}
