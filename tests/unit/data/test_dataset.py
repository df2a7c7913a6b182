"""Datasets and manifests: what is published, what is refused, and what reading gives back."""

from __future__ import annotations

import gc
import json
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, derive, digest
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.prefetch import read_ahead
from kubealign_components.data.schemas import COMPLETION, COMPLETIONS, PROMPT_ROW, PROMPTS, ROWS, PromptRow
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset, EmptyDataset, NotFound, SchemaMismatch, StoreError
from support.datasets import MakeDataset
from support.tiny import prompt_row
from support.watched_store import WatchedStore


def rows_of(count: int) -> list[dict[str, Any]]:
    return [prompt_row(f"question {i}", ["yes", "no"][: i % 3]) for i in range(count)]


def write(
    folder: Path, rows: list[dict[str, Any]], provenance: Provenance | None = None, **options: Any
) -> Dataset:
    provenance = provenance or derive("test", 1, {"rows": len(rows)})
    with DatasetWriter(str(folder), PROMPTS, provenance, **options) as writer:
        for row in rows:
            writer.write_rows([row])
        return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Edit the manifest in place, by one who knows how it is sealed; gives the dataset's URI."""
    path = folder / MANIFEST
    body = json.loads(path.read_text())
    change(body)
    del body["digest"]
    path.write_text(json.dumps(body | {"digest": digest(body)}))
    return str(folder)


def test_a_folder_for_shards_that_are_kept_is_made_with_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def made() -> list[str]:
        return [path.name.rsplit("-", 1)[0] for path in (tmp_path / "temporary").iterdir()]

    here = write(tmp_path / "d", rows_of(7))
    here.keep_files()
    assert len(list(here.iter_rows())) == 7
    assert made() == []
    WatchedStore()
    elsewhere = Dataset.open(f"faulty://{tmp_path}/d")
    elsewhere.keep_files()
    assert made() == []
    assert len(list(elsewhere.iter_rows())) == 7
    assert made() == ["kubealign-kept"]
    del elsewhere
    gc.collect()
    assert made() == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = rows_of(7)
    written = write(tmp_path / "d", rows)
    opened = Dataset.open(str(tmp_path / "d"), PROMPTS)
    assert list(opened.iter_rows()) == rows
    assert opened.manifest == written.manifest
    assert opened.table(["prompt_id"]).column("prompt_id").to_pylist() == [r["prompt_id"] for r in rows]
    assert opened.table().schema == PROMPT_ROW
    names = sorted(path.name for path in (tmp_path / "d").iterdir())
    [shard] = opened.manifest.shards
    assert names == [MANIFEST, shard.path]
    assert shard.size == (tmp_path / "d" / shard.path).stat().st_size


def test_rows_of_before_a_field_was_added_have_null_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = pa.struct([field for field in COMPLETION if field.name != "reward_se"])
    position = PROMPT_ROW.get_field_index("completions")
    before = PROMPT_ROW.set(position, pa.field("completions", pa.list_(completion)))
    rows = rows_of(5)
    with monkeypatch.context() as then:
        then.setitem(ROWS, PROMPTS, before)
        with DatasetWriter(str(tmp_path / "d"), PROMPTS, derive("test", 1, {})) as writer:
            writer.write(pa.RecordBatch.from_pylist(rows, schema=PROMPT_ROW).cast(before))
            writer.commit(Stats(rows_in=5, rows_out=5))
    opened = Dataset.open(str(tmp_path / "d"), PROMPTS)
    assert list(opened.iter_rows()) == rows
    assert opened.table().schema == PROMPT_ROW
    assert list(opened.iter_rows(["completions"], of=PromptRow))[1]["completions"][0]["reward_se"] is None
    [batch] = opened.batches(["completions.list.element.reward"])
    assert batch.schema.types == [pa.list_(pa.struct([("reward", pa.float64())]))]


