"""Objects by URI, one promise for all stores: what is published is whole, and published once.

``store_for(uri)`` picks the store by scheme: a plain path or ``file://`` is local, ``gs://`` is
Google Cloud Storage, ``s3://`` is S3 or anything that speaks it, and ``minio://`` the same by the name
that Kubeflow Pipelines gives its own store.
"""

from __future__ import annotations

from collections.abc import Callable

from kubealign_components.errors import ConfigError
from kubealign_components.store.base import (
    Leftover,
    ObjectInfo,
    Store,
    beside,
    inside,
    join,
    last_part,
    name_below,
    scheme_of,
)

__all__ = [
    "Leftover",
    "ObjectInfo",
    "Store",
    "beside",
    "inside",
    "join",
    "last_part",
    "name_below",
    "put",
    "register",
    "scheme_of",
    "schemes",
    "store_for",
]

_SCHEMES = ("file", "gs", "s3", "minio")
_REGISTERED: dict[str, Callable[[], Store]] = {}


def register(scheme: str, make: Callable[[], Store]) -> None:
    """Let ``make`` give the store of ``scheme://`` in this process."""
    _REGISTERED[scheme] = make


def schemes() -> tuple[str, ...]:
    """What may stand before ``://``."""
    return (*_SCHEMES, *_REGISTERED)


def store_for(uri: str) -> Store:
    """The store that holds ``uri``.

    Raises:
        ConfigError: a scheme that no store serves.
    """
    scheme = scheme_of(uri)
    if scheme in _REGISTERED:
        return _REGISTERED[scheme]()
    if scheme == "file":
        from kubealign_components.store.local import LocalStore

        return LocalStore()
    if scheme == "gs":
        from kubealign_components.store.gs import GoogleStore

        return GoogleStore()
    if scheme in ("s3", "minio"):
        from kubealign_components.store.s3 import S3Store

        return S3Store(scheme=scheme)
    raise ConfigError("uri", uri, "a local path, file://, gs://, s3:// or minio:// URI")


def put(uri: str, data: bytes) -> None:
    """Publish ``data`` at ``uri``, in the place of anything else that an earlier attempt left there.

    Raises:
        StoreError: the store cannot be read or written.
    """
    store = store_for(uri)
    if not store.publish(uri, data) and store.read(uri) != data:
        store.delete(uri)
        store.publish(uri, data)
