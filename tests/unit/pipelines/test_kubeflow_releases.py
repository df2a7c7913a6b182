"""What is compiled is what each release of Kubeflow Pipelines that works with it reads.

The API server and the compiler to Argo refuse a pipeline with a field that they do not know. Those that 2.16
knows are in ``kfp-2.16-fields.json``, by message: descriptors of kfp-pipeline-spec and kfp-kubernetes 2.16.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from kubealign_components.config import from_mapping
from kubealign_pipelines.checking.carried import check_carried
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.resources import CompileSettings
from support.compiled import compile_ir
from support.pipeline_shapes import SHAPES

KNOWN: dict[str, list[str]] = json.loads((Path(__file__).parent / "kfp-2.16-fields.json").read_text())
EVERYTHING = {
    "secrets": {"TOKEN": "one/key?"},
    "volumes": {"claim": "/data"},
    "annotations": {"note": "x"},
    "environment": {"A": "b"},
    "image_pull_secrets": ["registry"],
    "when_nothing_new": "stop",
    "model_registry": {"server": "http://registry"},
    "prices": {"gpu": 2.0},
    "stages": {
        "sample": {"tolerations": [{"key": "gpu", "operator": "Exists"}], "node_selector": {"pool": "a"}},
        "mix": {"timeout": 60, "scratch": "1Gi"},
        "train": {"nodes": 2, "accelerators": 8},
        "train_ppo": {"nodes": 2, "accelerators": 8},
    },
}


def fields(message: Message) -> Iterator[tuple[str, str]]:
    """Message and JSON name of every field that is set in ``message``, or below it."""
    for field, value in message.ListFields():
        if message.DESCRIPTOR.full_name.startswith("google.protobuf"):
            return
        yield message.DESCRIPTOR.full_name, field.json_name
        if field.message_type and field.message_type.GetOptions().map_entry:
            inner = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        elif field.message_type:
            inner = list(value) if field.is_repeated else [value]
        else:
            inner = []
        for one in inner:
            yield from fields(one)


def parsed(content: dict[str, Any], message: Message) -> set[tuple[str, str]]:
    """The fields of ``content``, all of which the installed release knows."""
    return set(fields(json_format.ParseDict(content, message)))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_is_one_that_the_oldest_release_knows(shape: str, tmp_path: Path) -> None:
    pipeline, parameters, _ = SHAPES[shape]
    settings = from_mapping(CompileSettings, EVERYTHING, "compile")
    spec, pods = compile_ir(tmp_path, pipeline, settings, parameters)
    used = parsed(spec, pipeline_spec_pb2.PipelineSpec())
    used |= parsed(spec["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig())
    for pod in pods.values():
        used |= parsed(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    messages = {message for message, _ in used}
    assert {"ml_pipelines.TaskConfigPassthrough", "kfp_kubernetes.SecurityContext"} <= messages
    assert {(message, name) for message, name in used if name not in KNOWN.get(message, [])} == set()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sources": [{"uri": "a.jsonl", "name": "{{item}}"}]}, "sources[0].name"),
        ({"reward_options": {"text": "\\boxed{{"}}, "reward_options.text"),
        ({"policy": "a", "sources": [{"uri": f"gs://bucket/{n:04d}.jsonl"} for n in range(5000)]}, "sources"),
    ],
)
def test_what_argo_and_the_driver_cannot_take_is_found(values: dict[str, Any], named: str) -> None:
    [finding] = check_carried(values)
    assert finding.name == named


def test_parameters_of_every_other_kind_are_taken() -> None:
    plain = {"text": "a {b} }} {%", "nested": {"a": {"b": {"c": [{}]}}}, "large": "x" * 100_000}
    assert not list(check_carried(plain))


def test_a_run_on_this_machine_takes_them_and_one_on_a_cluster_does_not() -> None:
    settings = CompileSettings(environment={"PATTERN": "{{x}}"})
    for here in (False, True):
        report = check_run("offline_alignment", {"policy": "m"}, settings, complete=False, here=here)
        assert any("{{" in str(one.value) for one in report.findings) == (not here)
