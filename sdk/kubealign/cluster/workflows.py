"""What became of runs, from what Kubeflow Pipelines says and from their Argo Workflows.

KFP keeps a terminated run as a failed one, and one whose Workflow was deleted as running for ever: the
Workflow tells the first, and its absence the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubealign.cluster.kube import Kubernetes, NoKubernetes
from kubealign.errors import ClusterError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

RUN = "pipeline/runid"
"""Label of Workflows and pods: the run that they belong to."""
DONE = {"succeeded", "skipped"}
GONE = "unknown"
"""A run that did not end and has no Workflow any more: nobody knows what became of it."""
OVER = DONE | {"failed", "canceled", GONE}
UNENDED = {"pending", "running", "canceling", "paused", "runtime_state_unspecified", ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class Workflow:
    """The Argo Workflow of a run."""

    name: str
    cancelled: bool
    """Whether it was told to end at once, which is how KFP terminates."""


def states_of(runs: Iterable[V2beta1Run], kubernetes: Kubernetes, namespace: str) -> dict[str, str]:
    """The state of each of ``runs`` by id, as well as it can be known from here."""
    states = {str(run.run_id): reported_state(run) for run in runs}
    doubtful = [run_id for run_id, state in states.items() if state in UNENDED or state == "failed"]
    if not doubtful:
        return states
    try:
        workflows = workflows_of(kubernetes, namespace, doubtful)
    except ClusterError:
        return states  # without the cluster's API there is only KFP's word
    return {
        run_id: state_with(state, workflows.get(run_id)) if run_id in doubtful else state
        for run_id, state in states.items()
    }


def reported_state(run: V2beta1Run) -> str:
    """KFP's own word."""
    state = str(run.state or "").lower()
    passed = {str(status.state) for status in run.state_history or ()}
    return "canceled" if state == "failed" and "CANCELING" in passed else state


def state_with(state: str, workflow: Workflow | None) -> str:
    """KFP's word ``state`` in the light of the run's Workflow, or of there being none."""
    if state == "failed":
        return "canceled" if workflow and workflow.cancelled else state
    if workflow is None:
        return GONE
    return "canceling" if workflow.cancelled else state


def workflows_of(kubernetes: Kubernetes, namespace: str, run_ids: Iterable[str]) -> dict[str, Workflow]:
    """The Workflows there are, by the id of their run.

    Raises:
        ClusterError: they cannot be read, so that nothing follows from there being none.
    """
    path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
    items = kubernetes.items(path, labelSelector=f"{RUN} in ({','.join(run_ids)})")
    if items is None:
        raise NoKubernetes(f"{path}: this cluster has no Workflows")
    return {item["metadata"]["labels"][RUN]: _workflow(item) for item in items}


def _workflow(item: JsonObject) -> Workflow:
    cancelled = item.get("spec", {}).get("activeDeadlineSeconds") == 0
    return Workflow(name=item["metadata"]["name"], cancelled=cancelled)
