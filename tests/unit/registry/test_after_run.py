"""What ends a run: its model goes into the registry by itself, once, and a silent registry costs no run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from model_registry.core import ModelRegistryAPIClient

from kubealign.local.registering import register_here
from kubealign.local.results import Output, Results
from kubealign.runfile import RunFile
from kubealign_components.artifacts import describe
from kubealign_components.data.choice_rows import CHOICE
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import end_early
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.registry.after_run import ATTEMPTS, register_compared
from kubealign_components.registry.server import TOKEN
from kubealign_pipelines import build
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import REGISTER
from kubealign_pipelines.registration import RegistrySettings, register
from kubealign_pipelines.resources import CompileSettings
from support.fake_registry import Registry

NOWHERE = "http://127.0.0.1:9"
CONFIGURED = CompileSettings(model_registry=RegistrySettings(server=NOWHERE, name="assistant"))
VARIANTS = [{"train": {"beta": beta}} for beta in (0.1, 0.2)]


def evaluation(model: Dataset, output: Path) -> Dataset:
    stats = Stats()
    stats.numbers["reward_gain"] = 0.25
    with DatasetWriter(str(output), EVALUATION, derive("evaluate", 1, {}, inputs={"model": model})) as writer:
        return writer.commit(stats)


def versions(registry: Registry) -> list[tuple[str, float]]:
    """Names and gains of the versions that the registry holds."""
    held = registry.held["model_versions"]
    return [(v["name"], v["customProperties"]["evaluation.reward_gain"]["double_value"]) for v in held]


def test_the_task_registers_the_compared_model_and_a_second_run_adds_nothing(
    registry: Registry, model: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.token = "secret"
    monkeypatch.setenv(TOKEN, "secret")
    made = evaluation(model, tmp_path / "evaluation")
    artifact = dsl.Dataset(uri=made.uri, metadata=describe(made.manifest))
    own = {"server": registry.host, "name": "assistant", "author": "", "ca_cert": "", "run_name": "nightly"}
    first = register.python_func(compared=artifact, run_id="abc", **own)
    assert first.startswith("registered: model assistant")
    assert register.python_func(compared=artifact, run_id="def", **own).startswith("brought up to date")
    assert versions(registry) == [(model.manifest.fingerprint, 0.25)]
    client = ModelRegistryAPIClient.insecure_connection(registry.host, registry.server_port, registry.token)
    version = registry.held["model_versions"][0]["id"]
    stored = asyncio.run(client.get_model_artifact_by_params("assistant", version))
    assert (stored.model_source_id, stored.model_source_name) == ("def", "nightly")


def test_of_a_choice_the_chosen_model_is_registered(
    registry: Registry, model: Dataset, tmp_path: Path
) -> None:
    made = [evaluation(model, tmp_path / "chosen")]
    made.append(evaluation(made[0], tmp_path / "other"))
    inputs = {f"evaluation_{number}": one for number, one in enumerate(reversed(made), start=1)}
    blank: dict[str, Any] = {"variant": "", "settings": "{}", "model": "", "on_front": True, "rung": 1}
    rows = [{**blank, "evaluation": m.manifest.fingerprint, "chosen": m is made[0]} for m in made]
    own = derive("choose", 1, {}, inputs=inputs)
    with DatasetWriter(str(tmp_path / "choice"), CHOICE, own) as writer:
        writer.write_rows(rows)
        chosen = writer.commit(Stats())
    assert "version " + model.manifest.fingerprint in register_compared(chosen, server=registry.host)


def test_a_registry_that_is_silent_is_asked_again_and_then_told_how_to_be_asked_by_hand(
    registry: Registry, model: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = evaluation(model, tmp_path / "evaluation")
    registry.fails_at = "POST model_versions"
    said = register_compared(made, server=registry.host, name="my model", run_id="abc", pause=0.001)
    assert said.startswith("not registered: ") and "answers 500" in said and said in capsys.readouterr().err
    assert said.endswith(f"kubealign register abc --name 'my model' --server {registry.host}")
    assert sum("model_versions" in str(one) and "POST" in str(one) for one in registry.asked) == ATTEMPTS


def test_of_a_run_that_ended_early_nothing_is_registered(
    registry: Registry, model: Dataset, tmp_path: Path
) -> None:
    output = str(tmp_path / "ended")
    end_early(
        "no answers", stage="evaluate", version=1, schema=EVALUATION, output=output, inputs={"model": model}
    )
    said = register_compared(Dataset.open(output, allow_empty=True), server=registry.host)
    assert said == "not registered: there is no model: no answers" and not registry.asked


@pytest.mark.parametrize(
    ("pipeline", "parameters", "last"),
    [
        ("offline_alignment", {}, "evaluate"),
        ("offline_alignment", {"rounds": 2}, "evaluate-round-2"),
        ("offline_alignment", {"rounds": 2, "rounds_stop": "no_gain"}, "choose"),
        ("offline_alignment", {"variants": VARIANTS}, "choose"),
        ("salmon", {}, "evaluate"),
        ("salmon", {"rl": "offline"}, "evaluate"),
        ("salmon", {"benchmark_tasks": ["arc_easy"]}, "evaluate"),
        ("offline_alignment", {"variants": VARIANTS, "benchmark_tasks": ["arc_easy"]}, "choose"),
    ],
)
def test_it_is_the_last_task_that_no_cache_answers(
    pipeline: str, parameters: dict[str, object], last: str
) -> None:
    tasks = build(pipeline, CONFIGURED, parameters).pipeline_spec.root.dag.tasks
    task = tasks[REGISTER]
    assert task.inputs.artifacts["compared"].task_output_artifact.producer_task == last
    assert not task.caching_options.enable_cache
    assert all(REGISTER not in other.dependent_tasks for other in tasks.values())
    assert ("benchmark" in tasks) == ("benchmark" in task.dependent_tasks)
    assert REGISTER not in build(pipeline, CompileSettings(), parameters).pipeline_spec.root.dag.tasks


def test_a_run_here_registers_when_it_has_ended_and_has_no_task_for_it(
    registry: Registry, model: Dataset, tmp_path: Path
) -> None:
    assert not RunFile(compile=CONFIGURED).for_local_run().compile.model_registry.server
    of_model = {"title": "train", "output": "model", "type": "system.Model", "metadata": {}}
    outputs = [Output(task="train", path=Path(model.uri), **of_model)]
    of_run = {"pipeline": "offline-alignment", "folder": tmp_path, "parameters": {}, "seconds": 1.0}
    results = Results(**of_run, stages=[], outputs=outputs)
    assert register_here(results, RegistrySettings(server=registry.host)).startswith("registered: ")
    silent = register_here(results, RegistrySettings(server=NOWHERE))
    assert f"kubealign register {tmp_path} --name" in silent


def test_what_no_registry_can_be_called_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="server='registry:8080': expected the address of a model registry"):
        RegistrySettings(server="registry:8080")
    with pytest.raises(ConfigError, match="server='': expected the address"):
        RegistrySettings(name="assistant")
    own = tmp_path / "mine.py"
    own.write_text(
        "from kfp import dsl\n"
        "@dsl.component(base_image='busybox', install_kfp_package=False)\n"
        "def one() -> int:\n    return 1\n"
        "def mine(place):\n"
        "    @dsl.pipeline(name='mine')\n"
        "    def pipeline():\n        one()\n"
        "    return pipeline\n"
    )
    with pytest.raises(ConfigError, match=r"only place\.register_model"):
        compile_pipeline(str(own), tmp_path / "mine.yaml", CONFIGURED)
