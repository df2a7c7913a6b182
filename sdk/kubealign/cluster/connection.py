"""How to reach Kubeflow Pipelines, and what its client's errors mean."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import urllib.parse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from google.auth.exceptions import GoogleAuthError
from kfp.client import Client
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException

from kubealign.cluster.kube import BUSY
from kubealign.errors import ClusterError, Unavailable
from kubealign_components.errors import ConfigError

_HINTS = {
    401: "the credentials are missing, wrong or expired: give --token, --token-file or --cookies",
    403: "these credentials may not do that in this namespace",
    404: "there is no such thing; see `kubealign runs`, --namespace and --host",
    409: "that name is taken",
    413: "the pipeline is larger than the proxy before it lets through: raise the limit there, such as "
    "client_max_body_size of nginx",
}
_NO_API = (
    "no API of Kubeflow Pipelines 2 is at that address: --host (KF_PIPELINES_ENDPOINT) is that of the API, "
    "such as https://kubeflow.example.org/pipeline"
)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """Where Kubeflow Pipelines is, and as whom to speak to it.

    Without a host: the service in this cluster when this is a pod, with its projected service-account
    token, else the cluster of the kubeconfig through the Kubernetes API.
    """

    host: str = ""
    """Address of the API, such as https://kubeflow.example.org/pipeline."""
    namespace: str = ""
    """Profile of a multi-user installation; empty: the one of the KFP client's context file, if any."""
    token: str = ""
    """A bearer token."""
    token_file: str = ""
    """File with a bearer token, read anew for each request."""
    cookies: str = ""
    """Session cookies, such as authservice_session=…"""
    iap_client_id: str = ""
    """OAuth client id of Google's Identity-Aware Proxy."""
    kube_context: str = ""
    """Context of the kubeconfig; empty: the current one."""
    ca_cert: str = ""
    """File with the certificate authority of the server."""
    proxy: str = ""
    """HTTP proxy between here and the server."""
    verify_ssl: bool = True
    """Whether to check the server's certificate."""

    def __post_init__(self) -> None:
        ways = [n for n in ("token", "token_file", "iap_client_id") if getattr(self, n)]
        if len(ways) > 1:
            raise ConfigError(" and ".join(ways), "given", "one of them")
        for name in ("token_file", "ca_cert"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise ConfigError(name, path, "a file")


class CheckedClient(Client):
    """kfp's client that asks for the server's health once: kfp tries for half a minute, with tracebacks."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> object:  # noqa: ARG002
        try:
            health = self._healthz_api.healthz_service_get_healthz()
        except ApiException as error:
            if error.status == 404:
                raise ValueError(_NO_API) from error
            raise
        self.check_answer()
        return health

    def check_answer(self) -> None:
        """Raise :class:`ValueError` where the last answer was none of an API's: kfp takes any text for an
        empty object.
        """
        answer = self._healthz_api.api_client.last_response.data
        text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
        try:
            if isinstance(json.loads(text), dict):
                return
        except ValueError:
            pass
        words = _words(text) or "nothing"
        raise ValueError(
            f"the answer is no JSON object but {words!r}: a page to log in at, when credentials are missing "
            f"or expired (--token, --token-file, --cookies); else {_NO_API}"
        )


def open_client(connection: Connection) -> CheckedClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # In a cluster kfp's namespace is also where it looks for the service: a profile is no such place.
        own = {"namespace": connection.namespace} if connection.host and connection.namespace else {}
        return CheckedClient(
            host=connection.host or None,
            client_id=connection.iap_client_id or None,
            existing_token=connection.token or None,
            credentials=_token_file(connection.token_file),
            cookies=connection.cookies or None,
            proxy=connection.proxy or None,
            ssl_ca_cert=connection.ca_cert or None,
            kube_context=connection.kube_context or None,
            verify_ssl=None if connection.verify_ssl else False,
            **own,
        )


def _token_file(path: str) -> object:
    return ServiceAccountTokenVolumeCredentials(path) if path else None


@contextlib.contextmanager
def asking(what: str, server: str) -> Iterator[None]:
    """What the client raises becomes one line, and what it prints and logs is not shown."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():
            yield
    except ApiException as error:
        kind = Unavailable if error.status in BUSY else ClusterError
        raise kind(f"{what}: {server} answers {_answer(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise Unavailable(
            f"{what}: cannot reach {server}: {reason}; check --host (KF_PIPELINES_ENDPOINT)"
        ) from error
    except GoogleAuthError as error:
        raise ClusterError(
            f"{what}: {server} asks for an identity of Google's: {' '.join(str(error).split())}; run `gcloud "
            "auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    except ValueError as error:
        raise ClusterError(f"{what}: {' '.join(str(error).split())}") from error


def _answer(error: ApiException) -> str:
    """Status, hint and the server's own words on one line."""
    body = error.body or b""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict):
            text = str(content.get("message") or content.get("error") or "")
    words = _words(text)
    hint = _HINTS.get(error.status, " ".join(str(error.reason or "").split()))
    hint += "; it may be restarting or overloaded, try again" if error.status in BUSY else ""
    return f"{error.status}: {hint}" + (f" ({urllib.parse.unquote(words)})" if words else "")


def _words(text: str) -> str:
    """``text`` on one line; of a page its title."""
    if title := _TITLE.search(text):
        text = title[1]
    return " ".join(text.split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """urllib3 warns of every attempt, kfp of what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
