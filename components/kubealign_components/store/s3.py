"""S3 and what speaks it: AWS, SeaweedFS, MinIO.

The endpoint comes from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, everything else from the
usual AWS settings. Every write carries ``If-None-Match: *``. What SeaweedFS 4.48 makes of it, tried
with eight writers at once:

- PutObject and CopyObject: exactly one succeeds, as on AWS.
- CompleteMultipartUpload: refused when the object exists, but of several that complete at the same
  moment more than one may succeed. Hence files go up in one request as long as they can
  (:data:`ONE_PUT` is far above the size of a shard), and only larger ones, which one writer publishes,
  in parts.
- A name that is already a folder is refused as if an object stood there.
- Listings are ordered by path component, so ``a/x`` comes before ``a-b``; see :func:`_in_name_order`.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store.base import WRITER, ObjectInfo, land, split, split_folder

ONE_PUT = 512 * 2**20
"""Bytes up to which a file goes up in one request."""

ONE_COPY = 5 * 2**30
"""Bytes up to which S3 copies in one request."""

PART = 64 * 2**20
"""Bytes of a part, at least; S3 takes at most 10,000 parts."""

CONNECTIONS = 32
"""Kept open per process: slices are read by 16 threads."""

ATTEMPTS = 5
"""How often a request is tried, with exponential backoff."""

PART_WORKERS = 4

_LOCK = threading.Lock()

_DENIED = {"AccessDenied", "403", "AllAccessDisabled"}
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"}
_TAKEN = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}

Range = tuple[int, int, int]
"""Part number from 1, first byte, end byte."""


class S3Store:
    """Objects of S3; the client sends checksums and checks those that the server gives.

    Args:
        one_put: bytes up to which a file goes up in one request.
        one_copy: bytes up to which an object is copied in one request.
        part: bytes of a part of what is larger, at least 5 MiB.
    """

    def __init__(self, *, one_put: int = ONE_PUT, one_copy: int = ONE_COPY, part: int = PART) -> None:
        self._one_put = one_put
        self._one_copy = one_copy
        self._part = part

    def read(self, uri: str) -> bytes:
        bucket, name = split(uri)
        with _errors("read", uri):
            return b"".join(_body(bucket, name))

    def publish(self, uri: str, data: bytes) -> bool:
        return self._put(uri, data)

    def publish_file(self, path: Path, uri: str) -> bool:
        if not path.is_file():
            raise StoreError(f"cannot publish {path} as {uri}: there is no such file")
        size = path.stat().st_size
        if size > self._one_put:
            return self._put_parts(path, size, uri)
        with path.open("rb") as file:
            return self._put(uri, file)

    def copy(self, source: str, target: str) -> bool:
        # A server that does not know the condition on a copy ignores or refuses it: so ask first.
        if self.exists(target):
            return False
        with _errors("copy", source, target):
            bucket, name = split(source)
            size = _client().head_object(Bucket=bucket, Key=name)["ContentLength"]
            if size > self._one_copy:
                return self._copy_parts(source, size, target)
            return _copy_whole(source, target)

    def fetch(self, uri: str, directory: Path) -> Path:
        bucket, name = split(uri)
        with _errors("fetch", uri):
            return land(uri, directory, lambda path: _download(bucket, name, path))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, folder = split_folder(prefix)
        with _errors("list", prefix):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
            for name, size in _in_name_order(pages, folder):
                if not name.endswith("/"):  # a console's marker for an empty folder
                    yield ObjectInfo(f"s3://{bucket}/{name}", size)

    def exists(self, uri: str) -> bool:
        bucket, name = split(uri)
        try:
            with _errors("read", uri):
                _client().head_object(Bucket=bucket, Key=name)
        except NotFound:
            return False
        return True

    def delete(self, uri: str) -> None:
        bucket, name = split(uri)
        with suppress(NotFound), _errors("delete", uri):
            _client().delete_object(Bucket=bucket, Key=name)

    def _put(self, uri: str, body: bytes | IO[bytes]) -> bool:
        bucket, name = split(uri)
        writer = uuid.uuid4().hex

        def put() -> None:
            if not isinstance(body, bytes):
                body.seek(0)
            _client().put_object(
                Bucket=bucket, Key=name, Body=body, IfNoneMatch="*", Metadata={WRITER: writer}
            )

        with _errors("write", uri):
            return _unless_taken(put) or _is_ours(uri, writer)

    def _put_parts(self, path: Path, size: int, uri: str) -> bool:
        if self.exists(uri):
            return False

        def send(target: dict[str, Any], span: Range) -> str:
            number, start, stop = span
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
            return str(_client().upload_part(**target, PartNumber=number, Body=data)["ETag"])

        with _errors("write", uri):
            return self._in_parts(uri, size, send)

    def _copy_parts(self, source: str, size: int, target: str) -> bool:
        bucket, name = split(source)

        def send(goal: dict[str, Any], span: Range) -> str:
            number, start, stop = span
            answer = _client().upload_part_copy(
                **goal,
                PartNumber=number,
                CopySource={"Bucket": bucket, "Key": name},
                CopySourceRange=f"bytes={start}-{stop - 1}",
            )
            return str(answer["CopyPartResult"]["ETag"])

        return self._in_parts(target, size, send)

    def _in_parts(self, uri: str, size: int, send: Callable[[dict[str, Any], Range], str]) -> bool:
        """Publish ``uri`` from parts that ``send`` provides; nothing is left of an upload that fails."""
        bucket, name = split(uri)
        writer = uuid.uuid4().hex
        target = {"Bucket": bucket, "Key": name}
        started = _client().create_multipart_upload(**target, Metadata={WRITER: writer})
        target["UploadId"] = started["UploadId"]
        try:
            with ThreadPoolExecutor(PART_WORKERS) as pool:
                spans = list(_ranges(size, max(self._part, -(-size // 10_000))))
                tags = list(pool.map(lambda span: send(target, span), spans))
            parts = [{"PartNumber": span[0], "ETag": tag} for span, tag in zip(spans, tags)]
            _client().complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException as error:
            with suppress(boto.ClientError, boto.BotoCoreError):
                _client().abort_multipart_upload(**target)
            # NoSuchUpload: completed by a first attempt whose answer was lost.
            if isinstance(error, boto.ClientError) and _code(error) in {*_TAKEN, "NoSuchUpload"}:
                return _is_ours(uri, writer)
            raise
        return True


def _copy_whole(source: str, target: str) -> bool:
    (bucket, name), (goal_bucket, goal_name) = split(source), split(target)

    def copy() -> None:
        _client().copy_object(
            Bucket=goal_bucket,
            Key=goal_name,
            CopySource={"Bucket": bucket, "Key": name},
            **condition,
        )

    condition = {"IfNoneMatch": "*"}
    try:
        return _unless_taken(copy)
    except boto.ClientError as error:
        if _code(error) not in {"NotImplemented", "501"}:
            raise
        condition = {}
        return _unless_taken(copy)


def _unless_taken(write: Callable[[], None]) -> bool:
    """Run the conditional ``write``; False when the name is taken.

    S3 answers *conflict* while another write to the name is under way, which may yet fail: wait for
    how that ends.
    """
    for attempt in range(ATTEMPTS):
        try:
            write()
            return True
        except boto.ClientError as error:
            if _code(error) in _TAKEN:
                return False
            if _code(error) not in _CONFLICT or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    return False


def _is_ours(uri: str, writer: str) -> bool:
    """Whether what stands at ``uri`` is this call's own write, whose answer was lost on the way."""
    bucket, name = split(uri)
    try:
        head = _client().head_object(Bucket=bucket, Key=name)
    except boto.ClientError as error:
        if _code(error) not in {"404", "NoSuchKey"}:
            raise
        raise StoreError(
            f"cannot write {uri}: the name is taken, but by no object; a folder of that name stands there, "
            "or another process deleted the object just now"
        ) from error
    return bool(head["Metadata"].get(WRITER) == writer)


