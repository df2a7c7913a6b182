"""Kubeflow Pipelines over HTTP, through ``kfp.Client``.

What can go wrong becomes one line that says what was asked of which server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from kfp_server_api import V2beta1Pipeline, V2beta1RecurringRun, V2beta1Run

from kubealign.cluster.connection import Connection, asking, open_client
from kubealign.cluster.kube import Kubernetes
from kubealign.cluster.schedule import Schedule
from kubealign.errors import ClusterError, Unavailable
from kubealign_components import __version__
from kubealign_components.json_types import JsonObject

T = TypeVar("T")
PAGE = 100
"""Entries asked for at once."""
LOOK_BACK = 500
"""Runs among which one that made a cached artifact is looked for."""
PATIENCE = 300.0
"""Seconds for which a server that is watched may not answer: it is restarted, or its proxy is."""
EQUALS = 1
"""Operation of a filter's predicate, as kfp.Client writes it."""
HOME = "kubeflow"
"""Namespace of the runs of an installation without profiles."""
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A pipeline version, by the ids that the server gave."""

    pipeline: str
    id: str


def names_of(package: Path) -> tuple[str, str]:
    """The pipeline of a compiled ``package``, and a name for its version that says what is in it."""
    content = package.read_bytes()
    name = yaml.safe_load(content.partition(b"\n---")[0])["pipelineInfo"]["name"]
    return str(name), f"{__version__}-{hashlib.sha256(content).hexdigest()[:12]}"


class Cluster:
    """One Kubeflow Pipelines installation.

    Raises:
        ClusterError: here and from every method; it cannot be reached, or refuses.
    """

    def __init__(self, connection: Connection) -> None:
        self._host = connection.host or "the cluster of this pod or kubeconfig (there is no --host)"
        self._connection = connection
        with asking("connect", self._host):
            self._client = open_client(connection)
            self.namespace = connection.namespace or self._client.get_user_namespace() or None
        self._ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT", connection.host).rstrip("/")

    @cached_property
    def kubernetes(self) -> Kubernetes:
        """The API server below, for what Kubeflow Pipelines does not tell: pods, Workflows, settings."""
        return Kubernetes(context=self._connection.kube_context)

    def namespace_of(self, run: V2beta1Run) -> str:
        """Where the pods of ``run`` are."""
        if self.namespace:
            return str(self.namespace)
        if not run.experiment_id:
            return HOME
        with self._asking(f"experiment {run.experiment_id!r}"):
            experiment = self._client.get_experiment(experiment_id=run.experiment_id)
        return str(experiment.namespace or HOME)

    def link(self, run_id: str) -> str:
        """Where a person sees the run, or nothing when that is not known."""
        return f"{self._ui}/#/runs/details/{run_id}" if self._ui else ""

    def submit(
        self,
        package: Path,
        parameters: Mapping[str, object],
        *,
        name: str,
        experiment: str,
        pipeline_root: str = "",
        service_account: str = "",
    ) -> str:
        """Start a run of the compiled ``package`` and give its id."""
        version = self.version(package)
        with self._asking(f"submit {name!r}"):
            run = self._client.run_pipeline(
                experiment_id=self._experiment(experiment),
                job_name=name,
                pipeline_id=version.pipeline,
                version_id=version.id,
                params=dict(parameters),
                pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )
        return str(run.run_id)

    def cancel(self, run: V2beta1Run) -> None:
        """Stop ``run``; its pods get SIGTERM and what they finished is kept."""
        with self._asking(f"cancel {run.display_name!r}"):
            self._client.terminate_run(run.run_id)

    def retry(self, run: V2beta1Run) -> None:
        """Let ``run``, which failed, go on from the tasks that failed."""
        with self._asking(f"retry {run.display_name!r}"):
            self._client.runs.run_service_retry_run(run.run_id)

    def run(self, run: str) -> V2beta1Run:
        """The run of this id, or the newest of this name."""
        if not _ID.fullmatch(run):
            runs = self.runs(name=run, limit=1)
            if not runs:
                raise ClusterError(f"run {run!r}: {self._host} has none of that name")
            run = runs[0].run_id
        with self._asking(f"run {run!r}"):
            return self._client.get_run(run)

    def runs(self, *, name: str = "", experiment: str = "", limit: int = PAGE) -> list[V2beta1Run]:
        """Runs, newest first."""
        with self._asking(f"list runs of {experiment!r}" if experiment else "list runs"):
            where: dict[str, object] = {"namespace": self.namespace}
            if experiment:
                chosen = self._client.get_experiment(experiment_name=experiment, namespace=self.namespace)
                where = {"experiment_id": chosen.experiment_id}
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

    def earlier(self, run: V2beta1Run) -> Iterator[V2beta1Run]:
        """Runs of the same pipeline with the same parameters before ``run``, newest first.

        KFP's cache answers what such a run made, and puts nothing into the folder of ``run``.
        """
        for other in self.runs(limit=LOOK_BACK):
            if other.created_at < run.created_at and _computes(other) == _computes(run):
                yield other

    def pipeline_of(self, run: V2beta1Run) -> JsonObject:
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
            raise ClusterError(f"run {run.run_id!r}: {self._host} does not tell its pipeline")
        pipeline: JsonObject = spec.get("pipeline_spec", spec)
        return pipeline

    def version(self, package: Path) -> Version:
        """The compiled ``package`` as a version of its pipeline: an equal one, or one that is added."""
        pipeline, version = names_of(package)
        with self._asking(f"look up version {version!r} of {pipeline!r}"):
            for owner in self._pipelines(pipeline):
                versions = self._client.list_pipeline_versions(owner.pipeline_id, filter=_named(version))
                for one in versions.pipeline_versions or ():
                    if one.display_name == version:
                        return Version(pipeline=owner.pipeline_id, id=one.pipeline_version_id)
        return self.upload(package)

    def upload(
        self, package: Path, *, pipeline: str = "", version: str = "", description: str = ""
    ) -> Version:
        """Add the compiled ``package`` as a version of ``pipeline``, made if it is new."""
        own, digest = names_of(package)
        pipeline, version = pipeline or own, version or digest
        with self._asking(f"upload version {version!r} of {pipeline!r}"):
            made = self._pipelines(pipeline) or [
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
        return Version(pipeline=made[0].pipeline_id, id=str(uploaded.pipeline_version_id))

    def _pipelines(self, name: str) -> list[V2beta1Pipeline]:
        page = self._client.list_pipelines(filter=_named(name), namespace=self.namespace)
        return [pipeline for pipeline in page.pipelines or () if pipeline.display_name == name]

    def schedules(self, name: str = "") -> list[V2beta1RecurringRun]:
        """Recurring runs, or those of one name."""
        with self._asking("list schedules"):
            schedules = _pages(
                lambda token: self._client.list_recurring_runs(
                    page_token=token,
                    page_size=PAGE,
                    namespace=self.namespace,
                    filter=_named(name) if name else None,
                ),
                "recurring_runs",
            )
        return [s for s in schedules if not name or s.display_name == name]

    def apply(self, schedule: Schedule, package: Path, parameters: Mapping[str, object]) -> str:
        """Make the schedule of this name be ``schedule``: ``created``, ``replaced`` or ``unchanged``.

        Recurring runs cannot be edited. The new one is made paused and starts when the old one is
        gone: at no time do two run, and if something fails on the way, applying again mends it.
        """
        digest = schedule.digest(yaml.safe_load_all(package.read_text(encoding="utf-8")), parameters)
        before = self.schedules(schedule.name)
        same = [s for s in before if (s.description or "").endswith(digest)]
        if not same:
            version = self.version(package)
            with self._asking(f"schedule {schedule.name!r}"):
                same = [self._create(schedule, version, parameters, digest)]
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
        for schedule in self._existing(name):
            self._switch(schedule, on=not paused)

    def delete_schedule(self, name: str) -> None:
        """Delete the schedule ``name``; its runs stay."""
        for schedule in self._existing(name):
            self._delete(schedule)

    def _existing(self, name: str) -> list[V2beta1RecurringRun]:
        schedules = self.schedules(name)
        if not schedules:
            raise ClusterError(f"schedule {name!r}: {self._host} has none of that name")
        return schedules

    def _create(
        self, schedule: Schedule, version: Version, parameters: Mapping[str, object], digest: str
    ) -> V2beta1RecurringRun:
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
            pipeline_id=version.pipeline,
            version_id=version.id,
            enabled=False,
            pipeline_root=schedule.pipeline_root or None,
            service_account=schedule.service_account or None,
        )

    def _delete(self, schedule: V2beta1RecurringRun) -> None:
        # By default Kubernetes deletes the Workflows of a schedule with it, those that run among them.
        delete = self._client.recurring_runs.recurring_run_service_delete_recurring_run
        with self._asking(f"delete schedule {schedule.display_name!r}"):
            delete(schedule.recurring_run_id, propagation_policy="ORPHAN")

    def _switch(self, schedule: V2beta1RecurringRun, *, on: bool) -> None:
        change = self._client.enable_recurring_run if on else self._client.disable_recurring_run
        with self._asking(f"{'resume' if on else 'pause'} schedule {schedule.display_name!r}"):
            change(schedule.recurring_run_id)

    def _experiment(self, name: str) -> str:
        return str(self._client.create_experiment(name, namespace=self.namespace).experiment_id)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        with asking(what, self._host):
            yield
            self._client.check_answer()


def _computes(run: V2beta1Run) -> tuple[object, object]:
    """What decides the outputs of ``run``: its pipeline and its parameters."""
    reference = run.pipeline_version_reference
    pipeline = reference.pipeline_version_id if reference else run.pipeline_spec
    return pipeline, run.runtime_config.parameters if run.runtime_config else None


def patiently(ask: Callable[[], T], *, seconds: float = PATIENCE) -> T:
    """What ``ask`` gives, asked again for some ``seconds`` while the server does not answer."""
    end, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


class _Page(Protocol):
    next_page_token: str | None


def _pages(ask: Callable[[str], _Page], entries: str, limit: int | None = None) -> list[Any]:
    items: list[Any] = []
    token = ""
    while limit is None or len(items) < limit:
        page = ask(token)
        items += getattr(page, entries) or []
        token = page.next_page_token or ""
        if not token:
            break
    return items[:limit]


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": EQUALS, "key": "display_name", "stringValue": name}]})