@settings(max_examples=40)
@given(
    count=st.integers(1, 30),
    shards=st.integers(1, 5),
    batch_rows=st.none() | st.integers(1, 11),
    low=st.integers(0, 30),
    high=st.integers(0, 30),
)
def test_any_span_in_any_batches_reads_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shards: int,
    batch_rows: int | None,
    low: int,
    high: int,
) -> None:
    rows = rows_of(count)
    size = -(-count // shards)
    folder = tmp_path_factory.mktemp("spans")
    with DatasetWriter(str(folder), PROMPTS, derive("test", 1, {})) as writer:
        for start in range(0, count, size):
            writer.write_rows(rows[start : start + size])
            writer.close_shard()
        dataset = writer.commit(Stats(rows_in=count, rows_out=count))
    assert sum(shard.rows for shard in dataset.manifest.shards) == count
    batches = list(dataset.batches(batch_rows=batch_rows))
    assert [row for batch in batches for row in batch.to_pylist()] == rows
    assert batch_rows is None or max(batch.num_rows for batch in batches) <= batch_rows
    spans = [
        (i, min(low, shard.rows), min(high, shard.rows)) for i, shard in enumerate(dataset.manifest.shards)
    ]
    expected = [row for i, a, b in spans for row in rows[i * size :][: dataset.manifest.shards[i].rows][a:b]]
    read = dataset.batches(["prompt_id"], batch_rows=batch_rows, spans=spans)
    found = [row for batch in read for row in batch.to_pylist()]
    assert found == [{"prompt_id": row["prompt_id"]} for row in expected]


def test_spans_inside_a_shard_of_many_row_groups(tmp_path: Path) -> None:
    rows = [prompt_row(f"{i} " + "x" * 3_000_000) for i in range(20)]
    dataset = write(tmp_path / "d", rows)
    assert len(dataset.manifest.shards) == 1
    assert 6 <= len(list(dataset.batches(batch_rows=None))) <= 8
    for batch_rows in (None, 1, 4, 100):
        for span in ((0, 0, 20), (0, 7, 8), (0, 5, 13), (0, 19, 20), (0, 4, 4)):
            batches = dataset.batches(["prompt_id"], batch_rows=batch_rows, spans=[span])
            found = [row["prompt_id"] for batch in batches for row in batch.to_pylist()]
            assert found == [row["prompt_id"] for row in rows[span[1] : span[2]]]


def test_shards_are_bounded(tmp_path: Path) -> None:
    rows = [prompt_row(f"{i} " + "x" * 3_000_000) for i in range(20)]
    dataset = write(tmp_path / "d", rows, shard_bytes=1)
    assert 6 <= len(dataset.manifest.shards) <= 8
    assert [row["prompt_id"] for row in dataset.iter_rows(["prompt_id"])] == [
        row["prompt_id"] for row in rows
    ]


def test_an_unfinished_folder_is_no_dataset(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(str(tmp_path / "d"), PROMPTS, derive("test", 1, {})) as writer,
    ):
        writer.write_rows(rows_of(3))
        writer.close_shard()
        raise RuntimeError("killed")
    assert len(list((tmp_path / "d").glob("*.parquet"))) == 1
    with pytest.raises(NotFound, match=r"is no finished dataset: it has no manifest.json"):
        Dataset.open(str(tmp_path / "d"))
    assert list(write(tmp_path / "d", rows_of(3)).iter_rows()) == rows_of(3)


def test_another_kind_is_refused_naming_both(tmp_path: Path) -> None:
    write(tmp_path / "d", rows_of(1))
    with pytest.raises(SchemaMismatch, match=rf"d is {PROMPTS}, expected {COMPLETIONS}"):
        Dataset.open(str(tmp_path / "d"), COMPLETIONS)


def test_another_manifest_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", rows_of(1))
    with pytest.raises(CorruptDataset, match=r"manifest version 7, this KubeAlign reads version 2"):
        Dataset.open(edit(tmp_path / "d", lambda body: body.update(version=7)))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"version": 1}', '{"version": 1, "shards": [{}]}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CorruptDataset, match=f"{tmp_path}/manifest.json"):
        Dataset.open(str(tmp_path))


