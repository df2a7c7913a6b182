"""Objects by URI, one promise for all stores: what is published is whole, and published once.

``store_for(uri)`` picks the store by scheme: a plain path or ``file://`` is local, ``gs://`` is
Google Cloud Storage, ``s3://`` is S3 or anything that speaks it.
"""

from __future__ import annotations

from kubealign_components.errors import ConfigError
from kubealign_components.store.base import ObjectInfo, Store, join, scheme_of

__all__ = ["ObjectInfo", "Store", "join", "scheme_of", "store_for"]


def store_for(uri: str) -> Store:
    """The store that holds ``uri``.

    Raises:
        ConfigError: a scheme that no store serves.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        from kubealign_components.store.local import LocalStore

        return LocalStore()
    if scheme == "gs":
        from kubealign_components.store.gs import GoogleStore

        return GoogleStore()
    if scheme == "s3":
        from kubealign_components.store.s3 import S3Store

        return S3Store()
    raise ConfigError("uri", uri, "a local path, file://, gs:// or s3:// URI")
