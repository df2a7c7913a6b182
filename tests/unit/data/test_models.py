"""Models by name: whole, cached by version, and told apart by their bytes alone."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.cache import CACHE
from kubealign_components.data.model_files import beside_weights, needed, weights_among
from kubealign_components.data.models import ModelFiles, find_adapter, find_model
from kubealign_components.data.weight_records import RECORD
from kubealign_components.errors import ConfigError, EngineError, StoreError
from kubealign_components.store import inside, register
from support.bucket import Bucket
from support.tiny import build_tiny_model


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The store behind ``bucket://``, and a cache of its own."""
    store = Bucket()
    register("bucket", lambda: store)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return store


@pytest.fixture
def remote(bucket: Bucket, tmp_path: Path) -> Path:
    """A model in the bucket."""
    return build_tiny_model(tmp_path / "bucket" / "model")


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "models").glob("*"))


def test_a_remote_model_is_fetched_once_and_has_the_identity_of_its_bytes(
    bucket: Bucket, remote: Path, tmp_path: Path
) -> None:
    first = find_model(f"bucket://{remote}")
    count = len(bucket.fetched)
    assert find_model(f"bucket://{remote}/").path == first.path
    assert len(bucket.fetched) == count
    assert first.path.is_relative_to(tmp_path / "cache")
    moved = Path(shutil.copytree(remote, tmp_path / "another-name"))
    local = find_model(str(moved))
    assert first.identity() == local.identity()
    assert first.tokenizer_digest() == local.tokenizer_digest()
    assert "name" not in local.identity()


def test_a_model_trained_again_to_the_same_place_is_another(bucket: Bucket, remote: Path) -> None:
    before = find_model(f"bucket://{remote}").identity()
    weights = remote / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)  # of the same size
    again = find_model(f"bucket://{remote}")
    assert (again.path / "model.safetensors").read_bytes() == bytes(body)
    assert again.identity() != before


