"""What the images are built from: pins out of the locks, layers that can be shared, one user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kubealign_components import images

IMAGES = Path(__file__).parents[3] / "images"
KINDS = ("data", "sample", "train")
LOCK_OF = {
    "data/requirements.txt": "cpu",
    "sample/cpu.txt": "cpu",
    "train/cpu.txt": "cpu",
    "locks/sources.txt": "cpu",
    "sample/cuda.txt": "gpu",
    "train/cuda.txt": "gpu",
    "locks/torch-cuda.txt": "gpu",
}


def pins(name: str) -> dict[str, set[str]]:
    """Hashes by requirement."""
    text = (IMAGES / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {requirement: set(hashes) for requirement, *hashes in lines}


@pytest.mark.parametrize("name", LOCK_OF)
def test_images_have_the_versions_and_hashes_of_the_lock(name: str) -> None:
    lock = pins(f"locks/{LOCK_OF[name]}.txt")
    for requirement, hashes in pins(name).items():
        assert requirement in lock, "run `make lock`"
        assert hashes >= lock[requirement] > set(), f"{requirement} differs: run `make lock`"


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_image_starts_from_the_packages_of_data(variant: str) -> None:
    common = pins("data/requirements.txt").keys()
    for kind in ("sample", "train"):
        assert common <= pins(f"{kind}/{variant}.txt").keys()


def test_sources_are_what_the_images_leave_to_them() -> None:
    built = {requirement.partition("==")[0] for requirement in pins("locks/sources.txt")}
    assert built == {"deepspeed", "kfp-server-api", "rouge-score", "sqlitedict", "word2number"}
    for name in LOCK_OF.keys() - {"locks/sources.txt"}:
        assert not built & {requirement.partition("==")[0] for requirement in pins(name)}


def test_dockerfiles_begin_alike_so_that_layers_are_shared() -> None:
    data, sample, train = ((IMAGES / kind / "Dockerfile").read_text() for kind in KINDS)
    packages = "kfp_server_api-*.whl\n"
    for other in (sample, train):
        assert instructions(data[: data.index(packages)]) == instructions(other[: other.index(packages)])
    torch = "FROM runtime AS cpu"
    assert instructions(sample[: sample.index(torch)]) == instructions(train[: train.index(torch)])


def instructions(dockerfile: str) -> str:
    """Without comments, and without what only images with variants have: names of stages and arguments."""
    lines = [line for line in dockerfile.splitlines() if line and not line.startswith(("#", "ARG VARIANT"))]
    return "\n".join(lines).replace(" AS runtime", "")


@pytest.mark.parametrize("kind", KINDS)
def test_the_user_is_the_one_that_the_sdk_hands_folders_to(kind: str) -> None:
    dockerfile = (IMAGES / kind / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)$", dockerfile, re.M) == [f"{images.USER}:0"]
    assert f"--uid {images.USER} --gid 0" in dockerfile
