"""S3 and what speaks it: AWS, SeaweedFS, MinIO; ``minio://`` is Kubeflow's name for the latter two.

The endpoint comes from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, for ``minio://`` without them the
store that Kubeflow Pipelines brings along; everything else from the usual AWS settings. Every write carries
``If-None-Match: *``. What SeaweedFS 4.48 makes of it, tried with eight writers at once:

- PutObject and CopyObject: exactly one succeeds, as on AWS.
- CompleteMultipartUpload: refused when the object exists, but of several that complete at the same
  moment more than one may succeed, where AWS lets one. Hence on a server other than AWS files go up in
  one request as long as they can (:data:`ONE_PUT` is far above the size of a shard), and only larger
  ones, which one writer publishes, in parts.
- A name that is already a folder is refused as if an object stood there.
- Listings are ordered by path component, so ``a/x`` comes before ``a-b``; see :func:`_in_name_order`.
"""

from __future__ import annotations

import base64
import itertools
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import IO

from botocore import exceptions as boto

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.store.base import (
    PARALLEL,
    PART,
    PART_WORKERS,
    WRITER,
    Leftover,
    ObjectInfo,
    Span,
    Window,
    fetch_parts,
    land,
    spans,
    split,
    split_folder,
)
from kubealign_components.store.s3_client import ATTEMPTS, client, code_of, endpoint, errors

ONE_PUT = 512 * 2**20
"""Bytes up to which a file goes up in one request to a server that is not AWS."""

ONE_COPY = 5 * 2**30
"""Bytes up to which S3 copies in one request."""

MOST_PARTS = 10_000
"""What S3 takes."""

CRC32 = "kubealign-crc32"
"""Metadata key of an object that went up in parts: checksum of the whole, 8 hex digits. Servers keep
checksums of the parts, or of the whole by different algorithms, or none."""

_TAKEN = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_BLOCK = 2**20

Part = tuple[int, Span]
"""Part number from 1, and its bytes."""


