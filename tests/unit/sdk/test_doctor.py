"""A cluster held against a run file: a healthy one, and each thing that may be wrong with it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import kubealign_pipelines
from golden.update import MANIFESTS, built
from kubealign.cli.main import main
from kubealign.cluster.kube import Kubernetes
from kubealign.doctor import versions
from kubealign.doctor.capacity import shortages
from kubealign.doctor.diagnosis import Subject
from kubealign.doctor.permissions import RUN, TRAIN
from kubealign.runfile import load_run_file
from support.fake_kfp import Kube

PARAMS = Path(kubealign_pipelines.__file__).parent / "params"
STANDALONE = PARAMS / "standalone.yaml"
CORE = "/api/v1/namespaces/{0}"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{0}"
DEPLOYMENT = "/apis/apps/v1/namespaces/{0}/deployments/{1}"
ARGO = "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"
POLICY = {"spec": {"templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}}}}
IMAGES = ("kubealign/data:0.1.0", "kubealign/sample:0.1.0-cpu", "kubealign/train:0.1.0-cpu")

Break = Callable[[Kube], object]


def deployment(tag: str) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"containers": [{"image": f"ghcr.io/kubeflow/x:{tag}"}]}}}}


def node(cpu: str = "8", memory: str = "16Gi") -> dict[str, Any]:
    images = [{"names": [f"docker.io/{image}"]} for image in IMAGES]
    return {"spec": {}, "status": {"allocatable": {"cpu": cpu, "memory": memory}, "images": images}}


def namespace_objects(name: str, account: str) -> dict[str, Any]:
    here = CORE.format(name)
    return {
        here: {"metadata": {"name": name}},
        f"{here}/secrets/mlpipeline-minio-artifact": {"data": {"accesskey": "YQ==", "secretkey": "Yg=="}},
        f"{here}/serviceaccounts/{account}": {},
        f"{here}/persistentvolumeclaims/kubealign-model-cache": {
            "spec": {"accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound"},
        },
        f"/apis/batch/v1/namespaces/{name}/jobs/kubealign-model-cache": {"status": {"succeeded": 1}},
    }


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    """Kubeflow Pipelines 2.17 by itself, with the overlay ``standalone``."""
    server = Kube()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    server.objects = {
        **namespace_objects("kubeflow", "pipeline-runner"),
        DEPLOYMENT.format("kubeflow", "ml-pipeline"): deployment("2.17.0"),
        "/api/v1/namespaces/kubeflow/services/seaweedfs": {},
        "/version": {"gitVersion": "v1.34.4+k3s1"},
        ARGO: {"data": {"workflowDefaults": yaml.safe_dump(POLICY)}},
    }
    server.collections = {
        "/api/v1/nodes": [node()],
        "/api/v1/namespaces/kubeflow/resourcequotas": [],
        "/api/v1/namespaces/kubeflow/limitranges": [],
    }
    with server.serving():
        yield server


def doctor(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words])


def by_state(done: Result) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["state"], []).append(f"{finding['check']}: {finding['fact']}")
    return found


def test_a_healthy_cluster_has_nothing_to_mend(kube: Kube) -> None:
    done = doctor("-f", str(STANDALONE), "--json")
    assert done.exit_code == 0, done.output
    assert by_state(done).keys() == {"ok"}
    assert {line.split()[0] for line in kube.asked} == {"GET", "POST"}
    text = doctor("-f", str(STANDALONE))
    assert text.exit_code == 0 and "version 2.17" in text.output


def without(path: str) -> Break:
    return lambda kube: kube.objects.pop(path)


def with_object(path: str, content: dict[str, Any]) -> Break:
    return lambda kube: kube.objects.update({path: content})


def with_items(path: str, *items: dict[str, Any]) -> Break:
    return lambda kube: kube.collections.update({path: list(items)})


def with_policy(policy: str) -> Break:
    spec = copy.deepcopy(POLICY)
    spec["spec"]["templateDefaults"]["retryStrategy"]["retryPolicy"] = policy
    return with_object(ARGO, {"data": {"workflowDefaults": yaml.safe_dump(spec)}})


LAUNCHER = "/api/v1/namespaces/kubeflow/configmaps/kfp-launcher"
MINIO = {
    "defaultPipelineRoot": "minio://b/r",
    "providers": "minio: {default: {endpoint: minio-service.kubeflow:9000}}",
}
SMALL = {"spec": {"hard": {"requests.memory": "1Gi"}}}
LIMITED = {"spec": {"limits": [{"type": "Container", "max": {"cpu": "100m"}}]}}


@pytest.mark.parametrize(
    ("breaking", "told"),
    [
        (with_object(DEPLOYMENT.format("kubeflow", "ml-pipeline"), deployment("2.15.2")), "version 2.15"),
        (with_object("/version", {"gitVersion": "v1.28.9"}), "version 1.28"),
        (with_policy("Always"), "for whole graphs"),
        (with_object(LAUNCHER, {"data": {"defaultPipelineRoot": "hdfs://x/y"}}), "hdfs://x/y: no store"),
        (with_object(LAUNCHER, {"data": MINIO}), "there is no Service minio-service in namespace kubeflow"),
        (without("/api/v1/namespaces/kubeflow/services/seaweedfs"), "there is no Service seaweedfs"),
        (without("/api/v1/namespaces/kubeflow/secrets/mlpipeline-minio-artifact"), "is not there"),
        (without("/api/v1/namespaces/kubeflow/serviceaccounts/pipeline-runner"), "no pipeline-runner"),
        (lambda kube: kube.forbidden.add("create workflowtaskresults"), "may not create workflowtaskresults"),
        (without("/api/v1/namespaces/kubeflow/persistentvolumeclaims/kubealign-model-cache"), "no claim"),
        (
            with_object(
                "/apis/batch/v1/namespaces/kubeflow/jobs/kubealign-model-cache", {"status": {"failed": 4}}
            ),
            "has not made it writable",
        ),
        (with_items("/api/v1/namespaces/kubeflow/resourcequotas", SMALL), "the namespace allows 1Gi"),
        (with_items("/api/v1/namespaces/kubeflow/limitranges", LIMITED), "the namespace allows 0.1"),
    ],
)
def test_what_makes_a_run_fail_is_told_with_its_remedy(kube: Kube, breaking: Break, told: str) -> None:
    breaking(kube)
    done = doctor("-f", str(STANDALONE), "--json")
    assert done.exit_code == 1
    problems = [one for one in json.loads(done.stdout)["findings"] if one["state"] == "problem"]
    assert any(told in one["fact"] and one["remedy"] for one in problems), problems


def test_what_may_not_be_looked_at_is_unknown_and_no_problem(kube: Kube) -> None:
    kube.forbidden |= {ARGO, "/api/v1/nodes", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"}
    kube.forbidden.add(DEPLOYMENT.format("kubeflow", "ml-pipeline"))
    found = by_state(doctor("-f", str(STANDALONE), "--json"))
    assert len(found["unknown"]) >= 4
    assert not [one for one in found.get("problem", []) if not one.startswith("images")]


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = doctor("-f", str(STANDALONE))
    assert done.exit_code == 1 and done.output.count("\n") == 1 and "set KUBECONFIG" in done.output


def test_a_namespace_that_does_not_exist_is_named(kube: Kube) -> None:
    done = doctor("-f", str(STANDALONE), "--namespace", "nowhere")
    assert done.exit_code == 2 and "--namespace='nowhere'" in done.output


@pytest.fixture
def profile(kube: Kube, tmp_path: Path) -> Path:
    """A Kubeflow profile with the ``kind`` overlay, and a run file for it."""
    queue = next(one for one in built("kind") if one["kind"] == "ClusterQueue")
    defaults = [one["spec"] for one in built("kind") if one["kind"] == "PodDefault"]
    kueue = "/apis/kueue.x-k8s.io/v1beta2"
    kube.objects |= {
        **namespace_objects("kubealign", "kubealign"),
        CRD.format("workloads.kueue.x-k8s.io"): {"spec": {}},
        DEPLOYMENT.format("kueue-system", "kueue-controller-manager"): deployment("v0.17.8"),
        f"{kueue}/namespaces/kubealign/localqueues/alignment": {"spec": {"clusterQueue": "kubealign"}},
        f"{kueue}/clusterqueues/kubealign": queue,
    }
    kube.pod_defaults = defaults
    content = yaml.safe_load(STANDALONE.read_text())
    content["parameters"]["work"] = "minio://mlpipeline/private-artifacts/kubealign/work"
    content["compile"]["installation"] = "profile"
    content["compile"]["labels"] = {
        "app.kubernetes.io/part-of": "kubealign",
        "kueue.x-k8s.io/queue-name": "alignment",
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def problems(done: Result) -> list[str]:
    return by_state(done).get("problem", [])


def test_a_profile_is_held_against_its_own_needs(kube: Kube, profile: Path) -> None:
    assert problems(doctor("-f", str(profile), "--json")) == []
    kube.pod_defaults = []
    (told,) = problems(doctor("-f", str(profile), "--json"))
    assert told.startswith("PodDefaults: pods get no model cache")


@pytest.mark.parametrize(
    "settings", [{"environment": {"HF_HOME": "/tmp/hub"}}, {"volumes": {"mine": "/models"}}], ids=str
)
def test_what_a_pod_default_sets_otherwise_is_told(
    kube: Kube, profile: Path, settings: dict[str, dict[str, str]]
) -> None:
    """The webhook refuses such a pod, and Argo tells it where nobody looks."""
    content = yaml.safe_load(profile.read_text())
    content["compile"] |= settings
    profile.write_text(yaml.safe_dump(content))
    told = problems(doctor("-f", str(profile), "--json"))
    assert any("is refused" in one and "conflict" in one for one in told), told


def test_a_namespace_that_is_no_profile_may_not_reach_kubeflow_s_store(kube: Kube, profile: Path) -> None:
    def told() -> list[str]:
        found = by_state(doctor("-f", str(profile), "--json")).get("warning", [])
        return [one for one in found if one.startswith("store connections")]

    assert len(told()) == 1
    labels = {"app.kubernetes.io/part-of": "kubeflow-profile"}
    kube.objects["/api/v1/namespaces/kubealign"] = {"metadata": {"name": "kubealign", "labels": labels}}
    assert not told()


def test_the_table_of_versions_is_the_one_that_a_cluster_is_held_to() -> None:
    text = (MANIFESTS / "README.md").read_text()
    rows = re.findall(r"^\| (Kube.+|JobSet|Kueue) \| ([\d., ]+)( or later)? \| .{9,} \|$", text, re.M)
    stated = {
        name: ([tuple(map(int, one.split("."))) for one in numbers.split(", ")], bool(later))
        for name, numbers, later in rows
    }
    assert stated.pop("Kubernetes") == ([versions.KUBERNETES], True)
    parts = (versions.PIPELINES, versions.TRAINER, versions.JOBSET, versions.KUEUE)
    assert stated == {one.name: (list(one.tried or [one.least]), not one.tried) for one in parts}
    assert all(one.least == min(one.tried or [one.least]) for one in parts)


def test_quotas_that_never_fit_and_foreign_prefixes_are_told(kube: Kube, profile: Path) -> None:
    content = yaml.safe_load(profile.read_text())
    content["parameters"]["work"] = "minio://mlpipeline/kubealign/work"
    content["compile"]["stages"]["train"] = {"accelerators": 8}
    profile.write_text(yaml.safe_dump(content))
    told = problems(doctor("-f", str(profile), "--json"))
    assert any("train asks for 8 nvidia.com/gpu" in one and "0 at most" in one for one in told)
    assert any("work" in one and "private-artifacts/kubealign/" in one for one in told)


def test_training_on_several_nodes_wants_a_trainer_that_can_be_patched(kube: Kube, profile: Path) -> None:
    content = yaml.safe_load(profile.read_text())
    content["compile"]["stages"]["train"]["nodes"] = 2
    profile.write_text(yaml.safe_dump(content))
    told = problems(doctor("-f", str(profile), "--json"))
    assert {one.partition(":")[0] for one in told} == {"Kubeflow Trainer", "JobSet"}
    kube.objects[CRD.format("trainjobs.trainer.kubeflow.org")] = {"spec": {"podSpecOverrides": {}}}
    kube.objects[CRD.format("jobsets.jobset.x-k8s.io")] = {"spec": {}}
    (told,) = problems(doctor("-f", str(profile), "--json"))
    assert "has no spec.runtimePatches" in told


@pytest.mark.parametrize("file", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_quotas_of_gke_hold_every_run_file_that_ships(file: Path) -> None:
    subject = Subject(Kubernetes(), load_run_file(file))
    queue = next(one for one in built("gke") if one["kind"] == "ClusterQueue")
    assert list(shortages(subject, queue["spec"])) == []


def test_permissions_asked_for_are_those_that_the_roles_grant() -> None:
    granted = {
        (group, resource, verb)
        for name in ("role", "role-train")
        for rule in yaml.safe_load((MANIFESTS / "base" / f"{name}.yaml").read_text())["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(RUN + TRAIN) <= granted
    # What is not asked for is the watching of what may be read.
    assert {verb for _, _, verb in granted - set(RUN + TRAIN)} <= {"list", "watch"}
