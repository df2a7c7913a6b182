"""One suite for all stores: what ``Store`` promises, on files, fake-gcs-server and SeaweedFS."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kubealign_components.errors import ConfigError, NotFound, StoreError
from kubealign_components.store import Store, join, scheme_of, store_for

RACERS = 8


def names(store: Store, prefix: str) -> list[str]:
    return [entry.uri.removeprefix(prefix) for entry in store.list(prefix)]


def race(write: Callable[[int], bool]) -> list[int]:
    """Which of eight threads that start together were told that they published."""
    barrier = threading.Barrier(RACERS)

    def run(number: int) -> bool:
        barrier.wait()
        return write(number)

    with ThreadPoolExecutor(RACERS) as pool:
        return [number for number, won in enumerate(pool.map(run, range(RACERS))) if won]


@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 10, "αβγ".encode()])
def test_what_is_published_is_read(place: str, data: bytes, tmp_path: Path) -> None:
    store, uri = store_for(place), join(place, "folder", "object.bin")
    assert not store.exists(uri)
    assert store.publish(uri, data)
    assert store.exists(uri)
    assert store.read(uri) == data
    assert store.fetch(uri, tmp_path / "fetched").read_bytes() == data
    assert [(entry.uri, entry.size) for entry in store.list(place)] == [(uri, len(data))]


@pytest.mark.parametrize(
    "name", ["日本語/ключ.json", "a b+c%41?x=1#y&z", "é/é", "-._~!$'()*,;=:@[]", "." + "x" * 150]
)
def test_any_name(place: str, name: str, tmp_path: Path) -> None:
    store, uri = store_for(place), f"{place}/{name}"
    assert store.publish(uri, name.encode())
    assert store.read(uri) == name.encode()
    assert names(store, place) == [f"/{name}"]
    assert store.fetch(uri, tmp_path / "fetched").read_bytes() == name.encode()
    assert store.copy(uri, f"{place}/copy of {name}")
    assert store.read(f"{place}/copy of {name}") == name.encode()


def test_a_name_is_published_once(place: str, tmp_path: Path) -> None:
    store, uri, file = store_for(place), join(place, "object"), tmp_path / "file"
    file.write_bytes(b"other")
    assert store.publish(uri, b"first")
    assert not store.publish(uri, b"second")
    assert not store.publish_file(file, uri)
    store.publish(join(place, "another"), b"third")
    assert not store.copy(join(place, "another"), uri)
    assert store.read(uri) == b"first"


def test_of_racing_writers_one_wins_and_its_bytes_stand(place: str) -> None:
    store = store_for(place)
    for attempt in range(2):  # a loser waits a second or more for its answer from SeaweedFS
        uri = join(place, f"object-{attempt}")
        winners = race(lambda number, uri=uri: store.publish(uri, bytes([number]) * 100_000))
        assert len(winners) == 1
        assert store.read(uri) == bytes(winners) * 100_000
    assert len(names(store, place)) == 2


def test_of_racing_files_one_wins_and_its_bytes_stand(place: str, tmp_path: Path) -> None:
    store, uri = store_for(place), join(place, "object")
    files = [tmp_path / f"file-{number}" for number in range(RACERS)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 2_000_000)
    [winner] = race(lambda number: store.publish_file(files[number], uri))
    assert store.read(uri) == files[winner].read_bytes()
    assert all(file.exists() for file in files)


def test_racing_copies_of_the_same_bytes(place: str) -> None:
    store, source, target = store_for(place), join(place, "source"), join(place, "target")
    store.publish(source, b"bytes" * 1000)
    winners = race(lambda _: store.copy(source, target))
    assert store.read(target) == store.read(source)
    # fake-gcs-server ignores the precondition on copies; that it is sent is tested on the wire.
    assert len(winners) == 1 if scheme_of(place) != "gs" else winners


def test_large_objects(place: str, tmp_path: Path) -> None:
    store, data = store_for(place), random.Random(0).randbytes(12 * 2**20 + 1)
    file = tmp_path / "large"
    file.write_bytes(data)
    uri, copied = join(place, "large.parquet"), join(place, "copy.parquet")
    assert store.publish_file(file, uri)
    assert not store.publish_file(file, uri)
    assert store.copy(uri, copied)
    assert store.read(copied) == data
    assert store.fetch(copied, tmp_path / "fetched").read_bytes() == data
    assert store.publish(join(place, "bytes"), data)
    assert [entry.size for entry in store.list(place)] == [len(data)] * 3


def test_a_folder_is_listed_alone_and_in_order_of_names(place: str) -> None:
    store = store_for(place)
    inside = ["Z", "a b", "a-b", "a.b", "a/b", "a/c/d", "a0", "b", "é", "日本"]
    for name in reversed(inside):
        store.publish(f"{place}/folder/{name}", b"")
    for name in ("folder.json", "folder2/x", "folde/x", "other"):
        store.publish(join(place, name), b"")
    assert names(store, f"{place}/folder") == [f"/{name}" for name in inside]
    assert names(store, f"{place}/folder/") == inside
    assert names(store, f"{place}/folder/a") == ["/b", "/c/d"]
    assert names(store, f"{place}/nothing") == []
    assert names(store, f"{place}/other") == []


def test_long_listings_are_whole_and_in_order(place: str) -> None:
    store = store_for(place)
    # The first page of 1000 ends within a-, which SeaweedFS lists after a/ but which stands before it.
    paths = [
        f"/{name}{i:04d}" for name, count in (("a/", 550), ("a-", 500), ("b/c/", 50)) for i in range(count)
    ]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda path: store.publish(place + path, b"x"), paths))
    listing = store.list(place)
    assert isinstance(listing, Iterator)
    assert [entry.uri.removeprefix(place) for entry in listing] == sorted(paths)
    assert next(store.list(place)).uri == f"{place}/a-0000"


def test_what_is_absent_is_named(place: str, tmp_path: Path) -> None:
    store, uri = store_for(place), join(place, "nothing")
    for action in (
        lambda: store.read(uri),
        lambda: store.fetch(uri, tmp_path / "fetched"),
        lambda: store.copy(uri, join(place, "target")),
        lambda: store.info(uri),
    ):
        with pytest.raises(NotFound, match="nothing"):
            action()
    assert not store.exists(uri)
    assert not store.exists(join(place, "target"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_is_no_object(place: str, tmp_path: Path) -> None:
    store = store_for(place)
    store.publish(join(place, "folder", "object"), b"")
    assert not store.exists(join(place, "folder"))
    with pytest.raises(NotFound):
        store.read(join(place, "folder"))
    with pytest.raises(NotFound):
        store.fetch(join(place, "folder"), tmp_path / "fetched")
    store.delete(join(place, "folder"))
    assert names(store, place) == ["/folder/object"]


def test_the_name_of_a_folder_cannot_be_published(place: str) -> None:
    store, uri = store_for(place), join(place, "folder")
    store.publish(join(uri, "object"), b"")
    if scheme_of(place) == "gs":  # has no folders
        assert store.publish(uri, b"x")
        return
    with pytest.raises(StoreError, match="folder of that name"):
        store.publish(uri, b"x")


def test_deleting_twice_is_deleting_once(place: str) -> None:
    store, uri = store_for(place), join(place, "object")
    store.publish(uri, b"x")
    store.delete(uri)
    store.delete(uri)
    assert not store.exists(uri)
    assert store.publish(uri, b"y")
    assert store.read(uri) == b"y"


def test_fetched_objects_of_one_name_do_not_collide(place: str, tmp_path: Path) -> None:
    store, folder = store_for(place), tmp_path / "fetched"
    uris = [join(place, part, "shard.parquet") for part in ("a", "b")]
    for uri in uris:
        store.publish(uri, uri.encode())
    fetched = [store.fetch(uri, folder) for uri in uris]
    assert [path.read_bytes() for path in fetched] == [uri.encode() for uri in uris]
    assert all(path.suffix == ".parquet" for path in fetched)


def test_a_file_that_is_not_there_is_not_published(place: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        store_for(place).publish_file(tmp_path / "absent", join(place, "object"))
    assert names(store_for(place), place) == []


def test_a_missing_bucket_is_named(remote: str, tmp_path: Path) -> None:
    store, scheme = store_for(remote), scheme_of(remote)
    missing, file, source = f"{scheme}://no-such-bucket/object", tmp_path / "file", join(remote, "source")
    file.write_bytes(bytes(9 * 2**20))
    store.publish(source, b"x")
    for action in (
        lambda: store.read(missing),
        lambda: store.exists(missing),
        lambda: store.fetch(missing, tmp_path),
        lambda: store.delete(missing),
        lambda: store.publish(missing, b"x"),
        lambda: store.publish_file(file, missing),
        lambda: store.copy(missing, join(remote, "target")),
        lambda: store.copy(source, missing),
        lambda: list(store.list(missing)),
    ):
        with pytest.raises(StoreError, match=r"no bucket 'no-such-bucket'.*create it") as caught:
            action()
        assert not isinstance(caught.value, NotFound)
        assert missing in str(caught.value)


def test_a_uri_without_an_object_is_refused(remote: str) -> None:
    store, scheme = store_for(remote), scheme_of(remote)
    with pytest.raises(StoreError, match=f"{scheme}://bucket/name"):
        store.read(f"{scheme}://bucket")
    with pytest.raises(StoreError, match=f"{scheme}://bucket/folder"):
        list(store.list(f"{scheme}://"))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="local path, file://, gs://, s3:// or minio://"):
        store_for("ftp://host/x")


def test_a_listing_tells_versions_apart(remote: str) -> None:
    store, uri = store_for(remote), join(remote, "weights")

    def version() -> str:
        [entry] = store.list(remote)
        return entry.version

    store.publish(uri, b"aaaa")
    first = version()
    assert first and version() == first
    assert (store.info(uri).size, store.info(uri).version) == (4, first)
    store.delete(uri)
    store.publish(uri, b"bbbb")
    assert version() not in ("", first)