class S3Store:
    """Objects of S3; the client sends checksums and checks those that the server gives.

    Args:
        scheme: ``s3`` or ``minio``.
        one_put: bytes up to which a file goes up in one request; by default :data:`ONE_PUT`, and
            :data:`~kubealign_components.store.base.PARALLEL` to AWS.
        one_get: bytes up to which an object is fetched in one request.
        one_copy: bytes up to which an object is copied in one request.
        part: bytes of a part of what is larger, at least 5 MiB.
    """

    def __init__(
        self,
        *,
        scheme: str = "s3",
        one_put: int | None = None,
        one_get: int = PARALLEL,
        one_copy: int = ONE_COPY,
        part: int = PART,
    ) -> None:
        self._scheme = scheme
        self._one_put = one_put or (ONE_PUT if endpoint(scheme) else PARALLEL)
        self._one_get = one_get
        self._one_copy = one_copy
        self._part = part

    def read(self, uri: str) -> bytes:
        with errors("read", uri):
            return _read(uri)

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
        with errors("copy", source, target):
            bucket, name = split(source)
            head = client(source).head_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
            if head["ContentLength"] > self._one_copy:
                return self._copy_parts(source, head, target)
            return _copy_whole(source, head, target)

    def fetch(self, uri: str, directory: Path) -> Path:
        bucket, name = split(uri)

        def write(path: Path) -> None:
            head = client(uri).head_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
            if head["ContentLength"] > self._one_get:
                self._fetch_parts(uri, head, path)
                return
            crc32 = 0
            with path.open("wb") as file:
                for piece in _body(uri, (0, head["ContentLength"]), head["ETag"]):
                    crc32 = zlib.crc32(piece, crc32)
                    file.write(piece)
            _check(head, f"{crc32:08x}")

        with errors("fetch", uri):
            return land(uri, directory, write)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, folder = split_folder(prefix)
        with errors("list", prefix):
            pages = client(prefix).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
            for item in _in_name_order(pages, folder):
                if not item["Key"].endswith("/"):  # a console's marker for an empty folder
                    yield _object_info(f"{self._scheme}://{bucket}/{item['Key']}", item["Size"], item)

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        bucket, folder = split_folder(prefix)
        with errors("list", prefix):
            pages = client(prefix).get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=bucket, Prefix=folder):
                for begun in page.get("Uploads", []):
                    yield Leftover(
                        uri=f"{self._scheme}://{bucket}/{begun['Key']}",
                        size=_size_of_parts(prefix, bucket, begun),
                        since=begun["Initiated"].timestamp(),
                        upload=begun["UploadId"],
                    )

    def discard(self, leftover: Leftover) -> None:
        bucket, name = split(leftover.uri)
        with errors("delete", leftover.uri):
            try:
                client(leftover.uri).abort_multipart_upload(Bucket=bucket, Key=name, UploadId=leftover.upload)
            except boto.ClientError as error:
                if code_of(error) != "NoSuchUpload":  # it was completed or aborted meanwhile
                    raise

    def info(self, uri: str) -> ObjectInfo:
        bucket, name = split(uri)
        with errors("read", uri):
            head = client(uri).head_object(Bucket=bucket, Key=name)
        return _object_info(uri, head["ContentLength"], head)

    def exists(self, uri: str) -> bool:
        try:
            self.info(uri)
        except NotFound:
            return False
        return True

    def delete(self, uri: str) -> None:
        bucket, name = split(uri)
        with suppress(NotFound), errors("delete", uri):
            client(uri).delete_object(Bucket=bucket, Key=name)

    def _put(self, uri: str, body: bytes | IO[bytes]) -> bool:
        bucket, name = split(uri)
        writer = uuid.uuid4().hex

        def put() -> None:
            if not isinstance(body, bytes):
                body.seek(0)
            client(uri).put_object(
                Bucket=bucket, Key=name, Body=body, IfNoneMatch="*", Metadata={WRITER: writer}
            )

        with errors("write", uri):
            return _unless_taken(put) or _is_ours(uri, writer)

    def _put_parts(self, path: Path, size: int, uri: str) -> bool:
        if self.exists(uri):
            return False

        def send(target: JsonObject, part: Part) -> str:
            with Window(path, part[1]) as window:
                return str(client(uri).upload_part(**target, PartNumber=part[0], Body=window)["ETag"])

        with errors("write", uri):
            return self._in_parts(uri, size, {CRC32: _crc32(path)}, send)

    def _copy_parts(self, source: str, head: JsonObject, target: str) -> bool:
        bucket, name = split(source)

        def send(goal: JsonObject, part: Part) -> str:
            number, (start, stop) = part
            answer = client(target).upload_part_copy(
                **goal,
                PartNumber=number,
                CopySource={"Bucket": bucket, "Key": name},
                CopySourceRange=f"bytes={start}-{stop - 1}",
                CopySourceIfMatch=head["ETag"],
            )
            return str(answer["CopyPartResult"]["ETag"])

        crc32 = _expected_crc32(head)
        return self._in_parts(target, head["ContentLength"], {CRC32: crc32} if crc32 else {}, send)

    def _in_parts(
        self,
        uri: str,
        size: int,
        metadata: dict[str, str],
        send: Callable[[JsonObject, Part], str],
    ) -> bool:
        """Publish ``uri`` from parts that ``send`` provides; nothing is left of an upload that fails."""
        bucket, name = split(uri)
        writer = uuid.uuid4().hex
        target = {"Bucket": bucket, "Key": name}
        started = client(uri).create_multipart_upload(**target, Metadata={**metadata, WRITER: writer})
        target["UploadId"] = started["UploadId"]
        try:
            with ThreadPoolExecutor(PART_WORKERS, "publish-part") as pool:
                pieces = list(enumerate(spans(size, max(self._part, -(-size // MOST_PARTS))), 1))
                tags = list(pool.map(lambda part: send(target, part), pieces))
            parts = [{"PartNumber": number, "ETag": tag} for (number, _), tag in zip(pieces, tags)]
            client(uri).complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException as error:
            with suppress(boto.ClientError, boto.BotoCoreError):
                client(uri).abort_multipart_upload(**target)
            # NoSuchUpload: completed by a first attempt whose answer was lost.
            if isinstance(error, boto.ClientError) and code_of(error) in {*_TAKEN, "NoSuchUpload"}:
                return _is_ours(uri, writer)
            raise
        return True

    def _fetch_parts(self, uri: str, head: JsonObject, path: Path) -> None:
        def read(span: Span, file: IO[bytes]) -> None:
            for piece in _body(uri, span, head["ETag"]):
                file.write(piece)

        fetch_parts(path, head["ContentLength"], self._part, read)
        _check(head, _crc32(path))


def _object_info(uri: str, size: int, item: JsonObject) -> ObjectInfo:
    """``item``, an entry of a listing or the answer to HEAD, as stores tell of objects."""
    return ObjectInfo(uri, size, item.get("ETag", ""), item["LastModified"].timestamp())


def _copy_whole(source: str, head: JsonObject, target: str) -> bool:
    (bucket, name), (goal_bucket, goal_name) = split(source), split(target)
    writer = uuid.uuid4().hex

    def copy() -> None:
        client(target).copy_object(
            Bucket=goal_bucket,
            Key=goal_name,
            CopySource={"Bucket": bucket, "Key": name},
            MetadataDirective="REPLACE",
            Metadata={**head["Metadata"], WRITER: writer},
            ContentType=head["ContentType"],
            **condition,
        )

    condition = {"IfNoneMatch": "*"}
    try:
        return _unless_taken(copy) or _is_ours(target, writer)
    except boto.ClientError as error:
        if code_of(error) not in {"NotImplemented", "501"}:
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
            if code_of(error) in _TAKEN:
                return False
            if code_of(error) not in _CONFLICT or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    return False


def _is_ours(uri: str, writer: str) -> bool:
    """Whether what stands at ``uri`` is this call's own write, whose answer was lost on the way."""
    bucket, name = split(uri)
    try:
        head = client(uri).head_object(Bucket=bucket, Key=name)
    except boto.ClientError as error:
        if code_of(error) not in {"404", "NoSuchKey"}:
            raise
        raise StoreError(
            f"cannot write {uri}: the name is taken, but by no object; a folder of that name stands there, "
            "or another process deleted the object just now"
        ) from error
    return bool(head["Metadata"].get(WRITER) == writer)


def _read(uri: str) -> bytes:
    """The whole object, by one request if nothing breaks."""
    bucket, name = split(uri)
    first = client(uri).get_object(Bucket=bucket, Key=name, ChecksumMode="ENABLED")
    size, pieces = first["ContentLength"], []
    with suppress(boto.HTTPClientError, boto.IncompleteReadError):
        pieces += first["Body"].iter_chunks(_BLOCK)
    done = sum(map(len, pieces))
    pieces += _body(uri, (done, size), first["ETag"])
    data = b"".join(pieces)
    _check(first, f"{zlib.crc32(data):08x}")
    return data


def _body(uri: str, span: Span, tag: str) -> Iterator[bytes]:
    """Bytes of the object, in pieces; a connection that breaks is taken up where it broke."""
    bucket, name = split(uri)
    (done, stop), failures = span, 0
    while done < stop:
        # If-Match: what follows must be of the object that was begun.
        answer = client(uri).get_object(
            Bucket=bucket, Key=name, IfMatch=tag, Range=f"bytes={done}-{stop - 1}"
        )
        begun = done
        try:
            for piece in answer["Body"].iter_chunks(_BLOCK):
                done += len(piece)
                yield piece
        except (boto.HTTPClientError, boto.IncompleteReadError):
            if failures == ATTEMPTS:
                raise
        failures = 0 if done > begun else failures + 1
        if failures > ATTEMPTS:
            raise boto.IncompleteReadError(actual_bytes=done, expected_bytes=stop)


def _check(head: JsonObject, crc32: str) -> None:
    """Raise unless ``crc32`` of what came is that of the object, where its writer or the server keeps one."""
    expected = _expected_crc32(head)
    if expected not in (None, crc32):
        raise boto.FlexibleChecksumError(error_msg=f"its checksum CRC32 is {crc32}, expected {expected}")


def _expected_crc32(head: JsonObject) -> str | None:
    """The whole object's CRC32 in 8 hex digits, where its writer or the server keeps one."""
    if CRC32 in head["Metadata"]:
        return str(head["Metadata"][CRC32])
    checksum = head.get("ChecksumCRC32", "")  # of parts and not of the whole when it has a dash
    return base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None


def _crc32(path: Path) -> str:
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc32 = zlib.crc32(block, crc32)
    return f"{crc32:08x}"


def _size_of_parts(uri: str, bucket: str, begun: JsonObject) -> int:
    """Bytes that have arrived of an upload; 0 where it has ended meanwhile."""
    target = {"Bucket": bucket, "Key": begun["Key"], "UploadId": begun["UploadId"]}
    try:
        pages = list(client(uri).get_paginator("list_parts").paginate(**target))
    except boto.ClientError as error:
        if code_of(error) != "NoSuchUpload":
            raise
        return 0
    return sum(part["Size"] for page in pages for part in page.get("Parts", []))


def _in_name_order(pages: Iterable[JsonObject], folder: str) -> Iterator[JsonObject]:
    """The objects of ``pages`` in order of the bytes of their names, a page at a time.

    AWS and MinIO list in that order. SeaweedFS lists folder by folder, ``a/x`` before ``a-b``: what
    lies in a subfolder waits until names are seen that come after all of it. In either order every
    name still to come is greater than the first path component of the last one seen.
    """
    waiting: list[tuple[bytes, int, JsonObject]] = []
    count = itertools.count()  # names differ, but what is compared must be comparable
    for page in pages:
        for item in page.get("Contents", []):
            heappush(waiting, (item["Key"].encode(), next(count), item))
        if not waiting or not page.get("Contents"):
            continue
        component = item["Key"].encode().removeprefix(folder.encode()).partition(b"/")[0]
        passed = folder.encode() + component
        while waiting and waiting[0][0] <= passed:
            yield heappop(waiting)[2]
    while waiting:
        yield heappop(waiting)[2]
