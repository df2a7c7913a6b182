"""The Argo Workflow of a KFP run, which owns the run's TrainJobs: whether it still wants them."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_components.json_types import JsonObject

GROUP, VERSION, PLURAL, KIND = "argoproj.io", "v1alpha1", "workflows", "Workflow"
_ENDED = ("Succeeded", "Failed", "Error")


def is_workflow(owner: Mapping[str, object]) -> bool:
    """Whether the owner reference ``owner`` is to an Argo Workflow."""
    return bool(owner["kind"] == KIND and str(owner["apiVersion"]).startswith(f"{GROUP}/"))


def why_over(workflow: JsonObject | None, uid: str) -> str:
    """Why the Workflow ``uid`` wants none of its TrainJobs any more; empty while it does.

    Args:
        workflow: the one that has its name now; None for none.
        uid: of the one that is meant.
    """
    if workflow is None or workflow["metadata"]["uid"] != uid:
        return "its Workflow is gone"
    if workflow["metadata"].get("deletionTimestamp"):
        return "its Workflow is being deleted"
    spec = workflow.get("spec") or {}
    if spec.get("activeDeadlineSeconds") == 0:  # how KFP terminates a run
        return "its run was terminated"
    if spec.get("shutdown"):
        return f"its Workflow was told to {str(spec['shutdown']).lower()}"
    phase = (workflow.get("status") or {}).get("phase", "")
    return f"its Workflow is {phase}" if phase in _ENDED else ""
