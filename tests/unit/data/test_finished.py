"""Finished outputs are taken, whole and right, or made again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import FINISHED, once, output_request, recorded_output
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as import_prompts
from kubealign_components.mix.stage import MixConfig
from kubealign_components.sources.source import SourceReader

WEIGHTS = b"w" * 4096


class Imports:
    """Imports of one file into outputs of their own, and how many of them read it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.source = folder / "prompts.jsonl"
        self.work = folder / "work"
        self.config = ImportConfig(
            sources=(SourceConfig(name="s", uri=str(self.source)),), work=str(self.work)
        )
        self.read = 0
        items = SourceReader.items

        def counted(reader: SourceReader, *args: object, **named: object) -> object:
            self.read += 1
            return items(reader, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(SourceReader, "items", counted)
        self.write("question")

    def write(self, text: str, bad: int = 0) -> None:
        rows = [json.dumps({"prompt": f"{text} {i}"}) for i in range(20)] + ["[]"] * bad
        self.source.write_text("\n".join(rows))

    def run(self, name: str, config: ImportConfig | None = None) -> Dataset:
        import_prompts(config or self.config, output=str(self.folder / name))
        return Dataset.open(str(self.folder / name))

    @property
    def records(self) -> list[Path]:
        return sorted((self.work / FINISHED).rglob("*.json"))


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Imports:
    return Imports(tmp_path, monkeypatch)


def contents(dataset: Dataset) -> list[bytes]:
    return [Path(dataset.shard_uri(shard)).read_bytes() for shard in dataset.manifest.shards]


def shard(dataset: Dataset) -> Path:
    return Path(dataset.shard_uri(dataset.manifest.shards[0]))


def test_what_was_imported_is_taken_and_no_row_is_read(
    imports: Imports, caplog: pytest.LogCaptureFixture
) -> None:
    first = imports.run("first")
    with caplog.at_level(logging.INFO):
        again = imports.run("again")
    assert imports.read == 1
    assert again.manifest == first.manifest
    assert contents(again) == contents(first)
    assert "import_prompts was finished before" in caplog.text


def test_nothing_is_taken_or_left_without_a_work_prefix(imports: Imports) -> None:
    config = replace(imports.config, work="")
    imports.run("first", config)
    imports.run("again", config)
    assert imports.read == 2
    assert not imports.records


def test_a_file_that_changed_in_its_place_is_another_one(imports: Imports) -> None:
    first = imports.run("first")
    imports.write("another question")
    assert imports.run("again").manifest.fingerprint != first.manifest.fingerprint
    assert imports.read == 2


def test_a_moved_file_is_the_same(imports: Imports) -> None:
    imports.run("first")
    (imports.folder / "elsewhere").mkdir()
    moved = imports.source.rename(imports.folder / "elsewhere" / imports.source.name)
    source = SourceConfig(name="s", uri=str(moved))
    imports.run("again", replace(imports.config, sources=(source,)))
    assert imports.read == 1


def test_a_source_that_changes_while_it_is_read_leaves_no_record(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = SourceReader.check

    def changing(reader: SourceReader, most: float) -> None:
        imports.write("changed meanwhile")
        check(reader, most)

    monkeypatch.setattr(SourceReader, "check", changing)
    imports.run("first")
    assert not imports.records


def test_a_gate_that_is_stricter_is_asked_again(imports: Imports) -> None:
    imports.write("question", bad=2)
    imports.run("first", replace(imports.config, max_bad_fraction=0.5))
    with pytest.raises(DataError, match="malformed"):
        imports.run("again")


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def forget(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [damage, forget])
@pytest.mark.parametrize("what", ["shard", "manifest"])
def test_what_is_damaged_or_gone_is_made_again(
    imports: Imports, spoil: Callable[[Path], None], what: str
) -> None:
    first = imports.run("first")
    expected = contents(first)
    spoil(shard(first) if what == "shard" else Path(first.uri, "manifest.json"))
    again = imports.run("again")
    assert imports.read == 2
    assert contents(again) == expected
    left = [recorded_output(str(r), json.loads(r.read_text())["output"]) for r in imports.records]
    assert left == [str(imports.folder / "again")]


@pytest.mark.parametrize("copied", [False, True])
def test_a_folder_that_is_moved_or_copied_as_a_whole_is_taken_from_itself(
    imports: Imports, tmp_path: Path, *, copied: bool
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    at_old = replace(imports.config, work=str(old / "work"))
    import_prompts(at_old, output=str(old / "runs" / "one"))
    if copied:
        shutil.copytree(old, new)
    else:
        old.rename(new)
    import_prompts(replace(imports.config, work=str(new / "work")), output=str(new / "runs" / "two"))
    assert imports.read == 1
    one, two = (shard(Dataset.open(str(new / "runs" / name))) for name in ("one", "two"))
    assert one.stat().st_ino == two.stat().st_ino


@pytest.mark.parametrize("link", ["link", "some/where/else"])
def test_a_work_folder_that_is_a_link_is_known_again(imports: Imports, tmp_path: Path, link: str) -> None:
    there, work = tmp_path / "disk" / "a", tmp_path / link
    (there / "work").mkdir(parents=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    work.symlink_to(there / "work")
    config = replace(imports.config, work=str(work))
    import_prompts(config, output=str(there / "runs" / "one"))
    import_prompts(config, output=str(there / "runs" / "two"))
    import_prompts(replace(config, work=str(there / "work")), output=str(tmp_path / "three"))
    assert imports.read == 1
    one, two = (shard(Dataset.open(str(there / "runs" / name))) for name in ("one", "two"))
    assert one.stat().st_ino == two.stat().st_ino


def test_another_place_is_tried_when_one_is_gone(imports: Imports) -> None:
    first = imports.run("first")
    imports.run("second")
    Path(first.uri, "manifest.json").unlink()
    imports.run("third")
    assert imports.read == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"output": 3}', b"\xff"])
def test_a_record_that_is_none_goes(imports: Imports, content: bytes) -> None:
    imports.run("first")
    damaged = imports.records[0]
    damaged.chmod(0o644)
    damaged.write_bytes(content)
    imports.run("again")
    assert imports.read == 2


def test_a_record_of_something_else_is_not_believed(imports: Imports) -> None:
    first = imports.run("first")
    record = imports.records[0]
    imports.write("another question")
    other = imports.run("other")
    record.chmod(0o644)
    record.write_text(json.dumps({"output": other.uri, "pages": {}}))
    imports.write("question")
    again = imports.run("again")
    assert again.manifest.fingerprint == first.manifest.fingerprint
    assert imports.read == 3


def model(folder: Path, work: Path, made: list[str]) -> Dataset:
    """A model of one file, made by a stage that counts."""
    provenance = derive("train", 1, {"seed": 3})

    def make() -> Stats:
        made.append(folder.name)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        with DatasetWriter(str(folder), MODEL, provenance) as writer:
            writer.write_rows([{"step": 1, "metrics": "{}"}])
            stats = Stats(rows_in=1, rows_out=1, numbers={"loss": 0.5}, sums={"margin": (3.0, 2)})
            writer.commit(stats, {"files": {"model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}})
        return stats

    stats = once(output_request(MixConfig(work=str(work)), provenance, str(folder)), make)
    assert stats == Stats(rows_in=1, rows_out=1, numbers={"loss": 0.5}, sums={"margin": (3.0, 2)})
    return Dataset.open(str(folder))


def test_weights_are_not_kept_twice(tmp_path: Path) -> None:
    made: list[str] = []
    places = [Path(model(tmp_path / name, tmp_path / "work", made).uri) for name in ("a", "b")]
    assert made == ["a"]
    files = [place / "model.safetensors" for place in places]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    assert not files[0].stat().st_mode & 0o222


@pytest.mark.parametrize("spoil", [damage, forget])
def test_damaged_weights_are_made_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    made: list[str] = []
    spoil(Path(model(tmp_path / "a", tmp_path / "work", made).uri, "model.safetensors"))
    model(tmp_path / "b", tmp_path / "work", made)
    assert made == ["a", "b"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == WEIGHTS


def test_damage_in_the_very_place_does_not_pass_for_made(imports: Imports) -> None:
    """A stage that is tried again writes where it wrote before."""
    first = imports.run("first")
    expected = contents(first)
    damage(shard(first))
    assert contents(imports.run("first")) == expected
    assert imports.read == 2
    imports.run("first")
    assert imports.read == 2


def test_what_an_attempt_left_half_done_is_replaced(tmp_path: Path) -> None:
    made: list[str] = []
    model(tmp_path / "a", tmp_path / "work", made)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.safetensors").write_bytes(b"half")
    model(tmp_path / "b", tmp_path / "work", made)
    assert made == ["a"]
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    provenance = derive("train", 1, {})

    def fail() -> Stats:
        raise DataError("no")

    with pytest.raises(DataError):
        once(output_request(MixConfig(work=str(tmp_path / "work")), provenance, str(tmp_path / "a")), fail)
    assert not list(tmp_path.rglob("*.json"))
