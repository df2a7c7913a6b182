"""Faults of networks and servers: the right result or an error that says what to do, never a half object."""

from __future__ import annotations

import http.client
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, NotFound, StoreError
from kubealign_components.store import Store, join, scheme_of, store_for
from kubealign_components.store.base import DEADLINE, TEMPORARY
from kubealign_components.store.gs import GoogleStore
from kubealign_components.store.s3 import S3Store
from support.store_servers import BUCKET
from support.store_wire import Wire
from support.tiny import prompt_row

MEBI = 2**20
ADDRESS = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}
UPLOAD = {"gs": "POST", "s3": "PUT"}
FETCH = {"gs": ["pass"], "s3": []}
"""What comes by GET before the bytes of a file: its description, for which S3 has HEAD."""
LARGE = random.Random(0).randbytes(11 * MEBI + 1)


@pytest.fixture
def in_parts(remote: str) -> Store:
    """The store, which has :data:`LARGE` go up, down and across in three parts."""
    if scheme_of(remote) == "gs":
        return GoogleStore(parallel=5 * MEBI, part=5 * MEBI)
    return S3Store(one_put=5 * MEBI, one_get=5 * MEBI, one_copy=5 * MEBI, part=5 * MEBI)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(LARGE)
    return file


def everything_at(remote: str) -> list[str]:
    """Names of all objects, also of those that listings skip, and of unfinished uploads."""
    folder = remote.partition(f"{BUCKET}/")[2]
    if scheme_of(remote) == "gs":
        from google.cloud import storage

        return [blob.name for blob in storage.Client(project=None).list_blobs(BUCKET, prefix=folder)]
    client = boto3.session.Session().client("s3")
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=folder).get("Contents", [])
    uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return [each["Key"] for each in found] + [f"upload of {each['Key']}" for each in uploads]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("status", ["429", "503"])
def test_bursts_of_refusals_pass(
    status: str, remote: str, wire: Wire, large: Path, in_parts: Store, tmp_path: Path
) -> None:
    store = store_for(remote)
    for name in ("read", "fetched", "source", "gone"):
        store.publish(join(remote, name), name.encode())
    actions: list[Callable[[], object]] = [
        lambda: store.publish(join(remote, "small"), b"small"),
        lambda: store.publish_file(large, join(remote, "large")),
        lambda: in_parts.publish_file(large, join(remote, "parts")),
        lambda: store.read(join(remote, "read")) == b"read",
        lambda: store.fetch(join(remote, "fetched"), tmp_path / "down").read_bytes() == b"fetched",
        lambda: store.copy(join(remote, "source"), join(remote, "target")),
        lambda: store.exists(join(remote, "source")),
        lambda: next(store.list(remote)),
        lambda: store.delete(join(remote, "gone")) is None,
    ]
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        wire.spoil(method, *[status] * 3)
    with ThreadPoolExecutor(len(actions)) as pool:
        assert all(pool.map(lambda action: action(), actions))
    wire.spoiled.clear()
    assert store.read(join(remote, "large")) == store.read(join(remote, "parts")) == LARGE
    assert store.read(join(remote, "target")) == b"source"
    assert len(everything_at(remote)) == 7


@pytest.mark.parametrize("how", ["break", "lose"])
def test_uploads_that_are_reset_are_made_again(
    how: str, remote: str, wire: Wire, large: Path, in_parts: Store
) -> None:
    store, method = store_for(remote), UPLOAD[scheme_of(remote)]
    for number, write in enumerate(
        (
            lambda uri: store.publish(uri, LARGE[: 3 * MEBI]),
            lambda uri: store.publish_file(large, uri),
            lambda uri: in_parts.publish_file(large, uri),
        )
    ):
        uri = join(remote, f"object-{number}")
        wire.spoil(method, how)
        assert write(uri)
        assert not wire.spoiled[method]
        assert store.read(uri) == (LARGE if number else LARGE[: 3 * MEBI])
    assert len(everything_at(remote)) == 3


@pytest.mark.parametrize("how", ["reset", "slow", "cut"])
def test_downloads_that_falter_are_finished(
    how: str, remote: str, wire: Wire, in_parts: Store, tmp_path: Path
) -> None:
    store, uri = store_for(remote), join(remote, "large")
    store.publish(uri, LARGE)
    wire.spoil("GET", how)
    assert store.read(uri) == LARGE
    for number, each in enumerate((store, in_parts)):
        wire.spoil("GET", *FETCH[scheme_of(remote)], how, "pass", how)
        assert each.fetch(uri, tmp_path / str(number)).read_bytes() == LARGE


