"""Where the files of a source are: folders, splits, saved datasets, object stores and the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest

from kubealign_components.errors import ConfigError
from kubealign_components.sources.locate import find_files
from kubealign_components.sources.splits import splits_of
from kubealign_components.store import store_for
from support.store_servers import ACCESS, BUCKET, fake_gcs_server, seaweedfs

ROW = {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."}
CARD = """---
configs:
- config_name: pairs
  data_files:
  - split: train
    path: "pairs/tr*.jsonl"
  - split: hidden
    path: ["pairs/h.jsonl"]
- config_name: all
  default: true
  data_files: "**/*.jsonl"
---
# A dataset
"""


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CARD if name == "README.md" else json.dumps(ROW) + "\n")


@pytest.mark.parametrize(
    "names",
    [
        ["data.jsonl"],
        ["a.jsonl", "b.jsonl", "sub/c.jsonl"],
        ["train.jsonl", "test.jsonl", "dev.jsonl"],
        ["my-train-1.jsonl", "my-eval-1.jsonl", "other.jsonl"],
        ["train/a.jsonl", "train/b.jsonl", "testing/a.jsonl"],
        [
            "data/train-00000-of-00002.jsonl",
            "data/train-00001-of-00002.jsonl",
            "data/sft-00000-of-00001.jsonl",
        ],
        ["training_set/a.jsonl", "constraints.jsonl"],
        ["x/validation_2/a.jsonl", "x/train 1/a.jsonl"],
        ["trainer.jsonl", "contest.jsonl"],
    ],
)
def test_splits_are_those_of_the_datasets_library(tmp_path: Path, names: list[str]) -> None:
    fill(tmp_path / "d", names)
    builder = datasets.load_dataset_builder(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
    expected = {
        str(split): sorted(str(Path(f).relative_to(tmp_path / "d")) for f in files)
        for split, files in builder.config.data_files.items()
    }
    assert splits_of(names) == expected


@pytest.mark.parametrize("subset", [None, "pairs", "all"])
def test_the_card_decides_as_in_the_datasets_library(tmp_path: Path, subset: str | None) -> None:
    names = ["README.md", "pairs/train.jsonl", "pairs/tr2.jsonl", "pairs/h.jsonl", "more/x.jsonl"]
    fill(tmp_path / "d", names)
    builder = datasets.load_dataset_builder(str(tmp_path / "d"), subset, cache_dir=str(tmp_path / "cache"))
    for split, files in builder.config.data_files.items():
        found = find_files(str(tmp_path / "d"), split=str(split), subset=subset)
        assert [f.name for f in found.files] == sorted(
            str(Path(f).relative_to(tmp_path / "d")) for f in files
        )
    with pytest.raises(
        ConfigError, match="subset='none': expected a configuration of the dataset: pairs, all"
    ):
        find_files(str(tmp_path / "d"), split="train", subset="none")


def test_several_configurations_and_no_default_need_a_subset() -> None:
    card = CARD.replace("  default: true\n", "")
    with pytest.raises(
        ConfigError, match="subset=None: expected one of the dataset's configurations: pairs, all"
    ):
        splits_of(["pairs/train.jsonl"], card)


def test_saved_datasets(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([ROW] * 7)
    one.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train_prefs": one, "test": one}).save_to_disk(tmp_path / "both")
    assert len(find_files(str(tmp_path / "one"), split="train").files) == 2
    [file] = find_files(str(tmp_path / "both"), split="train_prefs").files
    assert file.name == "train_prefs/data-00000-of-00001.arrow"
    with pytest.raises(ConfigError, match="which has train_prefs, test"):
        find_files(str(tmp_path / "both"), split="train")
    with pytest.raises(ConfigError, match="which is train"):
        find_files(str(tmp_path / "one"), split="test")
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ConfigError, match=r"it lacks data-00001-of-00002\.arrow"):
        find_files(str(tmp_path / "one"), split="train")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.pdf").write_text("Hi")
    fill(tmp_path / "split", ["train.jsonl"])
    for place, message in {
        "gone.json": r"a file of rows \(.*\.jsonl.*\), a folder of them or a hub id; there is nothing",
        "empty": "this folder is empty",
        "texts": r"a folder with files of rows .*; found a\.pdf",
        "texts/a.pdf": "a file of rows: ",
        "gone/deeper/still": "there is nothing at this place",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_files(str(tmp_path / place), split="train")
    with pytest.raises(ConfigError, match=r"split='test': expected a split of .*, which has train"):
        find_files(str(tmp_path / "split"), split="test")
    with pytest.raises(ConfigError, match=r"split='test': expected train: .*/train\.jsonl is one file"):
        find_files(str(tmp_path / "split" / "train.jsonl"), split="test")
    with pytest.raises(
        ConfigError, match=r"a path \(no such file or folder is here\), or a dataset of the Hugging"
    ):
        find_files("nobody/no-such-dataset", split="train")


@contextmanager
def server_for(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    """The settings that lead the store of ``scheme`` to a server on this machine."""
    if scheme == "gs":
        with fake_gcs_server() as address:
            yield {"STORAGE_EMULATOR_HOST": address}
    else:
        with seaweedfs(folder) as served:
            yield {**ACCESS, "AWS_ENDPOINT_URL": served.s3}


def test_a_single_file_is_the_split_of_its_name_and_the_usual_one(tmp_path: Path) -> None:
    fill(tmp_path, ["my-test.jsonl"])
    for split in ("train", "test"):
        [file] = find_files(str(tmp_path / "my-test.jsonl"), split=split).files
        assert file.name == "my-test.jsonl"
    with pytest.raises(ConfigError, match=r"split='validation': expected train or test: "):
        find_files(str(tmp_path / "my-test.jsonl"), split="validation")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_object_stores(tmp_path: Path, scheme: str) -> None:
    with server_for(scheme, tmp_path) as settings, pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        root = f"{scheme}://{BUCKET}/data"
        for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
            store_for(root).publish(f"{root}/{name}", json.dumps(ROW).encode())
        files = find_files(root, split="train").files
        assert [f.name for f in files] == ["train-1.jsonl", "train-2.jsonl"]
        assert files[0].fetch(tmp_path / "fetched").read_text() == json.dumps(ROW)
        [single] = find_files(f"{root}/test.jsonl", split="train").files
        assert (single.name, single.size) == ("test.jsonl", len(json.dumps(ROW)))
        with pytest.raises(ConfigError, match="there is nothing at this place"):
            find_files(f"{root}/gone", split="train")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_FILES = {"README.md": b"# Data", "train.jsonl": json.dumps(ROW).encode(), "test.jsonl": b"{}"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as a download uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/datasets/org/data/revision/v1":
            self.answer(json.dumps({"id": "org/data", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/datasets/org/data/tree/{COMMIT}":
            files = [
                {"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in HUB_FILES.items()
            ]
            self.answer(json.dumps(files).encode())
        elif path.startswith(f"/datasets/org/data/resolve/{COMMIT}/"):
            self.answer(HUB_FILES[path.rsplit("/", 1)[-1]])
        else:
            self.answer(b"{}", 404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        headers: dict[str, Any] = {
            "Content-Length": len(body),
            "ETag": f'"{hash(body)}"',
            "X-Repo-Commit": COMMIT,
        }
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


FIND = """
import json, pathlib
from kubealign_components.sources.locate import find_files
place = find_files("org/data", split="train", revision="v1")
print(json.dumps([place.hub, [[f.name, f.fetch(pathlib.Path(".")).read_text()] for f in place.files]]))
"""


def find_in_process(tmp_path: Path, **settings: str) -> Any:
    # The hub's client reads its settings when it is imported.
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        **settings,
    }
    done = subprocess.run([sys.executable, "-c", FIND], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_hub_and_then_its_cache_alone(tmp_path: Path) -> None:
    expected = [["org/data", COMMIT], [["train.jsonl", json.dumps(ROW)]]]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert find_in_process(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0") == expected
        server.shutdown()
    assert find_in_process(tmp_path, HF_HUB_OFFLINE="1") == expected


def test_patterns_and_archives_are_refused_with_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jsonl", "b.zip"])
    with pytest.raises(ConfigError, match="patterns are not read: name the folder"):
        find_files(f"{tmp_path}/*.jsonl", split="train")
    with pytest.raises(ConfigError, match=r"text also as \.gz, \.bz2, \.zst, \.xz"):
        find_files(f"{tmp_path}/b.zip", split="train")
