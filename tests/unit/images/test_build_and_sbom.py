"""What the images' bills of materials say, and what is asked of Docker."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kubealign_components import __version__

IMAGES = Path(__file__).parents[3] / "images"
ALL = [("data", "cuda"), ("sample", "cpu"), ("train", "cuda")]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts beside the Dockerfiles, by name."""
    monkeypatch.syspath_prepend(str(IMAGES))
    found = {}
    for name in ("build", "sbom"):
        spec = importlib.util.spec_from_file_location(name, IMAGES / f"{name}.py")
        assert spec and spec.loader
        found[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found[name])
        spec.loader.exec_module(found[name])
    return found


@pytest.mark.parametrize(("kind", "variant"), ALL)
def test_a_bill_has_all_that_its_dockerfile_installs(
    kind: str, variant: str, scripts: dict[str, ModuleType]
) -> None:
    text = (IMAGES / kind / "Dockerfile").read_text().replace("${VARIANT}", variant)
    _, installs = text.split(" AS runtime" if kind != "data" else "FROM ${BASE_IMAGE}\n", 1)
    named = re.findall(r'-r "?/run/locks/([a-z0-9.-]+)', installs)
    assert named == [Path(lock).name for lock in scripts["sbom"].locks(kind, variant)]
    wheels = re.findall(r"/run/wheels/([a-z0-9_]+)-\*\.whl", installs)
    assert [name.replace("_", "-") for name in wheels] == list(scripts["sbom"].SOURCES[kind])


def test_a_bill_names_every_pin_with_its_hashes(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    scripts["sbom"].main(["data", "--output", str(tmp_path)])
    bill: dict[str, Any] = json.loads((tmp_path / f"kubealign-data-{__version__}.cdx.json").read_text())
    main = bill["metadata"]["component"]
    assert (main["name"], main["version"]) == ("kubealign", __version__)
    found = {one["name"]: one for one in bill["components"]}
    pins = [line.split() for line in scripts["sbom"].requirements("data", "cuda").splitlines()]
    assert len(found) == len(pins)
    for pin, *hashes in pins:
        name, version = pin.split("==")
        told = {h["content"] for ref in found[name]["externalReferences"] for h in ref.get("hashes", [])}
        assert found[name]["version"] == version
        assert told == {one.removeprefix("--hash=sha256:") for one in hashes}


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch, help_text: str) -> Path:
    """A docker on the PATH that knows ``help_text``, and the file where it notes what it is asked."""
    asked = folder / "asked"
    script = f'#!/bin/sh\ncase "$*" in *--help*) echo "{help_text}";; *) echo "$@" >> {asked};; esac\n'
    (folder / "docker").write_text(script)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return asked


def test_what_is_pushed_is_attested_and_for_all_platforms_that_have_wheels(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = docker(tmp_path, monkeypatch, "--secret --sbom")
    assert scripts["build"].main(["--registry", "r.example/k", "--push"]) == 0
    data, sample, train = asked.read_text().splitlines()
    for line in (data, sample, train):
        assert line.startswith("buildx build ") and "--push --sbom=true --provenance=mode=min" in line
    assert "--platform linux/amd64,linux/arm64" in data and "--platform linux/amd64,linux/arm64" in train
    assert "--platform linux/amd64 " in sample and f"r.example/k/kubealign/sample:{__version__}" in sample


def test_what_is_built_here_is_for_this_machine(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = docker(tmp_path, monkeypatch, "--secret")
    assert scripts["build"].main(["data"]) == 0
    assert scripts["build"].main(["data", "--platform", "linux/arm64"]) == 0
    plain, arm = asked.read_text().splitlines()
    assert plain.startswith("build ") and "--push" not in plain and "--platform" not in plain
    assert "--platform linux/arm64" in arm


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--push"], "no docker with buildx"),
        (["--platform", "linux/amd64,linux/arm64"], "or --push beside it"),
    ],
)
def test_what_cannot_be_built_here_is_said(
    words: list[str],
    told: str,
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docker(tmp_path, monkeypatch, "--secret")
    with pytest.raises(SystemExit):
        scripts["build"].main(["data", *words])
    assert told in capsys.readouterr().err
