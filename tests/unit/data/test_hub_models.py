"""Models of a hub: which one it is, its own metadata say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kubealign_components.data.models import find_model
from support.fake_hub import FakeHub, fake_hub, hub_run
from support.tiny import build_tiny_model

LAUNCH = """
import json, pathlib
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.models import find_model
from kubealign_components.engines.dtypes import saved_dtype_name
from kubealign_components.training.launch import pinned
from kubealign_components.train.config import TrainConfig
model = find_model("org/model", weights=False)
print(json.dumps({
    "identity": model.identity(),
    "template": ChatTemplate(model).identity["template"],
    "saved": saved_dtype_name("saved", model.path, model.elsewhere),
    "bytes": model.weight_bytes(),
    "revision": pinned(TrainConfig(policy="org/model"), model.path).revision,
    "weights": [p.name for p in model.path.glob("*.safetensors")],
}))
"""
WHOLE = """
from kubealign_components.data.models import find_model
print((find_model("org/model").path / "model.safetensors").is_file())
"""
DIGESTS = """
from kubealign_components.data.models import find_model
find_model("org/model", weights=False)
"""


def put_model(hub: FakeHub, folder: Path, *, lfs: bool) -> str:
    """The commit of a model at ``org/model`` with the files of ``folder``."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    if lfs:
        hub.lfs.add(hashlib.sha256(files["model.safetensors"]).hexdigest())
    return hub.commit("org/model", files)


@pytest.mark.parametrize("lfs", [True, False])
def test_a_model_of_the_hub_is_known_by_what_the_hub_says_of_its_weights(tmp_path: Path, lfs: bool) -> None:
    """Weights that the hub does not keep by their SHA-256 are fetched."""
    folder = build_tiny_model(tmp_path / "model", hidden=128)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    size = (folder / "model.safetensors").stat().st_size
    with fake_hub() as hub:
        commit = put_model(hub, folder, lfs=lfs)
        launched = hub_run(hub, tmp_path / "launcher", LAUNCH)
        assert launched.returncode == 0, launched.stderr
        assert (hub.sent < 10**6 < size) == lfs
        whole = hub_run(hub, tmp_path / "launcher", WHOLE)  # into the same cache
        assert whole.stdout == "True\n", whole.stderr
    assert json.loads(launched.stdout) == {
        "identity": find_model(str(folder)).identity(),
        "template": json.loads(launched.stdout)["template"],
        "saved": "float32",
        "bytes": size,
        "revision": commit,
        "weights": [] if lfs else ["model.safetensors"],
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [(b"{}", "model.safetensors of org/model at"), (b"{", "config.json of org/model is no JSON")],
)
def test_damaged_files_of_the_hub_are_named(config: bytes, said: str, tmp_path: Path) -> None:
    weights = b"\xff" * 100
    with fake_hub() as hub:
        hub.lfs.add(hashlib.sha256(weights).hexdigest())
        hub.commit("org/model", {"config.json": config, "model.safetensors": weights})
        launched = hub_run(hub, tmp_path / "launcher", DIGESTS)
    assert launched.stderr.splitlines()[-1].startswith(f"kubealign_components.errors.EngineError: {said}")
