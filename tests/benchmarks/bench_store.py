"""Object stores against the client libraries' own transfer managers, on servers of this machine.

    python tests/benchmarks/bench_store.py [--large-mb 256] [--shards 24] [--shard-mb 8]
        [--merge-shards 20] [--merge-mb 16] [--rounds 5] [--stores gs s3]

Both sides move the same files to and from the same fake-gcs-server and SeaweedFS. The peers, as they
come: ``transfer_manager`` of google-cloud-storage (worker processes) and ``s3transfer`` under boto3
(threads). The project publishes on condition and checks the whole file's checksum, which they do not all
do. Google's manager uploads one large file by an API that the emulator lacks: its peer there is the
library's own resumable upload. That is one stream, the project's are several that the service composes;
the emulator composes by copying bytes, the service does not, so ``one stream`` is measured as well.
``merge`` joins shards as the stage does, by copies that the server makes, against fetching and publishing
each shard.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import alternate

from kubealign_components.store import Store, join, store_for
from kubealign_components.store.gs import GoogleStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.store_servers import ACCESS, BUCKET, fake_gcs_server, seaweedfs

MEBI = 2**20
THREADS = 8
"""What both sides use; it is the default of Google's manager."""

os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="not used: every benchmark is given one")
    parser.add_argument("--large-mb", type=int, default=256, help="size of one large file")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--shard-mb", type=int, default=8)
    parser.add_argument("--merge-shards", type=int, default=20)
    parser.add_argument("--merge-mb", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stores", nargs="*", default=["gs", "s3"], choices=["gs", "s3"])
    options = parser.parse_args()
    for scheme in options.stores:
        with tempfile.TemporaryDirectory(prefix="bench-store-") as folder, server(scheme, Path(folder)):
            files = write(Path(folder, "large"), 1, options.large_mb)
            transfer(scheme, "large", files, Path(folder), options.rounds)
            files = write(Path(folder, "many"), options.shards, options.shard_mb)
            transfer(scheme, "many", files, Path(folder), options.rounds)
            files = write(Path(folder, "merge"), options.merge_shards, options.merge_mb)
            merge(scheme, files, Path(folder), options.rounds)


@contextmanager
def server(scheme: str, folder: Path) -> Iterator[None]:
    """A server of the store, on disk, which the environment names."""
    for name in ("served", "down"):
        (folder / name).mkdir()
    if scheme == "gs":
        with fake_gcs_server(folder / "served") as address:
            os.environ["STORAGE_EMULATOR_HOST"] = address
            yield
        return
    with seaweedfs(folder / "served", volumes=200) as served:
        os.environ |= {**ACCESS, "AWS_ENDPOINT_URL": served.s3}
        yield


def write(folder: Path, count: int, mebi: int) -> list[Path]:
    """Files of random bytes, which no server can press together."""
    folder.mkdir()
    files = [folder / f"shard-{number:05d}" for number in range(count)]
    for file in files:
        file.write_bytes(os.urandom(mebi * MEBI))
    return files


def transfer(scheme: str, kind: str, files: Sequence[Path], folder: Path, rounds: int) -> None:
    """Time both ways up and down, and print MB/s of each and their ratio."""
    peer: Peer = {"gs": GooglePeer, "s3": BotoPeer}[scheme]()
    up: dict[str, Callable[[], str]] = {
        "project": lambda: publish_all(files, place(scheme)),
        "peer": lambda: peer.up(files, place(scheme)),
    }
    if scheme == "gs" and len(files) == 1:
        one = GoogleStore(parallel=2**40)
        up["one stream"] = lambda: publish_all(files, place(scheme), one)
    there = publish_all(files, place(scheme))
    down: dict[str, Callable[[], str]] = {
        "project": lambda: fetch_all(files, there, folder / "down"),
        "peer": lambda: peer.down(files, there, folder / "down"),
    }
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    for direction, ways in (("up", up), ("down", down)):
        seconds, _ = alternate({name: swept(way) for name, way in ways.items()}, rounds)
        rates = {name: megabytes / taken for name, taken in seconds.items()}
        print(f"{scheme} {kind} {direction}: " + ", ".join(f"{n} {r:.0f} MB/s" for n, r in rates.items()))
        for name in rates.keys() - {"peer"}:
            label = "" if name == "project" else "_" + name.replace(" ", "_")
            ratio = rates[name] / rates["peer"]
            print(f"ratio store_{scheme}_{kind}_{direction}{label} {ratio:.3f}", flush=True)
    clear(there)


def swept(way: Callable[[], str]) -> Callable[[], str]:
    """``way`` without what earlier ones left to collect."""

    def run() -> str:
        gc.collect()
        return way()

    return run


def merge(scheme: str, files: Sequence[Path], folder: Path, rounds: int) -> None:
    """Time joining shards by copies of the server's against moving their bytes."""
    source = publish_all(files, place(scheme))
    names = [file.name for file in files]

    def copies() -> str:
        target = place(scheme)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda n: store_for(target).copy(join(source, n), join(target, n)), names))
        return target

    def moves() -> str:
        target, store = place(scheme), store_for(source)
        with tempfile.TemporaryDirectory(dir=folder) as here, ThreadPoolExecutor(THREADS) as pool:

            def move(name: str) -> None:
                path = store.fetch(join(source, name), Path(here))
                store.publish_file(path, join(target, name))
                path.unlink()

            list(pool.map(move, names))
        return target

    def emptied(way: Callable[[], str]) -> Callable[[], None]:
        return lambda: clear(way())

    check = copies()
    fetch_all(files, check, folder / "down")
    clear(check)
    seconds, _ = alternate({"copies": emptied(copies), "moves": emptied(moves)}, rounds)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(
        f"{scheme} merge of {len(files)} shards, {megabytes:.0f} MB: copies {seconds['copies']:.2f} s, "
        f"download and upload {seconds['moves']:.2f} s (deleting the result included)"
    )
    print(f"ratio store_{scheme}_merge {seconds['moves'] / seconds['copies']:.3f}", flush=True)
    clear(source)


