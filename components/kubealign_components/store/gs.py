"""Google Cloud Storage, or the emulator that ``STORAGE_EMULATOR_HOST`` names.

Credentials are the application default ones: the key file of ``GOOGLE_APPLICATION_CREDENTIALS``, a
user's own, or those of the pod's service account (Workload Identity).

Every write carries ``ifGenerationMatch=0``, which the service checks and applies in one step. The
emulator fake-gcs-server does so for uploads of at most 8 MiB and ignores the condition on resumable
uploads, on copies and when it composes; so those ask first whether the name is taken, which on the
service itself also saves sending bytes that would be refused.

A large file goes up in parts under temporary names beside the target, which the service then composes
on condition. (Its other way of taking parts, the XML multipart upload, knows no conditions.) Parts are
deleted at once; of a writer that is killed they stay, as temporary files do, and listings skip them.
"""

from __future__ import annotations

import base64
import io
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import google_crc32c
import requests  # type: ignore[import-untyped]
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store.base import (
    DEADLINE,
    PARALLEL,
    PART,
    PART_WORKERS,
    TEMPORARY,
    WRITER,
    Leftover,
    ObjectInfo,
    Span,
    Window,
    deadline,
    fetch_parts,
    join,
    land,
    spans,
    split,
    split_folder,
)

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

CONNECTIONS = 32
"""Kept open per process: slices are read by 16 threads."""

ONE_REQUEST = 8 * 2**20
"""Bytes up to which the library uploads in one request; more becomes a resumable upload."""

UPLOAD_CHUNK = 32 * 2**20
"""Bytes of a part that are one request, and in memory; a multiple of 256 KiB."""

MOST_PARTS = 32
"""What the service composes in one call."""

_LOCK = threading.Lock()

_BLOCK = 2**20