def _body(bucket: str, name: str) -> Iterator[bytes]:
    """The object's bytes, in pieces; a connection that breaks is taken up where it broke."""
    done, size, tag, failures = 0, None, None, 0
    while size is None or done < size:
        # If-Match: what follows must be of the object that was begun.
        rest = {"Range": f"bytes={done}-", "IfMatch": tag} if done else {}
        answer = _client().get_object(Bucket=bucket, Key=name, **rest)
        tag = answer["ETag"]
        size = done + answer["ContentLength"]
        try:
            for piece in answer["Body"].iter_chunks(2**16):
                done += len(piece)
                yield piece
        except (boto.HTTPClientError, boto.IncompleteReadError):
            failures += 1
            if failures == ATTEMPTS:
                raise


def _download(bucket: str, name: str, path: Path) -> None:
    with path.open("wb") as file:
        for piece in _body(bucket, name):
            file.write(piece)


def _ranges(size: int, part: int) -> Iterator[Range]:
    for number, start in enumerate(range(0, size, part), 1):
        yield number, start, min(start + part, size)


def _in_name_order(pages: Any, folder: str) -> Iterator[tuple[str, int]]:
    """The objects of ``pages`` in order of the bytes of their names, a page at a time.

    AWS and MinIO list in that order. SeaweedFS lists folder by folder, ``a/x`` before ``a-b``: what
    lies in a subfolder waits until names are seen that come after all of it. In either order every
    name still to come is greater than the first path component of the last one seen.
    """
    waiting: list[tuple[bytes, int]] = []
    for page in pages:
        for item in page.get("Contents", []):
            name = item["Key"].encode()
            heappush(waiting, (name, item["Size"]))
        if not waiting or not page.get("Contents"):
            continue
        component = name.removeprefix(folder.encode()).partition(b"/")[0]
        passed = folder.encode() + component
        while waiting and waiting[0][0] <= passed:
            found, size = heappop(waiting)
            yield found.decode(), size
    while waiting:
        found, size = heappop(waiting)
        yield found.decode(), size


