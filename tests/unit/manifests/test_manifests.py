"""The manifests build, are what is under version control, and are valid and consistent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from golden.update import MANIFESTS, OVERLAYS, built, golden_manifest
from kubealign_components import __version__
from kubealign_components.store import scheme_of, store_for

SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = "1.37"
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
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def _pod_with(spec: dict[str, Any]) -> dict[str, Any]:
    """A pod as the admission webhook makes it of the PodDefault."""
    container = {"name": "main", "image": "kubealign/data", "env": spec.get("env", [])}
    container["volumeMounts"] = spec.get("volumeMounts", [])
    pod = {"containers": [container], "volumes": spec.get("volumes", [])}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}


def _closed(schema: Any) -> Any:
    """``schema`` that refuses fields it does not name, as the API server prunes them."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _check(one: dict[str, Any]) -> None:
    """Raises when ``one`` is not valid against its schema."""
    group = one["apiVersion"].partition("/")[0]
    if one["kind"] == "PodDefault":
        jsonschema.validate(one["spec"], POD_DEFAULT)
        kubernetes_validate.validate(_pod_with(one["spec"]), KUBERNETES, strict=True)
    elif group == "kueue.x-k8s.io":
        assert one["apiVersion"] == "kueue.x-k8s.io/v1beta2"
        schema = json.loads((SCHEMAS / f"{one['kind']}.v1beta2.json").read_text())
        jsonschema.validate(one["spec"], _closed(schema["properties"]["spec"]))
    else:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


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
    ],
)
def test_a_misspelt_field_is_not_valid(kind: str, name: str, field: str) -> None:
    one = _only(built("gke"), kind, name)
    place, _, key = field.rpartition(".")
    (one[place] if place else one)[key] = []
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        _check(one)


@each_overlay
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


@each_overlay
def test_the_roles_grant_what_is_needed_and_no_more(overlay: str) -> None:
    objects = built(overlay)
    granted = {
        (group, resource): rule
        for role in (one for one in objects if one["kind"] == "Role")
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


@each_overlay
def test_every_role_is_bound_to_the_service_account(overlay: str) -> None:
    objects = built(overlay)
    roles = {one["metadata"]["name"] for one in objects if one["kind"] == "Role"}
    bindings = [one for one in objects if one["kind"] == "RoleBinding"]
    assert {one["roleRef"]["name"] for one in bindings} == roles
    for one in bindings:
        account = {"kind": "ServiceAccount", "name": "kubealign", "namespace": "kubealign"}
        assert one["subjects"] == [account]


@each_overlay
def test_stages_and_kubeflow_use_one_store(overlay: str) -> None:
    objects = built(overlay)
    launcher = _only(objects, "ConfigMap", "kfp-launcher")["data"]
    root, providers = launcher["defaultPipelineRoot"], yaml.safe_load(launcher["providers"])
    store_for(root)
    assert set(providers) == {scheme_of(root)}
    if scheme_of(root) == "s3":
        default = providers["s3"]["default"]
        spec = _only(objects, "PodDefault", "kubealign-store")["spec"]
        values = {one["name"]: one.get("value") for one in spec["env"]}
        assert values["AWS_ENDPOINT_URL_S3"] == f"http://{default['endpoint']}"
        assert _secrets(spec) == {default["credentials"]["secretRef"]["secretName"]}


@each_overlay
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