class GoogleStore:
    """Objects of Google Cloud Storage; CRC32C is checked on the way up and on the way down.

    Args:
        parallel: bytes above which a file is transferred in parts.
        part: bytes of a part, at least.
    """

    def __init__(self, *, parallel: int = PARALLEL, part: int = PART) -> None:
        self._parallel = parallel
        self._part = part

    def read(self, uri: str) -> bytes:
        with _errors("read", uri):
            data: bytes = _blob(uri).download_as_bytes(checksum="crc32c", **_call())
            return data

    def publish(self, uri: str, data: bytes) -> bool:
        with _errors("write", uri):
            return _publish(uri, io.BytesIO(data), len(data), google_crc32c.value(data))

    def publish_file(self, path: Path, uri: str) -> bool:
        if not path.is_file():
            raise StoreError(f"cannot publish {path} as {uri}: there is no such file")
        size = path.stat().st_size
        if size > ONE_REQUEST and self.exists(uri):
            return False
        with _errors("write", uri):
            if size > self._parallel:
                return self._compose(uri, path, size)
            with path.open("rb") as file:
                return _publish(uri, file, size, _crc32c(path))

    def copy(self, source: str, target: str) -> bool:
        if self.exists(target):
            return False
        with _errors("copy", source, target):
            origin = _blob(source)
            return _commit(target, lambda goal: _rewrite(origin, goal))

    def fetch(self, uri: str, directory: Path) -> Path:
        def write(path: Path) -> None:
            blob = _blob(uri)
            blob.reload(**_call())
            if blob.size > self._parallel and not blob.content_encoding:
                self._fetch_parts(uri, blob, path)
                return
            # A blob of its own: a generation that is known would be insisted on.
            _blob(uri).download_to_filename(str(path), checksum="crc32c", **_call())

        with _errors("fetch", uri):
            return land(uri, directory, write)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for uri, blob in _listed(prefix):
            name = uri.rpartition("/")[2]
            if name and not name.startswith(TEMPORARY):  # no name: a console's marker for a folder
                yield _object_info(uri, blob)

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        for uri, blob in _listed(prefix):
            if uri.rpartition("/")[2].startswith(TEMPORARY):
                yield Leftover(uri=uri, size=int(blob.size), since=_written(blob))

    def discard(self, leftover: Leftover) -> None:
        self.delete(leftover.uri)

    def info(self, uri: str) -> ObjectInfo:
        blob = _blob(uri)
        with _errors("read", uri):
            blob.reload(**_call())
        return _object_info(uri, blob)

    def exists(self, uri: str) -> bool:
        try:
            self.info(uri)
        except NotFound:
            return False
        return True

    def delete(self, uri: str) -> None:
        with suppress(NotFound), _errors("delete", uri):
            _blob(uri).delete(**_call())

    def _compose(self, uri: str, path: Path, size: int) -> bool:
        """Publish a large file: parts go up at once, and the service joins them on condition."""
        folder = uri.rpartition("/")[0]
        pieces = spans(size, max(self._part, -(-size // MOST_PARTS)))
        names = [join(folder, f"{TEMPORARY}{uuid.uuid4().hex}") for _ in pieces]

        def send(name: str, span: Span) -> Blob:
            with Window(path, span) as window:
                return _upload(_blob(name, chunk_size=UPLOAD_CHUNK), window, span[1] - span[0])

        with ThreadPoolExecutor(PART_WORKERS, "publish-part") as pool:
            sending = [pool.submit(send, name, span) for name, span in zip(names, pieces)]
            try:
                parts = [each.result() for each in sending]
                generations = [part.generation for part in parts]
                return _commit(
                    uri,
                    lambda goal: goal.compose(
                        parts, if_generation_match=0, if_source_generation_match=generations, **_call()
                    ),
                    _crc32c(path),
                )
            finally:
                for each in sending:
                    each.cancel()
                wait(sending)  # what is still on its way would come to stand after its name was cleared
                list(pool.map(_discard, names))

    def _fetch_parts(self, uri: str, blob: Blob, path: Path) -> None:
        def read(span: Span, file: IO[bytes]) -> None:
            piece = _blob(uri, generation=blob.generation)
            piece.download_to_file(file, start=span[0], end=span[1] - 1, checksum=None, **_call())

        fetch_parts(path, blob.size, self._part, read)
        if _crc32c(path) != _number(blob.crc32c):
            raise DataCorruption(None, f"CRC32C is not {blob.crc32c}")


def _listed(prefix: str) -> Iterator[tuple[str, Blob]]:
    """Every object below the folder ``prefix``, and where it lies."""
    bucket, folder = split_folder(prefix)
    with _errors("list", prefix):
        blobs = _client().list_blobs(
            bucket,
            prefix=folder,
            page_size=1000,
            fields="items(name,size,generation,updated),nextPageToken",
            **_call(),
        )
        for blob in blobs:
            yield f"gs://{bucket}/{blob.name}", blob


def _object_info(uri: str, blob: Blob) -> ObjectInfo:
    return ObjectInfo(uri, int(blob.size), str(blob.generation or ""), _written(blob))


def _written(blob: Blob) -> float:
    return float(blob.updated.timestamp()) if blob.updated else 0.0


def _publish(uri: str, file: IO[bytes], size: int, crc32c: int) -> bool:
    return _commit(uri, lambda goal: _upload(goal, file, size, if_generation_match=0), crc32c)


def _commit(uri: str, write: Callable[[Blob], object], crc32c: int | None = None) -> bool:
    """Let ``write`` make ``uri`` on condition that it is not there; whether this call made it.

    An answer can be lost after the object was made, and the repeated request is then refused: so what
    stands there is looked at. An object of ours with another checksum is deleted.
    """
    writer = uuid.uuid4().hex
    goal = _blob(uri)
    goal.metadata = {WRITER: writer}
    try:
        write(goal)
    except api.PreconditionFailed:
        try:
            goal.reload(**_call())
        except api.NotFound:
            return False  # published by another and deleted since
        if (goal.metadata or {}).get(WRITER) != writer:
            return False
    _check(goal, crc32c)
    return True


def _check(blob: Blob, crc32c: int | None) -> None:
    """Delete ``blob``, an object of ours, and raise when the service holds other bytes than were sent."""
    if crc32c is not None and _number(blob.crc32c) != crc32c:
        blob.delete(if_generation_match=blob.generation, **_call())
        raise DataCorruption(None, f"CRC32C {blob.crc32c} arrived, not that of the bytes sent")


def _upload(blob: Blob, file: IO[bytes] | Window, size: int, **condition: object) -> Blob:
    blob.upload_from_file(file, size=size, checksum="crc32c", **condition, **_call())
    return blob


def _rewrite(origin: Blob, goal: Blob) -> None:
    token: str | None = None
    while True:  # a large object takes several calls
        token, _, _ = goal.rewrite(origin, token=token, if_generation_match=0, **_call())
        if token is None:
            return


def _discard(uri: str) -> None:
    # The upload itself has ended, well or with an error that is told: this must not hide it.
    with suppress(api.GoogleAPIError, auth.GoogleAuthError, requests.RequestException, ConnectionError):
        _blob(uri).delete(**_call())


def _crc32c(path: Path) -> int:
    crc32c = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc32c = google_crc32c.extend(crc32c, block)
    return crc32c


def _number(crc32c: str) -> int:
    return int.from_bytes(base64.b64decode(crc32c), "big")


def _blob(uri: str, **options: object) -> Blob:
    bucket, name = split(uri)
    return _client().bucket(bucket).blob(name, **options)


def _call() -> Mapping[str, object]:
    retry = DEFAULT_RETRY.with_timeout(deadline()).with_delay(initial=0.5, maximum=20.0, multiplier=2.0)
    return {"retry": retry, "timeout": (10.0, 60.0)}


def _client() -> Client:
    # One for each process, also after a fork: connections cannot be shared by two.
    names = ("STORAGE_EMULATOR_HOST", "API_ENDPOINT_OVERRIDE", "GOOGLE_APPLICATION_CREDENTIALS")
    with _LOCK:
        return _new_client(os.getpid(), *map(os.environ.get, names))


@lru_cache(maxsize=4)
def _new_client(*_: object) -> Client:
    # Otherwise each bucket is asked for in the background, for traces that nobody collects.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = storage.Client(project=None)  # anonymous when an emulator is named; no call needs a project
    adapter = requests.adapters.HTTPAdapter(pool_connections=2, pool_maxsize=CONNECTIONS)
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, adapter)
    client._http.hooks["response"].append(_require_answer)
    return client


def _require_answer(answer: requests.Response, **_: object) -> None:
    """Raise where 200 is not the service's word, but a page of a proxy: its bytes would be an object's."""
    media = "alt=media" in (answer.request.url or "")
    kind = answer.headers.get("Content-Type", "")
    said = "X-Goog-Generation" in answer.headers if media else "html" not in kind
    if answer.status_code in (200, 206) and not said:
        url = answer.url.partition("?")[0]
        raise requests.RequestException(f"{kind or 'bytes'} of {url}, which is no Google Cloud Storage")


@contextmanager
def _errors(action: str, *uris: str) -> Iterator[None]:
    """Turn the client's errors into ours, naming the URIs and what to do."""
    what = f"cannot {action} {' to '.join(uris)}"
    try:
        yield
    except api.NotFound as error:
        raise _absent(what, uris, str(error)) from error
    except (auth.GoogleAuthError, api.Unauthorized) as error:
        raise StoreError(
            f"{what}: no valid Google credentials ({_line(error)}); run `gcloud auth application-default "
            "login`, or set GOOGLE_APPLICATION_CREDENTIALS, or give the pod's service account an identity"
        ) from error
    except api.Forbidden as error:
        raise StoreError(
            f"{what}: access denied ({_line(error)}); give this identity the role Storage Object User "
            "on the bucket"
        ) from error
    except DataCorruption as error:
        raise StoreError(f"{what}: bytes changed on the way ({_line(error)}); try again") from error
    except (api.GoogleAPIError, InvalidResponse, requests.RequestException, ConnectionError) as error:
        host = os.environ.get("STORAGE_EMULATOR_HOST")
        service = f"the emulator at {host}" if host else "Google Cloud Storage"
        raise StoreError(
            f"{what}: {service} does not answer as it should ({_line(error)}); check the network and "
            f"STORAGE_EMULATOR_HOST, or raise {DEADLINE} and try again"
        ) from error
    except OSError as error:  # after those of requests, which are also OSErrors
        raise StoreError(f"{what}: {error.strerror or error}") from error


def _absent(what: str, uris: tuple[str, ...], message: str) -> StoreError:
    """A missing object or, when the bucket itself is missing, the error that says so."""
    if "No such object" not in message:
        for bucket in dict.fromkeys(split_folder(uri)[0] for uri in uris):
            if not _bucket_exists(bucket):
                return StoreError(f"{what}: there is no bucket {bucket!r}; create it, or correct the name")
    return NotFound(f"no object at {uris[0]}")


def _bucket_exists(bucket: str) -> bool:
    with suppress(api.GoogleAPIError):  # seeing buckets takes a permission of its own
        return bool(_client().bucket(bucket).exists(**_call()))
    return True


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
