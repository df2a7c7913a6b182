"""The Kubernetes API below Kubeflow, for what KFP does not tell; as the kubeconfig or the pod says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kubealign.errors import ClusterError, Unavailable
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from kubernetes.client.exceptions import ApiException

Json = JsonObject
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two bytes of an answer."""
PAGE = 250
"""Objects asked for at once."""


BUSY = {408, 429, 500, 502, 503, 504}
"""Answers after which asking again may help."""


class NoKubernetes(ClusterError):
    """No cluster is configured here, or its API server does not answer."""


class AccessDenied(ClusterError):
    """Whoever asks may not."""


class Kubernetes:
    """Requests by path.

    Args:
        context: of the kubeconfig; empty for the pod's own cluster, or else the current one.

    Raises:
        NoKubernetes: from every method.
        ClusterError: an answer that is no success.
    """

    def __init__(self, *, context: str = "") -> None:
        self._context = context

    @cached_property
    def _client(self) -> Any:
        from kubernetes import client, config

        settings = client.Configuration()
        try:
            try:
                if self._context:
                    raise config.ConfigException
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                config.load_kube_config(
                    _kubeconfig(), context=self._context or None, client_configuration=settings
                )
        except (config.ConfigException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise NoKubernetes(
                f"no Kubernetes cluster is configured here ({reason}); set KUBECONFIG"
            ) from error
        settings.retries = False
        return client.ApiClient(settings)

    def get(self, path: str, **query: str) -> Json | None:
        """The object at ``path``; None where there is none."""
        response = self._call("GET", path, query)
        return None if response is None else json.loads(response.data)

    def items(self, path: str, **query: str) -> list[Json] | None:
        """All of the collection at ``path``; None where the cluster does not know their kind."""
        items: list[Json] = []
        while (page := self.get(path, limit=str(PAGE), **query)) is not None:
            items += page.get("items") or []
            following = page.get("metadata", {}).get("continue")
            if not following:
                return items
            query["continue"] = following
        return None

    def create(self, path: str, body: Json, *, user: str = "", **query: str) -> Json:
        """What the server makes of ``body``, asked as ``user`` if one is named."""
        response = self._call("POST", path, query, body, {"Impersonate-User": user} if user else {})
        if response is None:
            raise ClusterError(f"POST {path}: Kubernetes does not know this")
        answer: Json = json.loads(response.data)
        return answer

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """Lines of a text as they come, until the server closes the connection."""
        from urllib3.exceptions import HTTPError

        response = self._call("GET", path, query)
        rest = b""
        try:
            for piece in response.stream(2**16) if response is not None else ():
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        except HTTPError as error:
            raise ClusterError(f"{path}: the connection broke off ({type(error).__name__})") from error
        if rest:
            yield rest.decode(errors="replace")

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The response, unread; None for 404."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={
                    "Accept": "application/json, */*",
                    "Content-Type": "application/json",
                    **(headers or {}),
                },
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            kind = AccessDenied if error.status in (401, 403) else ClusterError
            kind = Unavailable if error.status in BUSY else kind
            raise kind(f"{method} {path}: Kubernetes answers {error.status}: {_message(error)}") from error
        except (HTTPError, OSError) as error:
            server = self._client.configuration.host
            raise NoKubernetes(f"cannot reach Kubernetes at {server} ({type(error).__name__})") from error


def _kubeconfig() -> str | None:
    # The library reads the variable once, when it is imported.
    return os.environ.get("KUBECONFIG") or None


def _message(error: ApiException) -> str:
    """The server's words for an error, on one line."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        text = str(json.loads(text).get("message") or error.reason)
    except (ValueError, AttributeError):
        text = text or str(error.reason)
    return " ".join(text.split())[:300]