@pytest.mark.parametrize("how", ["short", "flip"])
def test_bodies_that_are_not_the_objects_are_noticed(
    how: str, remote: str, wire: Wire, in_parts: Store, tmp_path: Path
) -> None:
    store, uri = store_for(remote), join(remote, "large")
    store.publish(uri, LARGE)
    wire.spoil("GET", *[how] * 9)
    with pytest.raises(StoreError, match=re.escape(uri)):
        store.read(uri)
    for number, each in enumerate((store, in_parts)):
        wire.spoil("GET", *FETCH[scheme_of(remote)], *[how] * 9)
        if how == "short" and scheme_of(remote) == "s3":  # its size is known, and the rest is asked for
            path = each.fetch(uri, tmp_path / str(number))
            assert path.read_bytes() == LARGE
            path.unlink()
            continue
        with pytest.raises(StoreError, match=re.escape(uri)):
            each.fetch(uri, tmp_path / str(number))
    wire.spoil("GET", *["short"] * 9)
    with pytest.raises(StoreError, match=re.escape(remote)):
        list(store.list(remote))
    assert files_in(tmp_path) == []


def test_bytes_that_change_on_their_way_up_are_not_published(
    remote: str, wire: Wire, large: Path, in_parts: Store
) -> None:
    store, uri, gs = store_for(remote), join(remote, "object"), scheme_of(remote) == "gs"
    ways: list[tuple[str, Callable[[], object]]] = [
        ("POST" if gs else "PUT", lambda: store.publish(uri, LARGE[:MEBI])),
        ("PUT", lambda: store.publish_file(large, uri)),  # of a resumable upload
        ("POST" if gs else "PUT", lambda: in_parts.publish_file(large, uri)),
    ]
    for method, write in ways:
        wire.spoil(method, "tamper")
        with pytest.raises(StoreError, match=re.escape(uri)):
            write()
        assert not wire.spoiled[method]
        assert everything_at(remote) == []


def test_a_race_that_is_lost_on_the_way_leaves_the_others_bytes(
    remote: str, wire: Wire, large: Path, in_parts: Store
) -> None:
    store = store_for(remote)
    source = join(remote, "source")
    store.publish(source, b"mine")
    for number, write in enumerate(
        (
            lambda uri: store.publish(uri, b"mine"),
            lambda uri: store.publish_file(large, uri),
            lambda uri: in_parts.publish_file(large, uri),
            lambda uri: store.copy(source, uri),
        )
    ):
        uri = join(remote, f"object-{number}")
        assert write is not None
        wire.first = lambda uri=uri: direct(remote, wire, uri)
        if scheme_of(remote) == "gs" and number:  # where the emulator would overlook the condition
            refuse_like_google(wire, number)
        assert not write(uri)
        wire.spoiled.clear()
        assert store.read(uri) == b"theirs"
    assert not [name for name in everything_at(remote) if TEMPORARY in name or "upload" in name]


def direct(remote: str, wire: Wire, uri: str) -> None:
    """Publish what another writes, not over ``wire``."""
    folder = uri.partition(f"{BUCKET}/")[2]
    if scheme_of(remote) == "gs":
        connection = http.client.HTTPConnection(wire.server.removeprefix("http://"))
        connection.request(
            "POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={folder}", b"theirs"
        )
        assert connection.getresponse().status == 200
        connection.close()
    else:
        client = boto3.session.Session().client("s3", endpoint_url=wire.server)
        client.put_object(Bucket=BUCKET, Key=folder, Body=b"theirs")


def refuse_like_google(wire: Wire, number: int) -> None:
    """412 to what publishes: the start of a resumable upload, composing after three parts, the copy."""
    parts = ["pass"] * 3
    wire.spoil("POST", *(parts if number == 2 else []), "412")


