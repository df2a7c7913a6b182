"""The S3 client of this process: where it connects, what it tries again, what its errors mean."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from urllib3.exceptions import HTTPError

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.store.base import DEADLINE, KUBEFLOW, deadline, scheme_of, split_folder

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from botocore.client import BaseClient
    from botocore.model import OperationModel

log = logging.getLogger(__name__)

CONNECTIONS = 32
"""Kept open per process: slices are read by 16 threads."""

ATTEMPTS = 5
"""How often what may not pass is tried: conflicts, internal errors, a download without a byte."""

_LOCK = threading.Lock()

_DENIED = {"AccessDenied", "403", "AllAccessDisabled"}
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401"}
_BUSY = {408, 429, 502, 503, 504}
_THROTTLED = {"RequestTimeout", "RequestTimeTooSkewed", "SlowDown", "Throttling", "TooManyRequestsException"}
_BROKEN = (boto.ConnectionError, boto.HTTPClientError)


class _NoServer(Exception):
    """A page answers in the place of S3."""


def client(uri: str) -> BaseClient:
    """The boto3 client for ``uri`` and the environment as it stands."""
    # One for each process, also after a fork: connections cannot be shared by two.
    deadline()  # checked before it is needed
    with _LOCK:
        settings = sorted(i for i in os.environ.items() if i[0].startswith("AWS_"))
        return _new_client(endpoint(scheme_of(uri)), os.getpid(), *settings)


@lru_cache(maxsize=4)
def _new_client(address: str | None, *_: object) -> object:
    # A server of one's own seldom has a DNS name for each bucket.
    style = "path" if address else "auto"
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=CONNECTIONS,
        retries={"mode": "standard"},
        response_checksum_validation="when_required",  # the store compares, also what came in pieces
        s3={"addressing_style": style},
    )
    # A session of its own: the default one of boto3 is shared by threads and not safe to create from.
    made = boto3.session.Session().client("s3", config=config, endpoint_url=address)
    # The client counts attempts and gives up within seconds; what passes is waited for until a deadline.
    made.meta.events.unregister("needs-retry.s3", unique_id="retry-config-s3")
    made.meta.events.register("needs-retry.s3", _delay, unique_id="kubealign-retry")
    made.meta.events.register("after-call.s3", _require_answer, unique_id="kubealign-answer")
    made.meta.events.register("response-received.s3", _refuse_redirect, unique_id="kubealign-redirect")
    return made


def _require_answer(
    *, model: OperationModel, parsed: JsonObject, http_response: AWSResponse, **_: object
) -> None:
    """Raise :class:`_NoServer` where 200 is not S3's word: the client takes a page for an empty listing, and
    for a write that went well."""
    fields = _ALWAYS_TOLD.get(model.name, set())
    page = model.name == "DeleteObject" and "html" in http_response.headers.get("content-type", "")
    if http_response.status_code == 200 and (page or (fields and not fields & parsed.keys())):
        url = http_response.url.partition("?")[0]
        raise _NoServer(f"{url} answers {model.name} as no S3 server does; {_NO_PAGE}")


def _refuse_redirect(
    *, response_dict: JsonObject | None, parsed_response: JsonObject | None, **_: object
) -> None:
    """Raise :class:`_NoServer` where a redirect is not S3's word: the client looks for the bucket's region by
    a request that is redirected alike, without end."""
    if response_dict is None or response_dict["status_code"] not in (301, 302, 303, 307, 308):
        return
    headers = response_dict["headers"]
    error = (parsed_response or {}).get("Error", {})
    if "x-amz-bucket-region" not in headers and error.get("Code") not in (
        "PermanentRedirect",
        "TemporaryRedirect",
    ):
        target = headers.get("location", "a place that it does not name")
        raise _NoServer(f"the S3 server redirects to {target}, as none does; {_NO_PAGE}")


def _delay(
    *,
    attempts: int,
    operation: OperationModel,
    request_dict: JsonObject,
    response: tuple[AWSResponse, JsonObject] | None = None,
    caught_exception: Exception | None = None,
    **_: object,
) -> float | None:
    """Seconds to wait before a request is tried again, or None to leave it at that."""
    status = response[0].status_code if response else 0
    code = response[1].get("Error", {}).get("Code", "") if response else ""
    passes = isinstance(caught_exception, _BROKEN) or status in _BUSY or code in _THROTTLED
    may_not = status == 500 or isinstance(caught_exception, boto.SSLError)
    if not (passes or may_not) or (may_not and attempts >= ATTEMPTS):
        return None
    end = request_dict["context"].setdefault("kubealign-deadline", time.monotonic() + deadline())
    wait = min(0.25 * 2.0**attempts, 20.0) * random.uniform(0.5, 1.0)
    if time.monotonic() + wait > end:
        return None
    what = caught_exception or f"{status} {code}"
    level = logging.WARNING if wait > 2 else logging.INFO
    log.log(level, "S3 %s failed (%s); again in %.1f s", operation.name, what, wait)
    return wait


_NO_PAGE = "AWS_ENDPOINT_URL is the address of its API, and not of its console or of a page to log in at"

_ALWAYS_TOLD = {
    **{name: {"ETag"} for name in ("PutObject", "GetObject", "HeadObject", "UploadPart")},
    "ListObjectsV2": {"IsTruncated", "Name", "KeyCount"},
    "ListMultipartUploads": {"IsTruncated", "Bucket"},
}
"""Of which an answer of S3 has one at least, by operation."""


def endpoint(scheme: str) -> str | None:
    """Address of the server behind ``scheme://`` where it is not AWS."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named or (KUBEFLOW if scheme == "minio" else None)