def test_a_hub_that_cannot_be_reached_leaves_the_copy_on_this_machine(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word to the client that it is offline: its HTTP library has errors of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    stored = tmp_path / "hub" / "models--org--name"
    snapshot = Path(shutil.copytree(tiny_model, stored / "snapshots" / ("c" * 40)))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("c" * 40)
    for weights in (True, False):
        assert find_model("org/name", weights=weights).path.resolve() == snapshot.resolve()
    with pytest.raises(ConfigError, match="or a hub id that can be fetched"):
        find_model("org/other")


RECORDS = [b"[]", b"{", b"\xff", b"3", b'{"model.safetensors": 3}', b'{"model.safetensors": {}}']
RECORDS += [b'{"model.safetensors": {"version": "%s", "size": 1, "sha256": "0", "dtype": ""}}', b"[" * 10**5]


@pytest.mark.parametrize("body", RECORDS)
def test_a_malformed_record_of_weights_is_not_believed(
    bucket: Bucket, remote: Path, tmp_path: Path, body: bytes
) -> None:
    expected = find_model(str(remote)).identity()
    (remote / RECORD).write_bytes(body)
    found = find_model(f"bucket://{remote}", weights=False)
    assert found.identity() == expected
    assert "model.safetensors" in bucket.fetched
    shutil.rmtree(tmp_path / "cache")
    bucket.fetched = []
    assert find_model(f"bucket://{remote}", weights=False).identity() == expected
    assert bucket.fetched
    assert "model.safetensors" not in bucket.fetched


def test_two_that_fetch_at_once_are_both_served(bucket: Bucket, remote: Path, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=30)
    bucket.on_fetch = lambda uri: together.wait() if uri.endswith("/config.json") else None
    found: list[ModelFiles] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_model(f"bucket://{remote}"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert {model.path for model in found} == set(cached(tmp_path))


def test_a_model_that_changes_while_it_is_fetched_is_fetched_again(bucket: Bucket, remote: Path) -> None:
    def change(uri: str) -> None:
        if uri.endswith("/model.safetensors"):
            bucket.on_fetch = lambda _: None
            (remote / "generation_config.json").write_text('{"eos_token_id": 2}')

    bucket.on_fetch = change
    found = find_model(f"bucket://{remote}")
    assert json.loads((found.path / "generation_config.json").read_text()) == {"eos_token_id": 2}


def test_a_fetch_that_fails_leaves_nothing(bucket: Bucket, remote: Path, tmp_path: Path) -> None:
    def fail(uri: str) -> None:
        if uri.endswith("/model.safetensors"):
            raise StoreError("gone")

    bucket.on_fetch = fail
    with pytest.raises(StoreError, match="gone"):
        find_model(f"bucket://{remote}")
    assert not cached(tmp_path)


@pytest.mark.parametrize("name", ["../../pwned.txt", "a/../../pwned.txt", "/etc/pwned", "a//b", "./x"])
def test_object_names_never_leave_their_folder(
    bucket: Bucket, remote: Path, tmp_path: Path, name: str
) -> None:
    bucket.extra = [name]
    with pytest.raises(StoreError, match="is refused"):
        find_model(f"bucket://{remote}")
    assert not cached(tmp_path)
    assert "pwned.txt" not in bucket.fetched


@given(st.text(alphabet="./a\0", min_size=0, max_size=12))
def test_a_name_is_inside_its_folder_or_refused(name: str) -> None:
    folder = Path("/cache/models/one")
    try:
        place = inside(folder, name)
    except StoreError:
        return
    assert Path(*place.parts) == folder.joinpath(*name.split("/"))
    assert place.resolve().is_relative_to(folder)
    assert place != folder


def test_only_files_that_are_needed_are_fetched(bucket: Bucket, remote: Path) -> None:
    for name in (
        *("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "model.onnx", "consolidated.safetensors"),
        *(".gitattributes", "original/consolidated.00.pth", "training_args.bin", "optimizer.pt"),
    ):
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_bytes(b"no use")
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "tekken.json"):
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_text("{}")
    expected = find_model(str(remote)).identity()
    found = find_model(f"bucket://{remote}")
    names = {p.relative_to(found.path).as_posix() for p in found.path.rglob("*") if p.is_file()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tekken.json"),
        *("tokenizer_config.json", "chat_template.jinja"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    }
    assert found.identity() == expected


def test_shards_are_those_that_the_index_lists(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shutil.copyfile(model / "model.safetensors", model / shards[0])
    (model / "model.safetensors").rename(model / shards[1])
    with pytest.raises(EngineError, match=r"model.safetensors.index.json is missing"):
        find_model(str(model))
    index = {"weight_map": {"model.embed_tokens.weight": shards[0], "model.norm.weight": shards[1]}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_model(str(model)).weights() == shards
    (model / shards[1]).unlink()
    with pytest.raises(EngineError, match=rf"lists 2 shards, and 1 of them.*{shards[1]}"):
        find_model(str(model))


@pytest.mark.parametrize("body", ["[]", "{", "\x00", "3"])
def test_a_config_that_is_none_is_named(tiny_model: Path, tmp_path: Path, body: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "config.json").write_text(body)
    with pytest.raises(EngineError, match=r"config.json (is no JSON|holds a)"):
        find_model(str(model))


def test_an_adapter_among_the_files_of_a_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "another/model"}')
    with pytest.raises(EngineError, match="merge the adapter"):
        find_model(str(model))


def test_an_adapter_given_as_a_model_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "another/model"}')
    with pytest.raises(ConfigError, match=r"this is a PEFT adapter of another/model; merge it"):
        find_model(str(tmp_path))


def test_the_name_of_what_a_link_points_at_is_not_believed(tiny_model: Path, tmp_path: Path) -> None:
    identities = []
    for number in range(2):
        model = Path(shutil.copytree(tiny_model, tmp_path / f"model-{number}"))
        blob = model / ".blobs" / ("a" * 64)
        blob.parent.mkdir()
        (model / "model.safetensors").rename(blob)
        blob.write_bytes(blob.read_bytes()[:-1] + bytes([number]))
        (model / "model.safetensors").symlink_to(blob)
        identities.append(find_model(str(model)).identity())
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    "name", ["spiece.model", "tekken.json", "additional_chat_templates/tool_use.jinja", "own.vocab"]
)
def test_whatever_may_decide_tokens_is_in_the_tokenizer_s_digest(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    before = find_model(str(model)).tokenizer_digest()
    for ignored in ("README.md", "LICENSE.txt", "picture.png", "generation_config.json", "manifest.json"):
        (model / ignored).write_text("{}")
    assert find_model(str(model)).tokenizer_digest() == before
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("one")
    one = find_model(str(model)).tokenizer_digest()
    (model / name).write_text("two")
    assert len({before, one, find_model(str(model)).tokenizer_digest()}) == 3


def test_weights_are_taken_as_transformers_takes_them() -> None:
    def chosen(*names: str) -> list[str]:
        return weights_among(names, lambda _: b'{"weight_map": {"w": "model-1.safetensors"}}')

    assert chosen("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin") == [
        "model.safetensors"
    ]
    assert chosen("model.safetensors.index.json", "model-1.safetensors", "pytorch_model.bin") == [
        "model-1.safetensors"
    ]
    assert chosen("pytorch_model.bin", "training_args.bin") == ["pytorch_model.bin"]
    assert chosen("config.json", "tf_model.h5") == []


@given(st.lists(st.sampled_from(["a.json", "b/c.jinja", "x.py", "model.safetensors", ".git/a", "README.md"])))
def test_what_is_taken_over_is_fetched(names: list[str]) -> None:
    assert {*beside_weights(names)} <= {*needed(names, lambda _: b"")}


def test_a_remote_place_without_a_model_is_named(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for find, field in ((find_model, "model"), (lambda uri: find_adapter(uri, "adapter"), "adapter")):
        with pytest.raises(ConfigError) as error:
            find(f"bucket://{tmp_path / 'empty'}")
        assert error.value.field == field
