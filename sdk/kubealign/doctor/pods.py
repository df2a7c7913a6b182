"""What becomes of a stage's pod: admission, PodDefaults, volumes, image."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kubealign.cluster.kube import Json
from kubealign.doctor.diagnosis import Diagnosis, Subject, ok, problem, unknown, warning
from kubealign.errors import ClusterError
from kubealign_components.json_types import JsonObject

CACHE = "kubealign-model-cache"
ENFORCE = "pod-security.kubernetes.io/enforce"
_REFERENCE = re.compile(r"(?P<host>[^/]+\.[^/]+|[^/]+:\d+|localhost)/(?P<path>.+)")


def check_admission(subject: Subject) -> Iterator[Diagnosis]:
    """Each kind of pod, offered to the API server without being made: pod security, quotas, PodDefaults."""
    check = "admission"
    admitted: list[Json] = []
    for task in subject.tasks:
        pod = pod_of(subject, task)
        try:
            admitted.append(subject.kubernetes.create(subject.of_namespace("pods"), pod, dryRun="All"))
        except ClusterError as error:
            text = str(error).partition("Kubernetes answers ")[2] or str(error)
            if 'cannot create resource "pods"' in text:
                yield unknown(check, text, "run this as someone who may create pods there")
                return
            yield problem(
                check, f"a pod of {task['name'].removeprefix('exec-')} is refused: {text}", _remedy(text)
            )
            return
    yield ok(check, f"pods of all {len(admitted)} tasks are admitted")
    yield from _pod_defaults(subject, admitted)


def check_pod_security(subject: Subject) -> Iterator[Diagnosis]:
    """The standard that the namespace enforces."""
    namespace = subject.kubernetes.get(f"/api/v1/namespaces/{subject.namespace}") or {}
    level = (namespace.get("metadata", {}).get("labels") or {}).get(ENFORCE, "privileged")
    if level == "restricted":
        fact = f"{subject.namespace} enforces {level}: the job that opens the model cache is refused"
        yield warning(
            "pod security", fact, "chmod 1777 on the file server: manifests/README.md, The model cache"
        )
    else:
        yield ok("pod security", level)


def check_volumes(subject: Subject) -> Iterator[Diagnosis]:
    """The volume claims of the pods: there, shared where pods run side by side, and writable."""
    mounts = [claim for task in subject.tasks for claim in task["pod"].get("pvcMount", [])]
    names = {str(claim.get("constant") or claim.get("pvcName")) for claim in mounts} | (
        set() if subject.standalone else {CACHE}
    )
    for name in sorted(names):
        claim = subject.kubernetes.get(subject.of_namespace(f"persistentvolumeclaims/{name}"))
        if claim is None:
            yield problem(
                "volumes",
                f"there is no claim {name} in {subject.namespace}",
                "apply an overlay of manifests/",
            )
            continue
        phase = claim.get("status", {}).get("phase", "")
        if phase == "Lost":
            yield problem("volumes", f"{name} is {phase}", "make the claim anew")
        elif "ReadWriteMany" not in claim["spec"]["accessModes"] and _machines(subject) > 1:
            fact = f"{name} can be mounted on one machine only"
            yield warning(
                "volumes", fact, "take a storage class with ReadWriteMany: pods on others stay pending"
            )
        else:
            yield ok("volumes", f"{name} is {phase or 'there'}")
    if CACHE in names:
        yield from _writable(subject)


def check_images(subject: Subject) -> Iterator[Diagnosis]:
    """Whether the machines have the images, or their registry gives them out."""
    accounts = subject.kubernetes.get(subject.of_namespace(f"serviceaccounts/{subject.account}")) or {}
    secrets = {one["name"] for one in accounts.get("imagePullSecrets") or ()}
    existing = {name for name in secrets if subject.kubernetes.get(subject.of_namespace(f"secrets/{name}"))}
    on_nodes = _on_nodes(subject)
    for image in sorted({task["container"]["image"] for task in subject.tasks}):
        yield _image(image, existing, on_nodes)


def pod_of(subject: Subject, task: JsonObject) -> Json:
    """The pod that Kubeflow Pipelines makes of ``task``, as far as admission looks at it."""
    settings, container, volumes = task["pod"], task["container"], list(_volumes(task["pod"]))
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    security |= {"seccompProfile": {"type": "RuntimeDefault"}}
    security |= {name: _number(value) for name, value in (settings.get("securityContext") or {}).items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "kubealign-doctor", "labels": settings.get("podMetadata", {}).get("labels", {})},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": subject.account,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": container["image"],
                    "securityContext": security,
                    "resources": _resources(container.get("resources") or {}),
                    "env": _environment(task),
                    "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes],
                }
            ],
            "volumes": [{"name": name, **source} for name, _, source in volumes],
        },
    }


def _pod_defaults(subject: Subject, admitted: list[Json]) -> Iterator[Diagnosis]:
    if subject.standalone:
        return
    volumes = [{one["name"] for one in pod["spec"].get("volumes") or ()} for pod in admitted]
    if all(CACHE in names for names in volumes):
        yield ok("PodDefaults", "pods get model cache and store keys")
        return
    fact = "pods get no model cache: no PodDefault selects them, or there is no webhook for them"
    remedy = (
        "apply an overlay of manifests/ in a Kubeflow profile; without profiles set compile.installation: "
        "standalone in the run file"
    )
    yield problem("PodDefaults", fact, remedy)


def _writable(subject: Subject) -> Iterator[Diagnosis]:
    job = subject.kubernetes.get(f"/apis/batch/v1/namespaces/{subject.namespace}/jobs/{CACHE}")
    status = (job or {}).get("status") or {}
    if status.get("succeeded"):
        yield ok("model cache", "its job has made it writable")
    elif job is not None:
        fact = f"its job has not made it writable: {status or 'no pod yet'}"
        yield problem("model cache", fact, f"kubectl -n {subject.namespace} describe job {CACHE}")
    else:
        fact = "whether user 10001 may write to it is not known: its job is gone"
        yield unknown("model cache", fact, "apply the overlay again and look within ten minutes")


def _machines(subject: Subject) -> int:
    try:
        return len(subject.kubernetes.items("/api/v1/nodes") or ())
    except ClusterError:
        return 1


def _on_nodes(subject: Subject) -> set[str]:
    try:
        nodes = subject.kubernetes.items("/api/v1/nodes") or []
    except ClusterError:
        return set()
    return {
        name
        for node in nodes
        for one in node["status"].get("images") or ()
        for name in one.get("names") or ()
    }


def _image(image: str, secrets: set[str], on_nodes: set[str]) -> Diagnosis:
    match = _REFERENCE.fullmatch(image)
    host, path = (match["host"], match["path"]) if match else ("docker.io", image)
    if f"{host}/{path}" in on_nodes or image in on_nodes:
        return ok("images", f"{image} is on a machine")
    status = _registry_answers(host, path)
    if status == 200:
        return ok("images", f"{image} can be pulled")
    if status in (401, 403) and secrets:
        return unknown(
            "images", f"{image}: {host} wants credentials", f"check those of {', '.join(sorted(secrets))}"
        )
    if status in (401, 403, 404):
        remedy = (
            "push the images there (images/README.md) and set compile.registry; its credentials are the "
            "secret kubealign-registry"
        )
        return problem("images", f"{image}: {host} gives no such image ({status})", remedy)
    if host.startswith("registry.example."):
        return problem("images", f"{image}: {host} is an example", "set compile.registry to your own")
    return unknown(
        "images", f"{image}: {host} cannot be asked from here", "make sure that the cluster can pull it"
    )


def _registry_answers(host: str, path: str) -> int:
    """Status of the registry's answer for the image; 0 where there is none."""
    import urllib3

    name, _, tag = path.partition("@") if "@" in path else path.partition(":")
    server = "registry-1.docker.io" if host == "docker.io" else host
    url = f"https://{server}/v2/{name}/manifests/{tag or 'latest'}"
    accept = (
        "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*"
    )
    try:
        pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(5.0))
        return int(pool.request("HEAD", url, headers={"Accept": accept}).status)
    except urllib3.exceptions.HTTPError:
        return 0


