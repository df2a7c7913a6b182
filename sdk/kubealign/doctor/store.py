"""Where artifacts and work go, who has the keys, and what the UI can show of it."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from kubealign.cluster.kube import AccessDenied
from kubealign.cluster.outputs import DEFAULT_ROOT, LAUNCHER
from kubealign.doctor.diagnosis import KUBEFLOW, Diagnosis, Subject, data_of, ok, problem, unknown, warning
from kubealign_components.errors import KubeAlignError
from kubealign_components.json_types import JsonObject
from kubealign_components.store import join, scheme_of, store_for
from kubealign_components.store.base import KUBEFLOW as KUBEFLOW_STORE

SCHEMES = ("minio", "gs", "s3")
OWN = "minio://mlpipeline/"
"""KFP's own bucket."""
PROFILE = ("app.kubernetes.io/part-of", "kubeflow-profile")
"""Label that Kubeflow gives the namespace of a profile, and that KFP's network policy selects by."""


def check_store(subject: Subject) -> Iterator[Diagnosis]:
    """Scheme, keys and server of the pipeline root; the prefix for work; what the UI needs."""
    data = data_of(subject.kubernetes.get(subject.of_namespace(f"configmaps/{LAUNCHER}")))
    root = data.get("defaultPipelineRoot") or DEFAULT_ROOT
    scheme = scheme_of(root)
    if scheme not in SCHEMES:
        remedy = f"set defaultPipelineRoot in the ConfigMap {LAUNCHER} to one of {', '.join(SCHEMES)}"
        yield problem("pipeline root", f"{root}: no store of that kind", remedy)
        return
    yield ok("pipeline root", root)
    provider = (yaml.safe_load(data.get("providers") or "") or {}).get(scheme) or {}
    try:
        yield from _keys(subject, scheme, provider)
    except AccessDenied as error:
        yield unknown("store keys", str(error), "run this as someone who may read that Secret")
    yield from _server(subject, root, scheme, provider)
    yield from _work(subject, root)
    yield from _pages(subject, root, scheme)


def _keys(subject: Subject, scheme: str, provider: JsonObject) -> Iterator[Diagnosis]:
    given = (provider.get("default") or {}).get("credentials") or {}
    named = given.get("secretRef") or {}
    if scheme == "minio" and not provider:
        named = {
            "secretName": "mlpipeline-minio-artifact",
            "accessKeyKey": "accesskey",
            "secretKeyKey": "secretkey",
        }
    if not named:
        fact = f"the launcher takes the pods' own identity for {scheme}://"
        yield unknown("store keys", fact, f"make sure that {subject.account} may use the bucket")
        return
    name = named["secretName"]
    secret = subject.kubernetes.get(subject.of_namespace(f"secrets/{name}"))
    keys = {str(named[key]) for key in ("accessKeyKey", "secretKeyKey") if named.get(key)}
    missing = sorted(keys - set(data_of(secret)))
    if secret is None or missing:
        fact = (
            f"Secret {name} is not there" if secret is None else f"Secret {name} has no {', '.join(missing)}"
        )
        yield problem(
            "store keys", fact, f"create it in namespace {subject.namespace}: see manifests/README.md"
        )
    else:
        yield ok("store keys", f"Secret {name}")


def _server(subject: Subject, root: str, scheme: str, provider: JsonObject) -> Iterator[Diagnosis]:
    endpoint = (provider.get("default") or {}).get("endpoint") or (
        KUBEFLOW_STORE.removeprefix("http://") if scheme == "minio" else ""
    )
    host = endpoint.removeprefix("http://").removeprefix("https://").partition(":")[0]
    name, _, rest = host.partition(".")
    namespace = rest.partition(".")[0]
    inside = namespace and (rest == namespace or rest.split(".")[1] == "svc")
    if inside:
        service = subject.kubernetes.get(f"/api/v1/namespaces/{namespace}/services/{name}")
        if service is None:
            fact = f"{endpoint}: there is no Service {name} in namespace {namespace}"
            remedy = f"KFP 2.16 and later has {KUBEFLOW_STORE.removeprefix('http://')}; correct {LAUNCHER}"
            yield problem("store server", fact, remedy)
        else:
            yield ok("store server", f"Service {namespace}/{name}")
            yield from _reached(subject, namespace, name)
        return
    try:
        next(store_for(root).list(join(root, "kubealign-doctor")), None)
    except KubeAlignError as error:
        remedy = "from here, with the credentials of this machine; those of the pods may do"
        yield unknown("store server", str(error), remedy)
    else:
        yield ok("store server", f"{root} can be listed from here")


def _reached(subject: Subject, namespace: str, name: str) -> Iterator[Diagnosis]:
    """Whether KFP's own store takes connections of the namespace, where network policies are enforced."""
    if (namespace, name) != (KUBEFLOW, "seaweedfs") or subject.namespace == KUBEFLOW:
        return
    own = subject.kubernetes.get(f"/api/v1/namespaces/{subject.namespace}") or {}
    if PROFILE in (own.get("metadata", {}).get("labels") or {}).items():
        yield ok("store connections", f"{subject.namespace} is a profile")
        return
    label = "=".join(PROFILE)
    fact = f"Kubeflow's network policy takes those of profiles alone, and {subject.namespace} has no {label}"
    remedy = f"make the namespace as a Profile, or kubectl label namespace {subject.namespace} {label}"
    yield warning("store connections", fact, remedy)


def _work(subject: Subject, root: str) -> Iterator[Diagnosis]:
    work = str(subject.run.parameters.get("work") or "")
    own = f"private-artifacts/{subject.namespace}/"
    bucket = work.removeprefix("s3://mlpipeline/").removeprefix(OWN)
    if not work:
        remedy = "set parameters.work to a prefix that the runs share"
        yield warning("work", "every run keeps its finished rows for itself", remedy)
    elif scheme_of(work) == "file":
        yield problem(
            "work", f"{work} is a path of this machine", f"name a prefix in the store, such as {root}/work"
        )
    elif bucket != work and not subject.standalone and not bucket.startswith((own, "shared/")):
        fact = f"{work}: KFP's store lets a profile write below {own} only"
        yield problem("work", fact, f"parameters.work: {OWN}{own}work")
    else:
        yield ok("work", work)


def _pages(subject: Subject, root: str, scheme: str) -> Iterator[Diagnosis]:
    if scheme == "minio" and not root.startswith(OWN) and subject.namespace != KUBEFLOW:
        yield warning(
            "pages in the UI", f"{root}: the UI has keys for {OWN}", "see manifests/README.md, The store"
        )
    elif scheme != "minio":
        fact = f"reports in {scheme}:// open only with credentials of the UI's own server"
        yield unknown("pages in the UI", fact, "see manifests/README.md, The store")
    else:
        yield ok("pages in the UI", "the UI has the keys of this store")
