"""A compiled pipeline as the Kubernetes objects in which Kubeflow Pipelines can keep its pipelines."""

from __future__ import annotations

from pathlib import Path

import yaml

from kubealign.cluster.client import names_of
from kubealign_components.whole_file import whole_file

API = "pipelines.kubeflow.org/v2beta1"
Object = dict[str, object]


def pipeline_objects(package: Path, description: str = "", namespace: str = "") -> list[Object]:
    """A Pipeline and its PipelineVersion, of the compiled ``package``.

    A version cannot be changed once it is there, so its name says what is in it: applying an equal one
    changes nothing, and another one stands beside it.

    Args:
        package: the YAML that ``compile`` wrote.
        description: of the pipeline, as the UI shows it.
        namespace: of the objects; by default wherever they are applied.
    """
    spec, *platforms = yaml.load_all(package.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    name, version = names_of(package)
    shown = {"description": description} if description else {}
    platform = {"platformSpec": platforms[0]} if platforms else {}
    return [
        _object("Pipeline", name, namespace, {"displayName": name, **shown}),
        _object(
            "PipelineVersion",
            f"{name}-{version}",
            namespace,
            {"displayName": version, "pipelineName": name, "pipelineSpec": spec, **platform, **shown},
        ),
    ]


def write_objects(objects: list[Object], path: Path) -> None:
    """Write ``objects`` to ``path``, for ``kubectl apply`` and whoever applies what a repository holds."""
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        yaml.dump_all(objects, file, Dumper=yaml.CSafeDumper, sort_keys=True, allow_unicode=True)


def _object(kind: str, name: str, namespace: str, spec: Object) -> Object:
    scope = {"namespace": namespace} if namespace else {}
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **scope}, "spec": spec}