def _resources(resources: JsonObject) -> Json:
    requests = {
        name: resources[key]
        for name, key in (("cpu", "resourceCpuRequest"), ("memory", "resourceMemoryRequest"))
        if key in resources
    }
    limits = {"memory": resources["resourceMemoryLimit"]} if "resourceMemoryLimit" in resources else {}
    accelerator = resources.get("accelerator") or {}
    if accelerator:
        limits[str(accelerator.get("resourceType") or accelerator.get("type"))] = str(
            accelerator.get("resourceCount") or accelerator.get("count")
        )
    return {"requests": requests, "limits": limits}


def _environment(task: JsonObject) -> list[Json]:
    plain = [
        {"name": one["name"], "value": one.get("value", "")} for one in task["container"].get("env") or ()
    ]
    secret = [
        {
            "name": key["envVar"],
            "valueFrom": {"secretKeyRef": {"name": one["secretName"], "key": key["secretKey"]}},
        }
        for one in task["pod"].get("secretAsEnv") or ()
        for key in one["keyToEnv"]
    ]
    return plain + secret


def _volumes(settings: JsonObject) -> Iterator[tuple[str, str, Json]]:
    """Name, place and source of each volume."""
    for one in settings.get("pvcMount") or ():
        name = str(one.get("constant") or one.get("pvcName"))
        yield name, one["mountPath"], {"persistentVolumeClaim": {"claimName": name}}
    for one in settings.get("emptyDirMounts") or ():
        yield one["volumeName"], one["mountPath"], {"emptyDir": {"sizeLimit": one["sizeLimit"]}}


def _number(value: object) -> object:
    """Numbers of 64 bits are text in the JSON of KFP's settings."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _remedy(text: str) -> str:
    if "PodSecurity" in text:
        return "compile the run file with this KubeAlign: its tasks keep to the restricted standard"
    if "quota" in text or "LimitRange" in text or "maximum" in text:
        return "raise the namespace's quota, or ask for less in compile.stages"
    if "PodDefault" in text or "conflict" in text:
        return "take out of the run file what a PodDefault sets as well"
    return "see what the server says"
