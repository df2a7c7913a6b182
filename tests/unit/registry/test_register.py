"""A model in Kubeflow's model registry: its own client against a server that answers as the real one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from model_registry.core import ModelRegistryAPIClient
from model_registry.types import ModelArtifact, ModelVersion

from kubealign.cli.main import main
from kubealign.local.results import Output, Results
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import end_early
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.registry.server import NAME_LETTERS, RegistryServer
from kubealign_components.registry.versions import PipelineRun, register, registration
from support.datasets import MakeDataset
from support.fake_registry import Registry
from support.tiny import prompt_row

NUMBERS = {"reward_gain": 0.25, "prompts": 20.0, "kl_per_completion": float("nan"), "tokens": 3e10}


def call(model: Dataset | str, server: str, *words: str) -> Result:
    uri = model if isinstance(model, str) else model.uri
    return CliRunner().invoke(main, ["register", uri, "--server", server, *words])


def stored(registry: Registry, name: str, version: str) -> tuple[ModelVersion, ModelArtifact]:
    """What anyone reads there by the registry's client."""
    client = ModelRegistryAPIClient.insecure_connection(registry.host, registry.server_port, registry.token)

    async def read() -> tuple[ModelVersion, ModelArtifact]:
        found = await client.get_registered_model_by_params(name)
        one = await client.get_model_version_by_params(found.id, version)
        return one, await client.get_model_artifact_by_params(name, one.id)

    return asyncio.run(read())


def test_who_reads_the_registry_sees_what_the_model_was_made_of(registry: Registry, model: Dataset) -> None:
    run = PipelineRun(id="abc", name="nightly", namespace="team")
    what = registration(
        model, name="assistant", author="me", evaluation=NUMBERS, description="It rose.", run=run
    )

    async def in_a_notebook() -> bool:
        """Where a loop runs already."""
        return register(RegistryServer(address=registry.host), what).new

    assert asyncio.run(in_a_notebook())
    version, artifact = stored(registry, "assistant", model.manifest.fingerprint)
    assert (version.author, version.description) == ("me", "It rose.")
    told = dict(version.custom_properties or {})
    assert told["kubealign.base_model"] == "org/base" and told["kubealign.base_model_revision"] == "e" * 40
    assert told["kubealign.license"] == "apache-2.0 AND cc-by-4.0"
    assert (told["kubealign.objective"], told["kubealign.beta"]) == ("dpo", 0.1)
    assert {"kind": "source", "name": "chats", "license": "cc-by-4.0"} in json.loads(
        told["kubealign.made_of"]
    )
    assert [step["stage"] for step in json.loads(told["kubealign.lineage"])] == ["import_prompts", "train"]
    numbers = {name: value for name, value in told.items() if name.startswith("evaluation.")}
    assert numbers == {"evaluation.reward_gain": 0.25, "evaluation.prompts": 20.0, "evaluation.tokens": 3e10}
    assert artifact.uri == Path(model.uri).resolve().as_uri()
    assert (artifact.model_source_group, artifact.model_source_id) == ("team", "abc")


def test_a_model_is_registered_once_and_what_others_wrote_stays(registry: Registry, model: Dataset) -> None:
    assert call(model, registry.host, "--name", "assistant").exit_code == 0
    (version,) = registry.held["model_versions"]
    version["customProperties"]["tier"] = {"metadataType": "MetadataStringValue", "string_value": "gold"}
    registry.held["model_artifacts"][0]["uri"] = "gs://before/model"
    again = call(model, registry.host, "--name", "assistant")
    assert again.exit_code == 0, again.output
    assert "brought up to date" in again.output and "gs://before/model" in again.output
    assert [len(held) for held in registry.held.values()] == [1, 1, 1]
    seen, artifact = stored(registry, "assistant", model.manifest.fingerprint)
    properties = dict(seen.custom_properties or {})
    assert properties["tier"] == "gold" and properties["kubealign.objective"] == "dpo"
    assert artifact.uri == Path(model.uri).resolve().as_uri()


