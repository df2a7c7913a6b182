"""Google Cloud Storage, or the emulator that ``STORAGE_EMULATOR_HOST`` names.

Every write carries ``ifGenerationMatch=0``, which the service checks and applies in one step. The
emulator fake-gcs-server does so for uploads of at most 8 MiB and ignores the condition on resumable
uploads and on copies; so those ask first whether the name is taken, which on the service itself
also saves sending bytes that would be refused.
"""

from __future__ import annotations

import io
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import requests  # type: ignore[import-untyped]
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store.base import WRITER, ObjectInfo, land, split, split_folder

DEADLINE = 120.0
"""Seconds over which a failing request is tried again."""

CONNECTIONS = 32
"""Kept open per process: slices are read by 16 threads."""

ONE_REQUEST = 8 * 2**20
"""Bytes up to which the library uploads in one request; more becomes a resumable upload."""

UPLOAD_CHUNK = 16 * 2**20
"""Bytes of a resumable upload in memory; a multiple of 256 KiB."""

_LOCK = threading.Lock()

_CALL: dict[str, Any] = {"retry": DEFAULT_RETRY.with_timeout(DEADLINE), "timeout": (10.0, 60.0)}


class GoogleStore:
    """Objects of Google Cloud Storage; CRC32C is checked on the way up and on the way down."""

    def read(self, uri: str) -> bytes:
        with _errors("read", uri):
            data: bytes = _blob(uri).download_as_bytes(checksum="crc32c", **_CALL)
            return data

    def publish(self, uri: str, data: bytes) -> bool:
        return self._upload(uri, io.BytesIO(data), len(data))

    def publish_file(self, path: Path, uri: str) -> bool:
        if not path.is_file():
            raise StoreError(f"cannot publish {path} as {uri}: there is no such file")
        with path.open("rb") as file:
            return self._upload(uri, file, path.stat().st_size)

    def copy(self, source: str, target: str) -> bool:
        if self.exists(target):
            return False
        with _errors("copy", source, target):
            origin, goal = _blob(source), _blob(target)
            token: str | None = None
            while True:  # a large object takes several calls
                try:
                    token, _, _ = goal.rewrite(origin, token=token, if_generation_match=0, **_CALL)
                except api.PreconditionFailed:
                    return False
                if token is None:
                    return True

    def fetch(self, uri: str, directory: Path) -> Path:
        def write(path: Path) -> None:
            _blob(uri).download_to_filename(str(path), checksum="crc32c", **_CALL)

        with _errors("fetch", uri):
            return land(uri, directory, write)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, folder = split_folder(prefix)
        with _errors("list", prefix):
            blobs = _client().list_blobs(
                bucket, prefix=folder, page_size=1000, fields="items(name,size),nextPageToken", **_CALL
            )
            for blob in blobs:
                if not blob.name.endswith("/"):  # a console's marker for an empty folder
                    yield ObjectInfo(f"gs://{bucket}/{blob.name}", int(blob.size))

    def exists(self, uri: str) -> bool:
        try:
            with _errors("read", uri):
                _blob(uri).reload(**_CALL)
        except NotFound:
            return False
        return True

    def delete(self, uri: str) -> None:
        with suppress(NotFound), _errors("delete", uri):
            _blob(uri).delete(**_CALL)

    def _upload(self, uri: str, file: IO[bytes], size: int) -> bool:
        if size > ONE_REQUEST and self.exists(uri):
            return False
        with _errors("write", uri):
            blob = _blob(uri, chunk_size=UPLOAD_CHUNK)
            blob.metadata = {WRITER: uuid.uuid4().hex}
            try:
                blob.upload_from_file(file, size=size, checksum="crc32c", if_generation_match=0, **_CALL)
            except api.PreconditionFailed:
                return _is_ours(uri, blob.metadata[WRITER])
            return True


def _is_ours(uri: str, writer: str) -> bool:
    """Whether what stands at ``uri`` is this call's own upload, whose answer was lost on the way."""
    blob = _blob(uri)
    try:
        blob.reload(**_CALL)
    except api.NotFound:
        return False  # published by another and deleted since
    return bool((blob.metadata or {}).get(WRITER) == writer)


def _blob(uri: str, **options: Any) -> Any:
    bucket, name = split(uri)
    return _client().bucket(bucket).blob(name, **options)


def _client() -> Any:
    # One for each process, also after a fork: connections cannot be shared by two.
    names = ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS")
    with _LOCK:
        return _new_client(os.getpid(), *map(os.environ.get, names))


@lru_cache(maxsize=4)
def _new_client(*_: object) -> Any:
    # Otherwise each bucket is asked for in the background, for traces that nobody collects.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    client = storage.Client(project=None)  # anonymous when an emulator is named; no call needs a project
    adapter = requests.adapters.HTTPAdapter(pool_connections=2, pool_maxsize=CONNECTIONS)
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, adapter)
    return client


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
        place = f"the emulator at {host}" if host else "Google Cloud Storage"
        raise StoreError(f"{what}: {place} does not answer as it should ({_line(error)})") from error
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
        return bool(_client().bucket(bucket).exists(**_CALL))
    return True


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
