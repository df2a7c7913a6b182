"""The Kubernetes API as training uses it: a few calls in one namespace, which outlast its bad minutes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.errors import EngineError, Refusal
from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob import workflow

if TYPE_CHECKING:
    from kubernetes.client import Configuration
    from kubernetes.client.exceptions import ApiException
    from urllib3.response import HTTPResponse

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
KUEUE, KUEUE_VERSION = "kueue.x-k8s.io", "v1beta2"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two bytes of an answer."""
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 30.0

log = logging.getLogger(__name__)


class Forbidden(Refusal):
    """The service account lacks a permission."""


class Rejected(Refusal):
    """The API server did not accept a request, and will not."""


def connect(namespace: str = "", *, deadline: float, pause: float = 1.0) -> ClusterApi:
    """The cluster that this process runs in, or else that of the current kubeconfig context.

    Args:
        namespace: to work in; empty for the pod's own, or the context's.
        deadline: seconds that a call is tried for.
        pause: seconds before the first repetition.

    Raises:
        EngineError: no cluster is configured.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if NAMESPACE_FILE.is_file():
            config.load_incluster_config(client_configuration=settings)
            own = NAMESPACE_FILE.read_text(encoding="utf-8").strip()
        else:
            # The library reads the variable once, when it is imported.
            path = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(path, client_configuration=settings)
            context = config.list_kube_config_contexts(path)[1].get("context", {})
            own = context.get("namespace", "default")
    except (config.ConfigException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"no Kubernetes cluster to talk to ({reason}): run this in a pod, or set KUBECONFIG"
        ) from error
    return ClusterApi(settings, namespace or own, deadline=deadline, pause=pause)


class ClusterApi:
    """Calls in one namespace. Transient failures are tried again, with growing pauses.

    Args:
        settings: ``kubernetes.client.Configuration``.
        namespace: of everything here.
        deadline: seconds that a call is tried for.
        pause: seconds before the first repetition.
        timeout: seconds to connect, and between two bytes of an answer.
    """

    def __init__(
        self,
        settings: Configuration,
        namespace: str,
        *,
        deadline: float,
        pause: float = 1.0,
        timeout: tuple[float, float] = TIMEOUT,
    ) -> None:
        from kubernetes import client

        settings.retries = False  # ours know the API's answers, and end in time
        self.namespace, self._deadline, self._pause = namespace, deadline, pause
        self._settings, self._timeout = settings, timeout
        self._jobs = client.CustomObjectsApi(client.ApiClient(settings))
        self._core = client.CoreV1Api(client.ApiClient(settings))

    def again(self, deadline: float, timeout: tuple[float, float] = TIMEOUT) -> ClusterApi:
        """The same cluster over connections of its own, for another thread or a signal handler."""
        return ClusterApi(
            self._settings, self.namespace, deadline=deadline, pause=self._pause, timeout=timeout
        )

    def create_job(self, body: JsonObject, *, dry_run: bool = False) -> JsonObject | None:
        """Create a TrainJob; None where one of that name exists already."""
        how = {"body": body, "field_validation": "Strict"} | ({"dry_run": "All"} if dry_run else {})
        return self._job_call("create", self._jobs.create_namespaced_custom_object, how, absent=(409,))

    def job(self, name: str) -> JsonObject | None:
        """The TrainJob, or None where there is none."""
        return self._job_call("get", self._jobs.get_namespaced_custom_object, {"name": name}, absent=(404,))

    def jobs(self, selector: str) -> list[JsonObject]:
        """The TrainJobs with labels that ``selector`` asks for."""
        how = {"label_selector": selector}
        return _items(self._job_call("list", self._jobs.list_namespaced_custom_object, how))

    def own_job(self, name: str, owners: Sequence[Mapping[str, object]]) -> None:
        """Make ``owners`` the TrainJob's: it goes when the last of them is gone."""
        how = {"name": name, "body": {"metadata": {"ownerReferences": list(owners)}}}
        self._job_call("patch", self._jobs.patch_namespaced_custom_object, how)

    def delete_job(self, name: str, *, uid: str = "") -> None:
        """Delete the TrainJob and what belongs to it, at once; one that is gone is fine.

        Args:
            name: of the TrainJob.
            uid: of the one that is meant, if another of that name must stay.
        """
        options: JsonObject = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        options |= {"preconditions": {"uid": uid}} if uid else {}
        how = {"name": name, "body": options}
        delete = self._jobs.delete_namespaced_custom_object
        self._job_call("delete", delete, how, absent=(404, 409))

    def workflow(self, name: str) -> JsonObject | None:
        """The Argo Workflow, or None where there is none."""
        how = {
            "group": workflow.GROUP,
            "version": workflow.VERSION,
            "plural": workflow.PLURAL,
            "namespace": self.namespace,
            "name": name,
        }
        function = self._jobs.get_namespaced_custom_object
        return self._call(f"get {workflow.PLURAL}.{workflow.GROUP}", function, how, absent=(404,))

    def pod(self, name: str) -> JsonObject | None:
        """The pod, or None where there is none."""
        how = {"namespace": self.namespace, "name": name}
        return self._call("get pods", self._core.read_namespaced_pod, how, absent=(404,))

    def pods(self, selector: str) -> list[JsonObject]:
        """The pods with labels that ``selector`` asks for."""
        how = {"namespace": self.namespace, "label_selector": selector}
        return _items(self._call("list pods", self._core.list_namespaced_pod, how))

    def events(self, uid: str) -> list[JsonObject]:
        """What happened to the object of that uid."""
        how = {"namespace": self.namespace, "field_selector": f"involvedObject.uid={uid}"}
        return _items(self._call("list events", self._core.list_namespaced_event, how))

    def workload(self, job_uid: str) -> JsonObject | None:
        """Kueue's workload of the TrainJob with that uid; None where Kueue has none, or there is no Kueue."""
        how = {
            "group": KUEUE,
            "version": KUEUE_VERSION,
            "plural": "workloads",
            "namespace": self.namespace,
            "label_selector": f"kueue.x-k8s.io/job-uid={job_uid}",
        }
        function = self._jobs.list_namespaced_custom_object
        workloads = self._call("list workloads.kueue.x-k8s.io", function, how, absent=(404,))
        return next(iter(_items(workloads)), None)

    def log_lines(self, pod: str, container: str, query: Mapping[str, object]) -> Iterator[str]:
        """Lines of a container's log as they come, until the server closes the connection.

        Raises:
            EngineError: the log cannot be had now; a pod without a log yet is among the reasons.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        # The client's own function has no sinceTime.
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        pairs = [("container", container), *query.items()]
        try:
            response = self._core.api_client.call_api(
                path,
                "GET",
                query_params=pairs,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
            yield from _lines(response)
        except ApiException as error:
            raise self._failure(error, "get pods/log") from error
        except HTTPError as error:
            raise EngineError(f"the log of {pod} broke off: {error}") from error

    def _job_call(
        self,
        verb: str,
        function: Callable[..., HTTPResponse],
        how: JsonObject,
        *,
        absent: tuple[int, ...] = (),
    ) -> JsonObject | None:
        kind = {"group": GROUP, "version": VERSION, "plural": PLURAL, "namespace": self.namespace}
        return self._call(f"{verb} {PLURAL}.{GROUP}", function, kind | how, absent=absent)

    def _call(
        self,
        what: str,
        function: Callable[..., HTTPResponse],
        how: JsonObject,
        *,
        absent: tuple[int, ...] = (),
    ) -> JsonObject | None:
        """The JSON that ``function`` answers to the arguments ``how``; None for the codes ``absent``."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        end, pause = time.monotonic() + self._deadline, self._pause
        while True:
            try:
                answer = function(**how, _preload_content=False, _request_timeout=self._timeout)
                decoded: JsonObject = json.loads(answer.data)
                return decoded
            except ApiException as error:
                if error.status in absent:
                    return None
                if error.status not in _TRANSIENT:
                    raise self._failure(error, what) from error
                problem, wait = f"{error.status} {error.reason}", _asked_pause(error.headers)
            except (HTTPError, OSError, ValueError) as error:
                problem, wait = f"{type(error).__name__}: {error}", 0.0
            wait = max(wait, pause)
            if time.monotonic() + wait > end:
                raise EngineError(
                    f"the Kubernetes API server did not {what} within {self._deadline:g} s: {problem}"
                )
            log.warning("%s: %s; again in %g s", what, problem, wait)
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _failure(self, error: ApiException, what: str) -> EngineError:
        """What an answer that stays the same means to the user."""
        body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body
        message = str(body or error.reason)
        with suppress(ValueError, AttributeError):
            message = json.loads(message)["message"]
        if error.status == 403 and "cannot" in message:
            return Forbidden(
                f"permission missing: {what} in namespace {self.namespace}. Give it to the service account "
                f"(the Roles in manifests/base do). The API server says: {message}"
            )
        if error.status == 401:
            return Forbidden(f"the API server does not know who asks to {what}: {message}")
        return Rejected(f"the Kubernetes API server refused to {what}: {message}")


def _items(answer: JsonObject | None) -> list[JsonObject]:
    return list((answer or {}).get("items") or [])


def _asked_pause(headers: Mapping[str, str] | None) -> float:
    try:
        return min(float((headers or {}).get("Retry-After", 0)), _LONGEST_PAUSE)
    except ValueError:
        return 0.0


def _lines(response: HTTPResponse) -> Iterator[str]:
    rest = b""
    try:
        for block in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")
    finally:
        response.close()
