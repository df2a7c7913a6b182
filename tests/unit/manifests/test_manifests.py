"""The manifests build, are what is under version control, and are valid and consistent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime

from golden.update import MANIFESTS, OVERLAYS, built, golden_manifest
from kubealign.cli.main import main
from kubealign_components import __version__, images
from kubealign_components.store import scheme_of, store_for
from kubealign_components.store.base import KUBEFLOW
from kubealign_components.trainjob.manifest import job_name
from kubealign_pipelines.stage_resources import STANDALONE
from support.fake_admission import refused_job_set
from support.fake_kubernetes_http import closed

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ("1.29", "1.37")
"""The earliest release that works, and the newest."""
POD_DEFAULT = {
    "type": "object",
    "required": ["selector"],
    "additionalProperties": False,
    "properties": {
        "desc": {"type": "string"},
        "selector": {"type": "object"},
        "env": {"type": "array"},
        "volumes": {"type": "array"},
        "volumeMounts": {"type": "array"},
    },
}
"""What the manifests use of a PodDefault; env, volumes and mounts are checked as those of a pod."""
CLUSTER_SCOPED = {"ClusterQueue", "ResourceFlavor"}
EXPECTED_RULES = {
    ("argoproj.io", "workflowtaskresults"): ["create", "patch"],
    ("", "configmaps"): ["get", "list", "watch"],
    ("", "pods"): ["get", "list", "watch"],
}
OF_OUR_CODE = ("kubealign-train", "kubealign-gc")
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
each_profile = pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "standalone"])
"""Those for a Kubeflow profile; the other brings no more than the model cache."""


def _pod_with(spec: dict[str, Any]) -> dict[str, Any]:
    """A pod as the admission webhook makes it of the PodDefault."""
    container = {"name": "main", "image": "kubealign/data", "env": spec.get("env", [])}
    container["volumeMounts"] = spec.get("volumeMounts", [])
    pod = {"containers": [container], "volumes": spec.get("volumes", [])}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}


def _check(one: dict[str, Any]) -> None:
    """Raises when ``one`` is not valid against its schema."""
    group = one["apiVersion"].partition("/")[0]
    if one["kind"] == "PodDefault":
        jsonschema.validate(one["spec"], POD_DEFAULT)
        _validate(_pod_with(one["spec"]))
    elif group == "kueue.x-k8s.io":
        assert one["apiVersion"] == "kueue.x-k8s.io/v1beta2"
        schema = json.loads((SCHEMAS / f"{one['kind']}.v1beta2.json").read_text())
        jsonschema.validate(one["spec"], closed(schema["properties"]["spec"]))
    elif group == "trainer.kubeflow.org":
        # The models pass over what they do not know, so that only what comes back was known.
        runtime = TrainerV1alpha1TrainingRuntime.from_dict(one)
        assert runtime is not None
        assert runtime.to_dict() == one
        for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
            _validate(_job_of(job))
    else:
        _validate(one)


def _validate(one: dict[str, Any]) -> None:
    for release in KUBERNETES:
        kubernetes_validate.validate(one, release, strict=True)


def _job_of(replicated: dict[str, Any]) -> dict[str, Any]:
    """The Job that the JobSet makes of one of its ``replicatedJobs``."""
    template = replicated["template"]
    metadata = {**template["metadata"], "name": replicated["name"]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}


def _only(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}"
    return found[0]


def _secrets(value: Any) -> set[str]:
    """Names of the secrets that ``value`` needs (not those it can do without)."""
    if isinstance(value, list):
        return set().union(*map(_secrets, value))
    if not isinstance(value, dict):
        return set()
    own = value.get("secretKeyRef", {})
    names = {own["name"]} if own and not own.get("optional") else set()
    return names.union(*map(_secrets, value.values()))


@each_overlay
def test_an_overlay_builds_what_is_golden(overlay: str) -> None:
    kept = list(yaml.safe_load_all(golden_manifest(overlay).read_text()))
    assert built(overlay) == kept, "run `make golden` and look at the difference"


@each_overlay
def test_every_object_is_valid(overlay: str) -> None:
    for one in built(overlay):
        _check(one)


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [
        ("ServiceAccount", "kubealign", "secret"),
        ("NetworkPolicy", "kubealign", "spec.ingres"),
        ("LocalQueue", "alignment", "spec.cluster"),
        ("ClusterQueue", "kubealign", "spec.cohorts"),
        ("ResourceFlavor", "kubealign-gpu", "spec.taints"),
        ("PodDefault", "kubealign", "spec.mounts"),
        ("TrainingRuntime", "torch-distributed", "spec.mlPolicies"),
    ],
)
def test_a_misspelt_field_is_not_valid(kind: str, name: str, field: str) -> None:
    one = _only(built("gke"), kind, name)
    place, _, key = field.rpartition(".")
    (one[place] if place else one)[key] = []
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError, AssertionError)):
        _check(one)


@each_profile
def test_objects_are_labelled_and_in_one_namespace(overlay: str) -> None:
    for one in built(overlay):
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/version"] == __version__, one["metadata"]["name"]
        assert {"name", "part-of", "managed-by", "component"} <= {key.partition("/")[2] for key in labels}
        namespace = None if one["kind"] in CLUSTER_SCOPED else "kubealign"
        assert one["metadata"].get("namespace") == namespace, one["metadata"]["name"]
        assert one["kind"] != "Secret"


def test_a_file_holds_one_object() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        assert len(list(yaml.safe_load_all(path.read_text()))) == 1, path


@each_profile
def test_the_roles_grant_what_is_needed_and_no_more(overlay: str) -> None:
    objects = built(overlay)
    granted = {
        (group, resource): rule
        for role in (one for one in objects if one["kind"] == "Role")
        if role["metadata"]["name"] not in OF_OUR_CODE
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    secrets = granted.pop(("", "secrets"), {"verbs": ["get"], "resourceNames": []})
    assert {key: rule["verbs"] for key, rule in granted.items()} == EXPECTED_RULES
    assert granted["", "configmaps"]["resourceNames"] == ["kfp-launcher"]
    assert secrets["verbs"] == ["get"]
    providers = yaml.safe_load(_only(objects, "ConfigMap", "kfp-launcher")["data"]["providers"])
    named = [one["default"]["credentials"].get("secretRef") for one in providers.values()]
    assert secrets["resourceNames"] == [one["secretName"] for one in named if one]


@each_profile
def test_an_overlay_leaves_the_roles_of_our_code_as_they_are(overlay: str) -> None:
    """Theirs are held to the calls of the code in test_train_job.py and test_gc.py."""
    for name in OF_OUR_CODE:
        file = MANIFESTS / "base" / f"role-{name.removeprefix('kubealign-')}.yaml"
        assert _only(built(overlay), "Role", name)["rules"] == yaml.safe_load(file.read_text())["rules"]


@each_profile
def test_every_role_is_bound_to_its_service_account(overlay: str) -> None:
    objects = built(overlay)
    roles = {one["metadata"]["name"] for one in objects if one["kind"] == "Role"}
    bindings = [one for one in objects if one["kind"] == "RoleBinding"]
    assert {one["roleRef"]["name"] for one in bindings} == roles
    for one in bindings:
        name = "kubealign-gc" if one["roleRef"]["name"] == "kubealign-gc" else "kubealign"
        account = {"kind": "ServiceAccount", "name": name, "namespace": "kubealign"}
        assert one["subjects"] == [account]
        _only(objects, "ServiceAccount", name)


@each_profile
def test_the_gc_runs_our_image_as_its_own_account_without_rights_on_its_node(overlay: str) -> None:
    spec = _only(built(overlay), "CronJob", "kubealign-gc")["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == images.DATA
    assert " ".join(container["command"]) == "kubealign gc" and "gc" in main.commands
    assert pod["spec"]["serviceAccountName"] == "kubealign-gc"
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    policy = _only(built(overlay), "NetworkPolicy", "kubealign-gc")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


@each_profile
def test_nodes_of_a_training_may_talk_to_each_other_alone(overlay: str) -> None:
    policy = _only(built(overlay), "NetworkPolicy", "kubealign-train")["spec"]
    nodes = {"podSelector": policy["podSelector"]}
    assert policy["ingress"] == [{"from": [nodes]}]
    assert policy["egress"] == [{"to": [nodes]}]
    of_runs = _only(built(overlay), "NetworkPolicy", "kubealign")["spec"]["podSelector"]["matchLabels"]
    assert of_runs.items() < policy["podSelector"]["matchLabels"].items()


@each_profile
@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({}, ""),
        ({"name": "not-a-name"}, "rule name 'not-a-name'"),
        ({"onJobFailureReasons": ["Evicted"]}, "job failure reason 'Evicted'"),
    ],
)
def test_jobset_takes_what_trainer_makes_of_the_training_runtime(
    overlay: str, rule: dict[str, Any], told: str
) -> None:
    """Its webhook has rules that no schema tells; a JobSet that it refuses leaves a TrainJob waiting."""
    spec = _only(built(overlay), "TrainingRuntime", "torch-distributed")["spec"]["template"]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0, "a lost node would end the training"
    spec["failurePolicy"]["rules"][0] |= rule
    refused = refused_job_set(job_name("gs://bucket/work/job"), spec, 1000)
    assert told in refused and bool(refused) == bool(told)


@each_profile
def test_stages_and_kubeflow_use_one_store(overlay: str) -> None:
    objects = built(overlay)
    launcher = _only(objects, "ConfigMap", "kfp-launcher")["data"]
    root, providers = launcher["defaultPipelineRoot"], yaml.safe_load(launcher["providers"])
    store_for(root)
    assert set(providers) == {scheme_of(root)}
    if scheme_of(root) in ("s3", "minio"):
        default = providers[scheme_of(root)]["default"]
        spec = _only(objects, "PodDefault", "kubealign-store")["spec"]
        values = {one["name"]: one.get("value") for one in spec["env"]}
        assert values["AWS_ENDPOINT_URL_S3"] == f"http://{default['endpoint']}"
        assert _secrets(spec) == {default["credentials"]["secretRef"]["secretName"]}


def test_beside_kubeflow_pipelines_alone_there_is_only_the_model_cache() -> None:
    kinds = {(one["kind"], one["metadata"]["namespace"]) for one in built("standalone")}
    assert kinds == {("PersistentVolumeClaim", "kubeflow"), ("Job", "kubeflow")}


@each_overlay
def test_the_model_cache_is_opened_to_the_user_of_the_images(overlay: str) -> None:
    """User 10001 is not root, to whom a file server gives its folders; and the pod may do nothing else."""
    objects = built(overlay)
    pod = _only(objects, "Job", "kubealign-model-cache")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["chmod", "1777", container["volumeMounts"][0]["mountPath"]]
    assert container["image"] == images.DATA
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["FOWNER"]}
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    _only(objects, "PersistentVolumeClaim", claim)
    mounted = {path for name, path in STANDALONE.volumes.items() if name == claim}
    assert mounted == {container["volumeMounts"][0]["mountPath"]}


@each_profile
def test_what_a_profile_gives_by_pod_defaults_is_what_tasks_bring_elsewhere(overlay: str) -> None:
    objects = built(overlay)
    given = _only(objects, "PodDefault", "kubealign")["spec"]
    caches = {one["name"]: one["value"] for one in given["env"] if "value" in one}
    assert (
        caches.keys()
        == {"HF_HOME", "KUBEALIGN_CACHE"}
        == {one["name"] for one in given["env"]} - {"HF_TOKEN"}
    )
    assert caches.items() <= STANDALONE.environment.items()
    if overlay == "kind":
        store = _only(objects, "PodDefault", "kubealign-store")["spec"]["env"]
        values = {one["name"]: one["value"] for one in store if "value" in one}
        assert values.items() <= STANDALONE.environment.items()
        keys = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in store if "valueFrom" in one}
        named = {name: f"{one['name']}/{one['key']}" for name, one in keys.items()}
        assert named.items() <= STANDALONE.secrets.items()


@each_profile
def test_images_of_a_registry_with_credentials_can_be_pulled(overlay: str) -> None:
    for account in (one for one in built(overlay) if one["kind"] == "ServiceAccount"):
        assert account["imagePullSecrets"] == [{"name": "kubealign-registry"}]


@each_overlay
def test_the_store_of_kubeflow_is_asked_where_kubeflow_has_it(overlay: str) -> None:
    """The Service of its releases 2.16 and 2.17, by the one scheme that its UI has keys for."""
    text = golden_manifest(overlay).read_text()
    assert "minio-service" not in text
    if "kfp-launcher" in text and "mlpipeline-minio-artifact" in text:
        root = _only(built(overlay), "ConfigMap", "kfp-launcher")["data"]["defaultPipelineRoot"]
        assert root == "minio://mlpipeline/private-artifacts/kubealign/v2/artifacts"
        assert f"value: {KUBEFLOW}\n" in text


@each_profile
def test_every_reference_has_its_object(overlay: str) -> None:
    objects = built(overlay)
    queue = _only(objects, "ClusterQueue", "kubealign")["spec"]
    assert _only(objects, "LocalQueue", "alignment")["spec"]["clusterQueue"] == "kubealign"
    flavors = {one["name"] for group in queue["resourceGroups"] for one in group["flavors"]}
    assert flavors == {one["metadata"]["name"] for one in objects if one["kind"] == "ResourceFlavor"}
    spec = _only(objects, "PodDefault", "kubealign")["spec"]
    _only(objects, "PersistentVolumeClaim", spec["volumes"][0]["persistentVolumeClaim"]["claimName"])
    policy = _only(objects, "NetworkPolicy", "kubealign")["spec"]
    assert policy["podSelector"] == spec["selector"]