def _client() -> Any:
    # One for each process, also after a fork: connections cannot be shared by two.
    with _LOCK:
        return _new_client(os.getpid(), *sorted(i for i in os.environ.items() if i[0].startswith("AWS_")))


@lru_cache(maxsize=4)
def _new_client(*_: object) -> Any:
    # A server of one's own seldom has a DNS name for each bucket.
    style = "path" if _endpoint() else "auto"
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": style},
    )
    # A session of its own: the default one of boto3 is shared by threads and not safe to create from.
    return boto3.session.Session().client("s3", config=config)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@contextmanager
def _errors(action: str, *uris: str) -> Iterator[None]:
    """Turn the client's errors into ours, naming the URIs and what to do."""
    what = f"cannot {action} {' to '.join(uris)}"
    place = f"the S3 server at {_endpoint()}" if _endpoint() else "AWS S3"
    try:
        yield
    except boto.ClientError as error:
        raise _refused(what, place, uris, error) from error
    except (boto.NoCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound) as error:
        raise StoreError(
            f"{what}: no valid AWS credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or give the pod's service account a role"
        ) from error
    except boto.BotoCoreError as error:
        raise StoreError(
            f"{what}: {place} does not answer as it should ({error}); check AWS_ENDPOINT_URL and the network"
        ) from error
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror or error}") from error


def _refused(what: str, place: str, uris: tuple[str, ...], error: boto.ClientError) -> StoreError:
    code = _code(error)
    if code in _BAD_KEYS:
        return StoreError(
            f"{what}: {place} refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they belong to this server"
        )
    if code in _DENIED:
        return StoreError(
            f"{what}: access denied; allow this identity s3:GetObject, s3:PutObject, s3:DeleteObject and "
            "s3:ListBucket on the bucket, and check its keys"
        )
    # HEAD says no more than 404, and SeaweedFS answers 500 to a copy into a missing bucket: so look.
    for bucket in dict.fromkeys(split_folder(uri)[0] for uri in uris):
        if code != "NoSuchKey" and not _bucket_exists(bucket):
            return StoreError(f"{what}: there is no bucket {bucket!r}; create it, or correct the name")
    if code in {"NoSuchKey", "404"}:
        return NotFound(f"no object at {uris[0]}")
    return StoreError(f"{what}: {place} answered {code}: {error.response['Error'].get('Message', '')}")


def _bucket_exists(bucket: str) -> bool:
    try:
        _client().head_bucket(Bucket=bucket)
    except boto.ClientError as error:
        return _code(error) not in {"404", "NoSuchBucket"}
    except boto.BotoCoreError:
        pass
    return True


def _code(error: boto.ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))