def test_an_edited_recipe_is_refused(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", rows_of(1))
    name = dataset.manifest.fingerprint
    message = rf"step 'test' is filed under {name[:12]} but its content has fingerprint"
    with pytest.raises(CorruptDataset, match=message):
        Dataset.open(edit(tmp_path / "d", lambda body: body["recipe"][name]["params"].update(rows=2)))
    write(tmp_path / "e", rows_of(1))
    with pytest.raises(CorruptDataset, match=r"the recipe has no step abcdabcdabcd"):
        Dataset.open(edit(tmp_path / "e", lambda body: body.update(fingerprint="abcd" * 16)))


@pytest.mark.parametrize("how", ["truncated", "flipped", "replaced"])
def test_a_damaged_shard_is_never_read(tmp_path: Path, how: str) -> None:
    dataset = write(tmp_path / "d", rows_of(5))
    path = tmp_path / "d" / dataset.manifest.shards[0].path
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    damaged = {"truncated": data[:-9], "flipped": data, "replaced": b"not parquet"}[how]
    path.write_bytes(bytes(damaged))
    opened = Dataset.open(str(tmp_path / "d"))
    read: list[pa.RecordBatch] = []
    with pytest.raises(CorruptDataset, match=rf"{path.name}: \d+ bytes .* the shard is damaged"):
        read.extend(opened.batches())
    assert read == []
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        list(opened.batches())


def test_an_empty_dataset_says_why(tmp_path: Path) -> None:
    stats = Stats(rows_in=5)
    stats.drop("too_long", 3)
    stats.drop("no_pair", 2)
    with DatasetWriter(str(tmp_path / "d"), PROMPTS, derive("test", 1, {})) as writer:
        writer.commit(stats)
    with pytest.raises(EmptyDataset, match=r"has no rows: all were dropped \(2 no_pair, 3 too_long\)"):
        Dataset.open(str(tmp_path / "d"))
    assert list(Dataset.open(str(tmp_path / "d"), allow_empty=True).iter_rows()) == []
    with DatasetWriter(str(tmp_path / "e"), PROMPTS, derive("test", 1, {})) as writer:
        writer.commit(Stats())
    with pytest.raises(EmptyDataset, match="none came in"):
        Dataset.open(str(tmp_path / "e"))


def test_rows_must_add_up_and_fit_the_schema(tmp_path: Path) -> None:
    with DatasetWriter(str(tmp_path / "d"), PROMPTS, derive("test", 1, {})) as writer:
        writer.write_rows(rows_of(2))
        with pytest.raises(AssertionError, match="3 rows in, 2 out and 0 dropped"):
            writer.commit(Stats(rows_in=3, rows_out=2))
        with pytest.raises((pa.ArrowInvalid, ValueError, KeyError)):
            writer.write(pa.RecordBatch.from_pydict({"other": [1]}))
    assert not (tmp_path / "d" / MANIFEST).exists()


def test_a_retried_writer_keeps_what_stands_and_another_dataset_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "d", rows_of(4))
    again = write(tmp_path / "d", rows_of(4))
    assert again.manifest == first.manifest
    with pytest.raises(CorruptDataset, match=r"already holds dataset .*; choose another place"):
        write(tmp_path / "d", rows_of(3))
    assert list(Dataset.open(str(tmp_path / "d")).iter_rows()) == rows_of(4)


def test_writers_that_race_publish_one_dataset(tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def race(number: int) -> Dataset:
        # The same recipe, but other bytes: as an engine that is not deterministic gives.
        rows = [row | {"metadata": f'"{number}"'} for row in rows_of(5)]
        start.wait()
        return write(tmp_path / "d", rows, derive("race", 1, {}))

    with ThreadPoolExecutor(6) as pool:
        written = list(pool.map(race, range(6)))
    standing = Dataset.open(str(tmp_path / "d"))
    assert all(dataset.manifest == standing.manifest for dataset in written)
    assert len({row["metadata"] for row in standing.iter_rows()}) == 1
    assert standing.rows == 5


def test_adopted_shards_are_copied_whole(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"part{i}", rows_of(i + 1)) for i in range(3)]
    with DatasetWriter(str(tmp_path / "all"), PROMPTS, derive("merge", 1, {})) as writer:
        for part in parts:
            writer.adopt(part)
        merged = writer.commit(Stats(rows_in=6, rows_out=6))
    assert list(merged.iter_rows()) == [row for part in parts for row in part.iter_rows()]
    assert [s.sha256 for s in merged.manifest.shards] == [p.manifest.shards[0].sha256 for p in parts]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/d"):
        write(tmp_path / "file" / "d", rows_of(1))


def test_parents_and_slug_reach_the_manifest(tmp_path: Path, make_dataset: MakeDataset) -> None:
    parent = make_dataset(rows_of(2), slug=["first set"], identity={"policy": "p"})
    child = write(tmp_path / "d", rows_of(1), derive("child", 2, {}, inputs={"in": parent}, slug=["Best/1"]))
    manifest = child.manifest
    assert manifest.slug == "first_set-best_1"
    assert manifest.identity == {"policy": "p"}
    assert manifest.parents == (
        {"name": "in", "uri": parent.uri, "fingerprint": parent.manifest.fingerprint, "schema": PROMPTS},
    )
    assert set(manifest.recipe) == {manifest.fingerprint, parent.manifest.fingerprint}


def test_read_ahead_keeps_order_raises_late_and_stops_early() -> None:
    assert list(read_ahead(iter(range(50)), depth=3)) == list(range(50))
    closed = threading.Event()

    def numbers(fail_at: int | None) -> Any:
        try:
            for i in range(1000):
                if i == fail_at:
                    raise CorruptDataset("damaged")
                yield i
        finally:
            closed.set()

    seen: list[int] = []
    with pytest.raises(CorruptDataset, match="damaged"):
        for i in read_ahead(numbers(5)):
            seen.append(i)
    assert seen == [0, 1, 2, 3, 4]
    closed.clear()
    before = threading.active_count()
    reader = read_ahead(numbers(None))
    assert next(reader) == 0
    reader.close()
    assert closed.is_set()
    assert threading.active_count() == before
