"""Kubeflow Pipelines over HTTP: the one module that holds its client.

Everything here speaks ``kfp.Client`` and turns what can go wrong into one line that says what was
asked of which server.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kfp.client import Client
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException, V2beta1Pipeline  # type: ignore[import-untyped]

from kubealign.cluster.schedule import Schedule
from kubealign.errors import ClusterError
from kubealign_components.errors import ConfigError

PAGE = 100
"""Entries asked for at once."""
EQUALS = 1
"""Operation of a filter's predicate, as kfp.Client writes it."""
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HINTS = {
    401: "the credentials are missing, wrong or expired: give --token, --token-file or --cookies",
    403: "these credentials may not do that in this namespace",
    404: "there is no such thing; see `kubealign runs`, --namespace and --host",
    409: "that name is taken",
}


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


class Cluster:
    """One Kubeflow Pipelines installation.

    Raises:
        ClusterError: here and from every method; it cannot be reached, or refuses.
    """

    def __init__(self, connection: Connection) -> None:
        self._place = connection.host or "the cluster of this pod or kubeconfig (there is no --host)"
        with self._asking("connect"):
            self._client = _connect(connection)
            self.namespace = connection.namespace or self._client.get_user_namespace() or None
        self._ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT", connection.host).rstrip("/")

    def link(self, run_id: str) -> str:
        """Where a person sees the run, or nothing when that is not known."""
        return f"{self._ui}/#/runs/details/{run_id}" if self._ui else ""

    def submit(
        self,
        package: Path,
        parameters: Mapping[str, Any],
        *,
        name: str,
        experiment: str,
        pipeline_root: str = "",
        service_account: str = "",
    ) -> str:
        """Start a run of the compiled ``package`` and give its id."""
        with self._asking(f"submit {name!r}"):
            run = self._client.run_pipeline(
                experiment_id=self._experiment(experiment),
                job_name=name,
                pipeline_package_path=str(package),
                params=dict(parameters),
                pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )
        return str(run.run_id)

    def run(self, run: str) -> Any:
        """The run of this id, or the newest of this name."""
        if not _ID.fullmatch(run):
            found = self.runs(name=run, limit=1)
            if not found:
                raise ClusterError(f"run {run!r}: {self._place} has none of that name")
            run = found[0].run_id
        with self._asking(f"run {run!r}"):
            return self._client.get_run(run)

    def runs(self, *, name: str = "", experiment: str = "", limit: int = PAGE) -> list[Any]:
        """Runs, newest first."""
        with self._asking(f"list runs of {experiment!r}" if experiment else "list runs"):
            where: dict[str, Any] = {"namespace": self.namespace}
            if experiment:
                found = self._client.get_experiment(experiment_name=experiment, namespace=self.namespace)
                where = {"experiment_id": found.experiment_id}
            return _pages(
                lambda token: self._client.list_runs(
                    page_token=token,
                    page_size=min(limit, PAGE),
                    sort_by="created_at desc",
                    filter=_named(name) if name else None,
                    **where,
                ),
                "runs",
                limit,
            )

    def pipeline_of(self, run: Any) -> dict[str, Any]:
        """The IR that ``run`` runs."""
        spec = run.pipeline_spec
        reference = run.pipeline_version_reference
        if not spec and reference:
            with self._asking(f"pipeline version {reference.pipeline_version_id!r}"):
                version = self._client.get_pipeline_version(
                    reference.pipeline_id, reference.pipeline_version_id
                )
            spec = version.pipeline_spec
        if not spec:
            raise ClusterError(f"run {run.run_id!r}: {self._place} does not tell its pipeline")
        found: dict[str, Any] = spec.get("pipeline_spec", spec)
        return found

    def log(self, run_id: str, pod: str, *, follow: bool = False) -> Iterator[str]:
        """Lines that a pod wrote; with ``follow`` until it ends.

        The service is part of KFP's API server but not of its generated client.
        """
        with self._asking(f"log of {pod!r}"):
            response = self._client.runs.api_client.call_api(
                "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log",
                "GET",
                {"run_id": run_id, "node_id": pod},
                [("follow", "true")] if follow else [],
                {"Accept": "text/plain"},
                auth_settings=["Bearer"],
                _preload_content=False,
                _return_http_data_only=True,
            )
            response.auto_close = False  # else it closes itself under the reader at its last byte
            text = io.TextIOWrapper(response, encoding="utf-8", errors="replace")
        while True:
            with self._asking(f"log of {pod!r}"):
                line = text.readline()
            if not line:
                return
            yield line.rstrip("\n")

    def upload(self, package: Path, *, pipeline: str, version: str, description: str = "") -> str:
        """Add the compiled ``package`` as a version of ``pipeline``, made if it is new; gives its id."""
        what = f"upload version {version!r} of {pipeline!r}"
        with self._asking(what):
            found = self._client.list_pipelines(filter=_named(pipeline), namespace=self.namespace)
            known = [p for p in found.pipelines or () if p.display_name == pipeline]
            made = known or [
                self._client.pipelines.pipeline_service_create_pipeline(
                    pipeline=V2beta1Pipeline(
                        display_name=pipeline,
                        name=pipeline,
                        namespace=self.namespace,
                        description=description,
                    )
                )
            ]
            uploaded = self._client.upload_pipeline_version(
                str(package), version, pipeline_id=made[0].pipeline_id, description=description or None
            )
        return str(uploaded.pipeline_version_id)

    def schedules(self, name: str = "") -> list[Any]:
        """Recurring runs, or those of one name."""
        with self._asking("list schedules"):
            found = _pages(
                lambda token: self._client.list_recurring_runs(
                    page_token=token,
                    page_size=PAGE,
                    namespace=self.namespace,
                    filter=_named(name) if name else None,
                ),
                "recurring_runs",
            )
        return [s for s in found if not name or s.display_name == name]

    def apply(self, schedule: Schedule, package: Path, parameters: Mapping[str, Any]) -> str:
        """Make the schedule of this name be ``schedule``: ``created``, ``replaced`` or ``unchanged``.

        Recurring runs cannot be edited. The new one is made paused and starts when the old one is
        gone: at no time do two run, and if something fails on the way, applying again mends it.
        """
        digest = schedule.digest(yaml.safe_load_all(package.read_text()), parameters)
        before = self.schedules(schedule.name)
        same = [s for s in before if (s.description or "").endswith(digest)]
        if not same:
            with self._asking(f"schedule {schedule.name!r}"):
                same = [self._create(schedule, package, parameters, digest)]
        stale = [s for s in before if s.recurring_run_id != same[0].recurring_run_id]
        for old in stale:
            self._delete(old)
        if (same[0].mode == "ENABLE") == schedule.paused:
            self._switch(same[0], on=not schedule.paused)
        if same[0] in before:
            return "unchanged"
        return "replaced" if stale else "created"

    def pause(self, name: str, *, paused: bool = True) -> None:
        """Pause the schedule ``name``, or let it go on."""
        for found in self._existing(name):
            self._switch(found, on=not paused)

    def delete_schedule(self, name: str) -> None:
        """Delete the schedule ``name``; its runs stay."""
        for found in self._existing(name):
            self._delete(found)

    def _existing(self, name: str) -> list[Any]:
        found = self.schedules(name)
        if not found:
            raise ClusterError(f"schedule {name!r}: {self._place} has none of that name")
        return found

    def _create(self, schedule: Schedule, package: Path, parameters: Mapping[str, Any], digest: str) -> Any:
        return self._client.create_recurring_run(
            experiment_id=self._experiment(schedule.experiment),
            job_name=schedule.name,
            description=f"kubealign schedule {digest}",
            # Numbers of 64 bits are text in the API's JSON.
            interval_second=str(schedule.seconds) if schedule.every else None,
            cron_expression=schedule.cron or None,
            max_concurrency=str(schedule.at_once),
            no_catchup=not schedule.catch_up,
            params=dict(parameters),
            pipeline_package_path=str(package),
            enabled=False,
            pipeline_root=schedule.pipeline_root or None,
            service_account=schedule.service_account or None,
        )

    def _delete(self, schedule: Any) -> None:
        # By default Kubernetes deletes the Workflows of a schedule with it, those that run among them.
        delete = self._client.recurring_runs.recurring_run_service_delete_recurring_run
        with self._asking(f"delete schedule {schedule.display_name!r}"):
            delete(schedule.recurring_run_id, propagation_policy="ORPHAN")

    def _switch(self, schedule: Any, *, on: bool) -> None:
        change = self._client.enable_recurring_run if on else self._client.disable_recurring_run
        with self._asking(f"{'resume' if on else 'pause'} schedule {schedule.display_name!r}"):
            change(schedule.recurring_run_id)

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """What the client raises becomes one line, and what it prints and logs is not shown."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), _quiet():
                yield
        except ApiException as error:
            raise ClusterError(f"{what}: {self._place} answers {_answer(error)}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise ClusterError(
                f"{what}: cannot reach {self._place}: {reason}; check --host (KF_PIPELINES_ENDPOINT)"
            ) from error
        except ValueError as error:
            raise ClusterError(f"{what}: {' '.join(str(error).split())}") from error


class _Client(Client):
    """kfp's client that asks for the server's health once: kfp tries for half a minute, with tracebacks."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:  # noqa: ARG002
        return self._healthz_api.healthz_service_get_healthz()


def _connect(connection: Connection) -> Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # In a cluster kfp's namespace is also where it looks for the service: a profile is no such place.
        own = {"namespace": connection.namespace} if connection.host and connection.namespace else {}
        return _Client(
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


def _token_file(path: str) -> Any:
    return ServiceAccountTokenVolumeCredentials(path) if path else None


def _pages(ask: Callable[[str], Any], entries: str, limit: int | None = None) -> list[Any]:
    found: list[Any] = []
    token = ""
    while limit is None or len(found) < limit:
        page = ask(token)
        found += getattr(page, entries) or []
        token = page.next_page_token or ""
        if not token:
            break
    return found[:limit]


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": EQUALS, "key": "display_name", "stringValue": name}]})


def _answer(error: ApiException) -> str:
    """Status, hint and the server's own words on one line."""
    body = error.body or b""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict):
            text = str(content.get("message") or content.get("error") or "")
    words = " ".join(text.split())[:300]
    hint = _HINTS.get(error.status, " ".join(str(error.reason or "").split()))
    return f"{error.status}: {hint}" + (f" ({urllib.parse.unquote(words)})" if words else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """urllib3 warns of every attempt, kfp of what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
