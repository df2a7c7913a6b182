"""What the dead leave in a work prefix: found by its age, on each of the stores, and removed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign_components.data import leftovers
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.leftovers import ABANDONED, collect, stale
from kubealign_components.store import join, scheme_of, store_for
from kubealign_components.store.base import TEMPORARY
from support.chunk_worker import Upper, run
from support.datasets import MakeDataset
from support.store_servers import BUCKET, place_in
from support.tiny import prompt_row

MEBI = 2**20


def begin(place: str, name: str) -> None:
    """Leave at ``place`` what a writer of ``name`` leaves that is killed in the middle."""
    if scheme_of(place) == "file":
        Path(place).mkdir(parents=True, exist_ok=True)
        Path(place, f"{TEMPORARY}{name}").write_bytes(b"h" * 100)
    elif scheme_of(place) == "gs":
        store_for(place).publish(join(place, f"{TEMPORARY}{name}"), b"h" * 100)
    else:
        key = join(place, name).partition(f"{BUCKET}/")[2]
        client = boto3.session.Session().client("s3")
        begun = client.create_multipart_upload(Bucket=BUCKET, Key=key)
        sent = {"Bucket": BUCKET, "Key": key, "UploadId": begun["UploadId"], "PartNumber": 1}
        client.upload_part(**sent, Body=b"h" * 100)


def test_halves_are_told_from_objects_and_go(place: str) -> None:
    store = store_for(place)
    store.publish(join(place, "work", "data", "whole"), b"whole")
    begin(join(place, "work", "data"), "half")
    begin(join(place, "elsewhere"), "half")
    [found] = stale(join(place, "work"), older=0)
    assert found.size == 100
    assert "killed" in found.reason
    assert list(stale(join(place, "work"))) == []  # its writer may be alive
    found.remove()
    found.remove()  # another was first
    assert list(stale(join(place, "work"), older=0)) == []
    [other] = stale(join(place, "elsewhere"), older=0)
    other.remove()
    assert [entry.uri for entry in store.list(place)] == [join(place, "work", "data", "whole")]


def test_a_run_that_starts_removes_what_is_abandoned(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(place, "half")
    assert collect(place) == 0
    later = time.time() + ABANDONED + 60
    monkeypatch.setattr(leftovers.time, "time", lambda: later)
    assert collect(place) == 1
    assert list(stale(place, older=0)) == []


def test_a_store_that_does_not_answer_stops_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("KUBEALIGN_STORE_DEADLINE", "0.5")
    assert collect("s3://bucket/work") == 0
    assert "stays there" in caplog.text


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_gc_takes_the_uri_of_a_work_prefix(scheme: str, request: pytest.FixtureRequest) -> None:
    work = place_in(request, scheme)
    begin(work, "half")
    kept = CliRunner().invoke(main, ["gc", work, "--yes"])
    assert "0 B freed" in kept.output
    named = CliRunner().invoke(main, ["gc", work, "--keep-hours", "0"])
    assert "1 to remove, 100 B" in named.output, named.output
    assert len(list(stale(work, older=0))) == 1
    done = CliRunner().invoke(main, ["gc", work, "--keep-hours", "0", "--yes"])
    assert "100 B freed" in done.output
    assert list(stale(work, older=0)) == []


def chunked(make_dataset: MakeDataset, folder: Path, again: int = 1) -> list[str]:
    rows = make_dataset([prompt_row(f"question {i}") for i in range(12)])
    chunks = plan(rows, work=str(folder / "work"), chunks=2)
    merged = merge([run(chunk, Upper(), 2) for chunk in chunks], chunks, str(folder / f"merged-{again}"))
    return [row["metadata"] for row in merged.iter_rows()]


def test_what_was_damaged_goes_and_so_do_buckets_of_no_pack(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    expected = chunked(make_dataset, tmp_path)
    work = tmp_path / "work"
    assert list(stale(str(work), older=0)) == []
    bucket = next(work.glob("*/*/buckets/*"))
    orphan = bucket.with_name(f"{'0' * 32}-{bucket.name.partition('-')[2]}")
    shutil.copy(bucket, orphan)
    part = next(work.glob("*/parts/*/shard-*"))
    part.chmod(0o644)
    os.truncate(part, 9)
    assert chunked(make_dataset, tmp_path, again=2) == expected
    found = list(stale(str(work), older=0))
    assert {str(orphan)} < {one.uri for one in found}
    assert {Path(one.uri).parent.name for one in found} == {"buckets", "damaged"}
    assert list(stale(str(work))) == []
    for one in found:
        one.remove()
    assert chunked(make_dataset, tmp_path, again=3) == expected
    assert list(stale(str(work), older=0)) == []