@pytest.mark.parametrize("named", [(), ("model",)])
def test_the_model_of_a_run_has_its_numbers_however_it_is_named(
    named: tuple[str, ...], registry: Registry, model: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "one"
    (folder / "logs").mkdir(parents=True)
    (folder / "model").symlink_to(model.uri)
    (folder / "pipeline.yaml").touch()
    numbers = {"prompts": 9, "reward_reference": 1.0, "reward_aligned": 1.25, "length_ratio": 1.0}
    numbers |= {"reward_gain": 0.25, "reward_gain_low": 0.1, "reward_gain_high": 0.4}
    (folder / "results.json").write_text(json.dumps({"evaluation": numbers, "outputs": []}))
    done = CliRunner().invoke(main, ["register", str(folder), *named, "--server", registry.host])
    assert done.exit_code == 0, done.output
    version, _ = stored(registry, model.manifest.slug, model.manifest.fingerprint)
    assert (version.custom_properties or {})["evaluation.reward_gain"] == 0.25


@pytest.mark.parametrize("fails_at", ["POST model_versions", "POST artifacts"])
def test_what_was_cut_off_is_finished_by_the_next_attempt(
    fails_at: str, registry: Registry, model: Dataset
) -> None:
    registry.fails_at = fails_at
    cut = call(model, registry.host, "--name", "assistant")
    assert cut.exit_code == 1 and "answers 500" in cut.output and "Lock wait timeout" in cut.output
    assert not registry.held["model_artifacts"]
    registry.fails_at = ""
    assert call(model, registry.host, "--name", "assistant").exit_code == 0
    assert [len(held) for held in registry.held.values()] == [1, 1, 1]


def test_the_longest_name_fits_and_a_longer_one_is_refused_before_anything_is_asked(
    registry: Registry, model: Dataset
) -> None:
    assert call(model, registry.host, "--name", "n" * NAME_LETTERS).exit_code == 0
    asked = len(registry.asked)
    refused = call(model, registry.host, "--name", "n" * (NAME_LETTERS + 1))
    assert refused.exit_code == 2 and "--name" in refused.output and len(registry.asked) == asked


def test_the_token_comes_from_a_file_and_a_missing_one_is_told(
    registry: Registry, model: Dataset, tmp_path: Path
) -> None:
    registry.token = "secret"
    refused = call(model, registry.host)
    assert refused.exit_code == 1 and "401" in refused.output and "--registry-token-file" in refused.output
    (tmp_path / "token").write_text("secret\n")
    assert call(model, registry.host, "--registry-token-file", str(tmp_path / "token")).exit_code == 0


def test_a_dataset_a_wrong_address_and_another_server_are_told(
    registry: Registry, model: Dataset, make_dataset: MakeDataset
) -> None:
    for result, words, code in (
        (call(make_dataset([prompt_row("hi", [])]), registry.host), "a model, this is", 2),
        (call(model, "model-registry:8080"), "http://", 2),
        (call(model, "http://host:99999"), "a port below 65536", 2),
        (call(model, "http://127.0.0.1:9"), "cannot reach the model registry at http://127.0.0.1:9", 1),
        (call(model, f"{registry.host}/elsewhere"), "404: no model registry is there", 1),
    ):
        assert result.exit_code == code and words in result.output, result.output
        assert "Traceback" not in result.output
    assert not registry.held["registered_models"]


def test_without_the_client_what_to_install_is_said(
    registry: Registry, model: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_registry.core", None)
    result = call(model, registry.host)
    assert result.exit_code == 2 and "pip install 'kubealign[registry]'" in result.output


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("http://r", "http://r:8080"),
        ("https://r/", "https://r:443"),
        ("https://r/prefix", "https://r:443/prefix"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_port_and_a_path_stay_what_they_are(address: str, asked: str) -> None:
    assert RegistryServer(address=address).origin[0] == asked


def test_of_a_round_that_ended_early_there_is_no_model(tmp_path: Path) -> None:
    """The last folder of a model is that of a round that trained none."""
    trained, ended = str(tmp_path / "train" / "model"), str(tmp_path / "train-round-2" / "model")
    with DatasetWriter(trained, MODEL, derive("train", 1, {})) as writer:
        writer.commit(Stats())
    end_early("round 1 is no better", stage="train", version=1, schema=MODEL, output=ended, inputs={})
    own = {"title": "train", "output": "model", "type": "system.Model", "metadata": {}}
    outputs = [Output(task=Path(one).parent.name, path=Path(one), **own) for one in (trained, ended)]
    of_run = {"pipeline": "offline-alignment", "folder": tmp_path, "parameters": {}, "seconds": 1.0}
    assert Results(**of_run, stages=[], outputs=outputs).model == Path(trained)
    with pytest.raises(ConfigError, match="a model that was trained: round 1 is no better"):
        registration(Dataset.open(ended))