def place(scheme: str) -> str:
    return f"{scheme}://{BUCKET}/{uuid.uuid4().hex}"


def publish_all(files: Sequence[Path], folder: str, store: Store | None = None) -> str:
    store = store or store_for(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(lambda file: store.publish_file(file, join(folder, file.name)), files))
    return folder


def fetch_all(files: Sequence[Path], folder: str, to: Path) -> str:
    store = store_for(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        fetched = list(pool.map(lambda file: store.fetch(join(folder, file.name), to), files))
    verify(files, fetched)
    return folder


def verify(files: Sequence[Path], fetched: Sequence[Path]) -> None:
    """Hold the first and the last file to their originals, and make room."""
    for file, path in ((files[0], fetched[0]), (files[-1], fetched[-1])):
        assert path.stat().st_size == file.stat().st_size
    assert digest(fetched[-1]) == digest(files[-1]), "other bytes came back"
    for path in fetched:
        path.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear(folder: str) -> None:
    store = store_for(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(store.delete, [entry.uri for entry in store.list(folder)]))


class GooglePeer:
    """``google.cloud.storage.transfer_manager``."""

    def __init__(self) -> None:
        from google.cloud import storage

        self.bucket = storage.Client(project=None).bucket(BUCKET)

    def up(self, files: Sequence[Path], folder: str) -> str:
        from google.cloud.storage import transfer_manager

        prefix = folder.partition(f"{BUCKET}/")[2] + "/"
        if len(files) == 1:
            self.bucket.blob(prefix + files[0].name).upload_from_filename(str(files[0]))
            return folder
        results = transfer_manager.upload_many_from_filenames(
            self.bucket,
            [file.name for file in files],
            source_directory=str(files[0].parent),
            blob_name_prefix=prefix,
            max_workers=THREADS,
            raise_exception=True,
        )
        assert len(results) == len(files)
        return folder

    def down(self, files: Sequence[Path], folder: str, to: Path) -> str:
        from google.cloud.storage import transfer_manager

        prefix = folder.partition(f"{BUCKET}/")[2] + "/"
        fetched = [to / file.name for file in files]
        if len(files) == 1:
            blob = self.bucket.blob(prefix + files[0].name)
            transfer_manager.download_chunks_concurrently(blob, str(fetched[0]), max_workers=THREADS)
        else:
            transfer_manager.download_many_to_path(
                self.bucket,
                [file.name for file in files],
                destination_directory=str(to),
                blob_name_prefix=prefix,
                max_workers=THREADS,
                raise_exception=True,
            )
        verify(files, fetched)
        return folder


class BotoPeer:
    """``s3transfer``, which is what ``upload_file`` and ``download_file`` of boto3 use."""

    def __init__(self) -> None:
        import boto3

        self.client = boto3.session.Session().client("s3")

    def up(self, files: Sequence[Path], folder: str) -> str:
        prefix = folder.partition(f"{BUCKET}/")[2] + "/"
        with self._manager() as manager:
            for each in [manager.upload(str(file), BUCKET, prefix + file.name) for file in files]:
                each.result()
        return folder

    def down(self, files: Sequence[Path], folder: str, to: Path) -> str:
        prefix = folder.partition(f"{BUCKET}/")[2] + "/"
        fetched = [to / file.name for file in files]
        with self._manager() as manager:
            for each in [manager.download(BUCKET, prefix + path.name, str(path)) for path in fetched]:
                each.result()
        verify(files, fetched)
        return folder

    def _manager(self) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        return create_transfer_manager(self.client, TransferConfig())


Peer = GooglePeer | BotoPeer

if __name__ == "__main__":
    main()
