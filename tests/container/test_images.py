"""The images as a cluster runs them: no root, a read-only root file system, no network, no compilers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kubealign_components import __version__, images

ROOT = Path(__file__).parent.parent.parent
KINDS = ("data", "sample", "train")
IMPORTS = {
    "data": "kfp, kubealign.cli.main, kubealign_pipelines, transformers, pyarrow",
    "sample": "kfp, torch, vllm, vllm._C, peft, accelerate",
    "train": "kfp, torch, deepspeed, peft, accelerate, transformers.trainer",
}
COMPILERS = "gcc cc c++ g++ clang cpp ld as make cmake nvcc ptxas rustc"


def run(engine: Any, image: str, command: list[str], **options: Any) -> str:
    said: bytes = engine.containers.run(
        image,
        command,
        remove=True,
        read_only=True,
        tmpfs={"/tmp": ""},
        network_mode="none",
        cap_drop=["ALL"],
        **options,
    )
    return said.decode().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_as_any_user_on_a_read_only_file_system(kind: str, engine: Any, built: dict[str, str]) -> None:
    program = f"import os, getpass, {IMPORTS[kind]}; print(os.getuid(), getpass.getuser(), os.getcwd())"
    command = ["python3", "-W", "ignore", "-c", program]
    assert run(engine, built[kind], command).splitlines()[-1] == f"{images.USER} kubealign /tmp"
    if kind == "data":  # an arbitrary user, as OpenShift gives them
        assert run(engine, built[kind], command, user="123456:0").splitlines()[-1] == "123456 kubealign /tmp"


@pytest.mark.parametrize("kind", KINDS)
def test_holds_no_compiler_and_nothing_its_user_can_write(
    kind: str, engine: Any, built: dict[str, str]
) -> None:
    found = run(engine, built[kind], ["sh", "-c", f"for name in {COMPILERS}; do command -v $name || :; done"])
    assert found == ""
    writable = f"-user {images.USER} -o -group 0 -perm -g=w -o -perm -o=w"
    search = f"find / -xdev -type f '(' {writable} ')' 2>/dev/null || :"
    assert run(engine, built[kind], ["sh", "-c", search]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_names_what_it_is_and_keeps_no_settings_of_the_build(
    kind: str, engine: Any, built: dict[str, str], base_image: str
) -> None:
    image = engine.images.get(built[kind])
    config = image.attrs["Config"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == f"KubeAlign {kind}"
    assert labels["version"] == built[kind].rpartition(":")[2]
    assert labels["version"].removesuffix("-cpu") == __version__
    assert labels["base.name"] == base_image
    assert {"description", "revision", "licenses"} <= labels.keys()
    assert config["User"] == f"{images.USER}:0"
    assert config["Entrypoint"] is None
    history = str(image.history())
    assert "http" not in history.replace("https://", "http://").replace("org.opencontainers", "")
    assert (
        run(engine, built[kind], ["sh", "-c", "find /etc/pip.conf /run /root -type f 2>/dev/null || :"]) == ""
    )


@pytest.mark.parametrize("kind", KINDS)
def test_its_bill_of_materials_names_all_that_pip_has_put_there(
    kind: str, engine: Any, built: dict[str, str]
) -> None:
    program = (
        f"import sys; sys.path.insert(0, 'images'); import sbom; print(sbom.requirements('{kind}', 'cpu'))"
    )
    bill = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pinned = {line.split()[0].partition("==")[::2] for line in bill.stdout.splitlines()}
    listed = json.loads(run(engine, built[kind], ["pip", "list", "--format", "json"]))
    found = {(re.sub("[-_.]+", "-", one["name"].lower()), one["version"]) for one in listed}
    own = {"kubealign", "pip", "setuptools"}  # of the image itself, and of every virtual environment
    assert {one for one in found if one[0] not in own} == {one for one in pinned if one[0] not in own}


def test_sample_and_train_share_their_layers_up_to_torch(engine: Any, built: dict[str, str]) -> None:
    data, sample, train = (engine.images.get(built[kind]).attrs["RootFS"]["Layers"] for kind in KINDS)
    shared = [one for one, other in zip(sample, train) if one == other]
    assert shared[: len(data) - 1] == data[:-1]
    assert len(shared) == len(data)
    assert "torch" in run(engine, built["train"], ["pip", "list"])