@contextmanager
def errors(action: str, *uris: str) -> Iterator[None]:
    """Turn the client's errors into ours, naming the URIs and what to do."""
    what = f"cannot {action} {' to '.join(uris)}"
    address = endpoint(scheme_of(uris[0]))
    service = f"the S3 server at {address}" if address else "AWS S3"
    try:
        yield
    except _NoServer as error:
        raise StoreError(f"{what}: {error}") from error
    except boto.ClientError as error:
        raise _refused(what, service, uris, error) from error
    except (boto.NoCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound) as error:
        raise StoreError(
            f"{what}: no valid AWS credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or give the pod's service account a role"
        ) from error
    except (boto.BotoCoreError, HTTPError) as error:
        raise StoreError(
            f"{what}: {service} does not answer as it should ({error}); check the network and "
            f"AWS_ENDPOINT_URL, or raise {DEADLINE} and try again"
        ) from error
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror or error}") from error


def _refused(what: str, service: str, uris: tuple[str, ...], error: boto.ClientError) -> StoreError:
    code = code_of(error)
    if code in _BAD_KEYS:
        return StoreError(
            f"{what}: {service} refuses these credentials ({code}); check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they belong to this server"
        )
    if code in _DENIED:
        return StoreError(
            f"{what}: access denied; allow this identity s3:GetObject, s3:PutObject, s3:DeleteObject and "
            "s3:ListBucket on the bucket, and check its keys"
        )
    # HEAD says no more than 404, and SeaweedFS answers 500 to a copy into a missing bucket: so look.
    for uri in uris:
        if code != "NoSuchKey" and not _bucket_exists(uri):
            bucket = split_folder(uri)[0]
            return StoreError(f"{what}: there is no bucket {bucket!r}; create it, or correct the name")
    if code in {"NoSuchKey", "404"}:
        return NotFound(f"no object at {uris[0]}")
    return StoreError(
        f"{what}: {service} answered {code}: {error.response['Error'].get('Message', '')}; try again, and "
        "see the server's log if it stays so"
    )


def _bucket_exists(uri: str) -> bool:
    try:
        client(uri).head_bucket(Bucket=split_folder(uri)[0])
    except boto.ClientError as error:
        return code_of(error) not in {"404", "NoSuchBucket"}
    except boto.BotoCoreError:
        pass
    return True


def code_of(error: boto.ClientError) -> str:
    """What the server calls the error, or its HTTP status, which is all that a page of a proxy says."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(error.response["Error"].get("Code") or status)