def test_a_write_whose_answer_is_lost_counts_as_ours(
    remote: str, wire: Wire, large: Path, in_parts: Store
) -> None:
    """Google refuses the repeated request, as the object is there; the emulator is helped to do so."""
    store, gs = store_for(remote), scheme_of(remote) == "gs"
    source = join(remote, "source")
    store.publish(source, b"source")
    ends = {"publish": 0, "compose": 3, "copy": 0}
    for name, write in {
        "publish": lambda uri: store.publish(uri, b"mine"),
        "compose": lambda uri: in_parts.publish_file(large, uri),
        "copy": lambda uri: store.copy(source, uri),
    }.items():
        uri = join(remote, name)
        before = ["pass"] * ends[name]
        if gs:
            wire.spoil("POST", *before, "lose", "412")
        else:
            # The last request of an upload in parts is a POST, and so is its first.
            wire.spoil("POST", "pass", "lose")
            wire.spoil("PUT", *(["pass"] if name == "compose" else ["lose"]))
        assert write(uri), name
        assert not store.publish(uri, b"theirs")
        wire.spoiled.clear()
    assert store.read(join(remote, "compose")) == LARGE
    assert store.read(join(remote, "copy")) == b"source"
    assert len(everything_at(remote)) == 4


def test_a_server_that_stays_down_is_an_error_in_time(
    remote: str, wire: Wire, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEADLINE, "1.5")
    store, uri = store_for(remote), join(remote, "object")
    for down in ("503", "break", "lose"):
        wire.down = down
        actions: list[Callable[[], object]] = [
            lambda: store.read(uri),
            lambda: store.publish(uri, LARGE[:MEBI]),
            lambda: store.publish_file(large, uri),
            lambda: list(store.list(remote)),
        ]
        begun = time.monotonic()
        with ThreadPoolExecutor(len(actions)) as pool:
            errors = [future.exception() for future in [pool.submit(action) for action in actions]]
        assert time.monotonic() - begun < 20
        for error in errors:
            assert isinstance(error, StoreError), error
            assert not isinstance(error, NotFound)
            assert remote in str(error)
            assert "try again" in str(error)
    wire.down = "503"
    assert files_in(tmp_path) == [large]


def test_a_deadline_that_is_no_number_is_refused(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEADLINE, "soon")
    with pytest.raises(ConfigError, match=f"{DEADLINE}='soon': expected a positive number of seconds"):
        store_for(remote).publish(join(remote, "object"), b"")


def test_a_server_that_dies_in_a_merge_leaves_no_dataset(
    remote: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [prompt_row(f"question {number}") for number in range(12)]
    with DatasetWriter(join(remote, "part"), PROMPTS, derive("test", 1, {})) as writer:
        for row in rows:
            writer.write_rows([row])
            writer.close_shard()
        part = writer.commit(Stats(rows_in=12, rows_out=12))

    def merge() -> Dataset:
        with DatasetWriter(join(remote, "merged"), PROMPTS, part.manifest.provenance) as joined:
            joined.adopt(part)
            return joined.commit(Stats(rows_in=12, rows_out=12))

    monkeypatch.setenv(DEADLINE, "1")
    wire.spoil(UPLOAD[scheme_of(remote)], *["pass"] * 5, *["503"] * 1000)
    with pytest.raises(StoreError, match=r"cannot copy .*try again"):
        merge()
    with pytest.raises(NotFound, match="no finished dataset"):
        Dataset.open(join(remote, "merged"))
    wire.spoiled.clear()
    monkeypatch.setenv(DEADLINE, "")  # as one that is not set
    assert list(merge().iter_rows()) == rows


def test_ten_thousand_objects_are_listed_page_by_page(
    crowded: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, server = crowded
    wire = Wire(server)
    with wire.open() as address:
        monkeypatch.setenv(ADDRESS[scheme_of(folder)], address)
        wire.spoil("GET", "pass", "503", "pass", "reset", "pass", "cut")
        names = [entry.uri.rpartition("/")[2] for entry in store_for(folder).list(folder)]
    assert names == [f"{number:05d}" for number in range(10_000)]
    assert len(wire.requests) == 13


@pytest.mark.parametrize("fault", ["401", "403", "refuse"])
def test_the_command_line_tells_of_a_refusal_without_a_traceback(fault: str, remote: str, wire: Wire) -> None:
    wire.down = fault
    done = CliRunner().invoke(main, ["show", remote])
    assert done.exit_code == 1, done.output
    assert remote in done.output
    assert re.search("credentials|access denied", done.output), done.output
    assert "Traceback" not in done.output


def test_the_command_line_tells_of_a_missing_bucket(remote: str) -> None:
    done = CliRunner().invoke(main, ["show", f"{scheme_of(remote)}://no-such-bucket/dataset"])
    assert done.exit_code == 1, done.output
    assert "there is no bucket 'no-such-bucket'; create it" in done.output
