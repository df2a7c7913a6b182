"""Runs a training job on several nodes, as a Kubeflow TrainJob, to its end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kubealign_components.config import from_mapping
from kubealign_components.errors import EngineError, Refusal
from kubealign_components.json_types import JsonObject
from kubealign_components.preemption import Preempted
from kubealign_components.trainjob.api import ClusterApi, connect
from kubealign_components.trainjob.kueue import QueueWatch
from kubealign_components.trainjob.logs import LogStream
from kubealign_components.trainjob.manifest import SPEC_DIGEST, train_job_body
from kubealign_components.trainjob.pods import failure, pods_of, restart_of
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings
from kubealign_components.trainjob.states import DEADLINE, WAITING, JobState, condition, state_of
from kubealign_components.trainjob.step_pod import Owner, this_pod
from kubealign_components.trainjob.workflow import is_workflow, why_over

if TYPE_CHECKING:
    from kubealign_components.training.launch import Launcher

_LAST_WORD = (0.3, 0.3)
"""Seconds to connect and for the answer, once a pod was told to end: it is gone after one."""


def launcher_for(
    nodes: int, processes: int, task: object = None, settings: Mapping[str, object] | None = None
) -> Launcher | None:
    """What runs training on ``nodes`` nodes, from the pod that this process runs in; None for one node.

    Args:
        nodes: that train together.
        processes: of a node; 0 for one a GPU of the node.
        task: a ``dsl.TaskConfig``: what KFP hands on of the task's pod.
        settings: of :class:`TrainJobSettings`.

    Raises:
        ConfigError: settings that cannot be used.
        EngineError: this process runs in no pod, or in no cluster.
    """
    options = from_mapping(TrainJobSettings, settings or {}, "train_job")
    if nodes == 1:
        return None
    api = connect(deadline=options.api_timeout, pause=min(1.0, options.poll_seconds))
    return train_job(api, nodes, processes, PodShape.of(task, options.resources), options)


def train_job(
    api: ClusterApi,
    nodes: int,
    processes: int,
    shape: PodShape,
    settings: TrainJobSettings,
    write: Callable[[str], None] | None = None,
) -> Launcher:
    """What runs a training job as a TrainJob in the cluster ``api``.

    Args:
        api: the cluster.
        nodes: that train together.
        processes: of a node; 0 for one a GPU of the node.
        shape: what the pods get.
        settings: the rest.
        write: takes a line of the first pod's log, or of what happens; standard output by default.
    """
    count = processes or shape.accelerators() or 1
    pod = this_pod(api)
    say = write or _to_stdout

    def launch(job: str) -> None:
        body = train_job_body(job, nodes, count, pod=pod, shape=shape, settings=settings)
        run = _Run(api, body, pod.owner, settings, say)
        with run.ended_on_signal():
            run.begin()
            run.wait()

    return launch


class _Run:
    """One TrainJob from its creation, or adoption, to its end."""

    def __init__(
        self,
        api: ClusterApi,
        body: JsonObject,
        owner: Owner,
        settings: TrainJobSettings,
        write: Callable[[str], None],
    ) -> None:
        self._api, self._body, self._owner, self._settings = api, body, owner, settings
        self._write, self._name = write, body["metadata"]["name"]
        self._queue = QueueWatch(api, self._say)
        self._uid = ""

    def begin(self) -> None:
        """Create the TrainJob, or take on the one that an earlier attempt created."""
        if not is_workflow(self._owner.reference):
            self._say(
                f"no Argo Workflow controls this pod, so the TrainJob belongs to {self._owner.kind} "
                f"{self._owner.name} and is deleted with it"
            )
        end = time.monotonic() + self._settings.api_timeout
        while time.monotonic() < end:
            job = self._api.job(self._name)
            if job is None:
                self._api.create_job(self._body, dry_run=True)
                created = self._api.create_job(self._body)
                if created is not None:
                    self._uid = created["metadata"]["uid"]
                    self._say(f"created, {self._body['spec']['trainer']['numNodes']} nodes")
                    return
            elif self._taken(job):
                return
            self._pause()
        raise EngineError(f"TrainJob {self._name} of an earlier attempt is still being deleted")

    def wait(self) -> None:
        """Watch the TrainJob to its end.

        Raises:
            EngineError: it failed.
            Refusal: it waited too long, or was deleted.
        """
        log = LogStream(
            self._api.again(self._settings.poll_seconds), self._name, self._write, self._settings.poll_seconds
        )
        log.start()
        try:
            job, state = self._watch()
            log.finish(2 * self._settings.poll_seconds)
        finally:
            log.stop()
        if state is JobState.CANCELLED:
            raise Refusal(f"TrainJob {self._name} was deleted while this run waited for it")
        if state is JobState.FAILED:
            raise EngineError(self._failure(job or {}))

    def _watch(self) -> tuple[JsonObject | None, JobState]:
        """Follow the TrainJob's states until one is final."""
        ran, before, since = False, None, time.monotonic()
        while True:
            job = self._ours(self._api.job(self._name))
            state = state_of(job, before=before, evicted=ran or self._queue.evicted)
            if job is not None and state in WAITING:
                self._queue.look(job)
                state = state_of(job, before=before, evicted=ran or self._queue.evicted)
            if state is not before:
                self._say(self._state_text(state, before))
                # Out of the queue and not running is still waiting; being evicted starts it anew.
                since = time.monotonic() if before is JobState.RUNNING else since
                before = state
            if state not in (*WAITING, JobState.RUNNING):
                return job, state
            ran = ran or state is JobState.RUNNING
            if state in WAITING:
                self._check_wait(time.monotonic() - since, state)
            self._pause()

    def _state_text(self, state: JobState, before: JobState | None) -> str:
        """The ``state`` in words, with why all nodes start anew, and how often they did."""
        if state is JobState.RESTARTING:
            return f"{state}, since a node was lost. {failure(self._api, self._name)}".rstrip()
        if state is JobState.RUNNING and before is JobState.RESTARTING:
            number = self._restart()
            return f"{state}{number}: all nodes go on from their last checkpoint"
        return str(state)

    def _restart(self) -> str:
        with suppress(EngineError):  # it only informs
            return f", restart {restart_of(pods_of(self._api, self._name))}"
        return " again"

    def _taken(self, job: JsonObject) -> bool:
        """Whether the TrainJob ``job`` is this run's from now on; if not, it goes."""
        state = state_of(job)
        if job["metadata"].get("deletionTimestamp"):
            return False
        if state is JobState.FAILED:
            self._say("the one of an earlier attempt failed: it is deleted, to start again")
            self._api.delete_job(self._name, uid=job["metadata"]["uid"])
            return False
        same = (job["metadata"].get("annotations") or {}).get(SPEC_DIGEST)
        if same != self._body["metadata"]["annotations"][SPEC_DIGEST] and state is not JobState.SUCCEEDED:
            raise EngineError(
                f"TrainJob {self._name} in namespace {self._api.namespace} is {state} for this very "
                f"training, with other nodes, resources or images: wait for its end, or delete it "
                f"(kubectl -n {self._api.namespace} delete trainjob {self._name}) and run this again"
            )
        self._uid = job["metadata"]["uid"]
        owners = job["metadata"].get("ownerReferences") or []
        if all(owner["uid"] != self._owner.uid for owner in owners):
            self._api.own_job(self._name, [*owners, self._owner.reference])
        self._say(f"adopted, {state}")
        return True

    def _ours(self, job: JsonObject | None) -> JsonObject | None:
        """``job``, unless another one took its name meanwhile."""
        return job if job is not None and job["metadata"]["uid"] == self._uid else None

    def _check_wait(self, waited: float, state: JobState) -> None:
        limit = self._settings.queue_timeout
        if limit and waited > limit:
            self._api.delete_job(self._name, uid=self._uid)
            raise Refusal(
                f"TrainJob {self._name} was {state} for {waited:.0f} s, longer than queue_timeout={limit}, "
                "and was deleted; the lines above say what it waited for"
            )

    def _failure(self, job: JsonObject) -> str:
        failed = condition(job, "Failed")
        text = f"TrainJob {self._name} failed: {failed.get('message', '')}"
        if failed.get("reason") == DEADLINE:
            return f"{text} (run_timeout={self._settings.run_timeout} seconds)"
        reason = failure(self._api, self._name)
        return f"{text}\n{reason}" if reason else text

    def _pause(self) -> None:
        time.sleep(self._settings.poll_seconds)

    def _say(self, text: str) -> None:
        self._write(f"[TrainJob {self._name}] {text}")

    @contextmanager
    def ended_on_signal(self) -> Iterator[None]:
        """Where this process is told to end while the block runs, end the TrainJob if its run is being
        cancelled. Else the pod is only moved: the TrainJob goes on, and the step's retry takes it on."""
        last = self._api.again(deadline=0.0, timeout=_LAST_WORD)
        try:
            with _raised_sigterm():
                yield
        except KeyboardInterrupt:
            with suppress(EngineError):
                last.delete_job(self._name)
            raise
        except Preempted:
            try:
                self._end_if_cancelled(last)
            except EngineError as error:
                self._say(
                    f"SIGTERM; whether its run is cancelled is not known, so the TrainJob stays: {error}"
                )
            raise

    def _end_if_cancelled(self, api: ClusterApi) -> None:
        reason = _why_ended(api, self._owner)
        if not reason:
            return self._say("SIGTERM: this pod is moved. The TrainJob goes on, and a retry takes it on")
        job = api.job(self._name) or {"metadata": {}}
        if any(one["uid"] != self._owner.uid for one in job["metadata"].get("ownerReferences") or []):
            return self._say(f"{reason}; another run wants the TrainJob, so it stays")
        api.delete_job(self._name)
        return self._say(f"deleted: {reason}")


def _why_ended(api: ClusterApi, owner: Owner) -> str:
    """Why nobody wants the TrainJob of ``owner`` once its pod ends; empty while somebody may."""
    if is_workflow(owner.reference):
        return why_over(api.workflow(owner.name), owner.uid)
    return "its pod ends, and nothing makes another" if owner.kind == "Pod" else ""


@contextmanager
def _raised_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM is an exception; outside the main thread Python takes no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    stopped = False

    def handle(*_: object) -> None:
        nonlocal stopped
        stopped = True
        # It may come twice, to the group and from a supervisor: what is left to do must not be cut short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Preempted

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if not stopped:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _to_stdout(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
