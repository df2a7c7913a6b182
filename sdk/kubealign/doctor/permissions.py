"""What the service account of a run's pods may do."""

from __future__ import annotations

from collections.abc import Iterator

from kubealign.doctor.diagnosis import Diagnosis, Subject, ok, problem, unknown
from kubealign.errors import ClusterError

Permission = tuple[str, str, str]
"""Group, resource and verb."""
RUN: tuple[Permission, ...] = (
    ("argoproj.io", "workflowtaskresults", "create"),
    ("argoproj.io", "workflowtaskresults", "patch"),
    ("", "configmaps", "get"),
    ("", "pods", "get"),
)
TRAIN: tuple[Permission, ...] = (
    *(("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "delete", "get", "patch")),
    ("argoproj.io", "workflows", "get"),
    ("", "pods", "list"),
    ("", "pods/log", "get"),
    ("", "events", "list"),
    ("kueue.x-k8s.io", "workloads", "list"),
)
NAMED = {"configmaps": "kfp-launcher"}
"""The one object that a permission is for."""


def check_permissions(subject: Subject) -> Iterator[Diagnosis]:
    """Each permission, asked as the service account itself."""
    user = f"system:serviceaccount:{subject.namespace}:{subject.account}"
    if subject.kubernetes.get(subject.of_namespace(f"serviceaccounts/{subject.account}")) is None:
        remedy = "apply an overlay of manifests/, or name another with --service-account"
        yield problem("service account", f"there is no {subject.account} in {subject.namespace}", remedy)
        return
    rights = RUN + (TRAIN if subject.multi_node else ())
    try:
        refused = [one for one in rights if not _may(subject, user, one)]
    except ClusterError as error:
        yield unknown(
            "permissions", f"cannot ask as {user} ({error})", "run this as someone who may impersonate it"
        )
        return
    for group, resource, verb in refused:
        what = f"{verb} {resource}{f'.{group}' if group else ''}"
        yield problem("permissions", f"{subject.account} may not {what}", "apply an overlay of manifests/")
    if not refused:
        yield ok("permissions", f"{subject.account} has all {len(rights)} that the run needs")


def _may(subject: Subject, user: str, permission: Permission) -> bool:
    group, resource, verb = permission
    resource, _, part = resource.partition("/")
    attributes = {"namespace": subject.namespace, "group": group, "resource": resource, "verb": verb}
    attributes |= {"subresource": part} if part else {}
    attributes |= {"name": NAMED[resource]} if resource in NAMED else {}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = subject.kubernetes.create(path, body, user=user)
    return bool(answer.get("status", {}).get("allowed"))
