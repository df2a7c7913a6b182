"""What a run's pods took, told where it ends: hours and cost that go along with what they made."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from kubealign.cli.show import show
from kubealign.runfile import RunFile
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.lineage import uses_of
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, CorruptDataset
from kubealign_components.mix.stage import MixConfig
from kubealign_components.pod_use import BEGAN_VARIABLE, COST, CPU_HOURS, GPU_HOURS, POD_VARIABLE, pod_use
from kubealign_components.reports.lineage import to_html
from kubealign_pipelines import build
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import StageResources
from support.chunk_worker import Upper, run
from support.datasets import questions

PRICES = {"gpu": 2.0, "cpu": 0.5}


def pod_of(settings: CompileSettings, task: str) -> str:
    """What the pods of ``task`` are told of themselves."""
    executors = build("offline_alignment", settings).pipeline_spec.deployment_spec["executors"]
    variables = executors[f"exec-{task}"]["container"]["env"]
    return next((one["value"] for one in variables if one["name"] == POD_VARIABLE), "")


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod with 8 GPUs and 16 cores that began an hour ago."""
    monkeypatch.setenv(POD_VARIABLE, json.dumps({"gpus": 8, "cpus": 16.0, "price": 24.0}))
    monkeypatch.setenv(BEGAN_VARIABLE, str(time.time() - 3600))


def test_tasks_know_what_an_hour_costs_where_prices_are_given() -> None:
    stages = {"train": StageResources(accelerators=8, cpu=16, nodes=2), "mix": StageResources(cpu="500m")}
    settings = CompileSettings(prices=PRICES, stages=stages)
    assert json.loads(pod_of(settings, "train")) == {"gpus": 16, "cpus": 32.0, "price": 48.0}
    assert json.loads(pod_of(settings, "mix")) == {"gpus": 0, "cpus": 0.5, "price": 0.25}
    assert pod_of(CompileSettings(), "train") == ""
    assert not RunFile(compile=settings).for_local_run().compile.prices
    with pytest.raises(ConfigError, match=r"prices\.gpus='gpus': expected one of cpu, gpu"):
        CompileSettings(prices={"gpus": 2.0})


@pytest.mark.usefixtures("hour")
def test_hours_of_all_chunks_are_told_behind_them(
    make_dataset: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(POD_VARIABLE)
    chunks = plan(made := make_dataset(questions(6)), work=str(tmp_path / "work"), chunks=2)
    assert uses_of(made.manifest) == {}
    monkeypatch.setenv(POD_VARIABLE, json.dumps({"gpus": 8, "cpus": 16.0, "price": 24.0}))
    parts = [run(chunk, Upper()) for chunk in chunks]
    monkeypatch.setenv(POD_VARIABLE, json.dumps({"gpus": 0, "cpus": 2.0, "price": 1.0}))
    merged = merge(parts, chunks, str(tmp_path / "merged"))
    expected = {GPU_HOURS: 16.0, CPU_HOURS: 34.0, COST: 49.0}
    assert uses_of(merged.manifest) == {"upper": pytest.approx(expected, rel=0.01)}
    with DatasetWriter(str(tmp_path / "next"), PROMPTS, derive("next", 1, {}, inputs={"rows": merged})) as w:
        after = w.commit(Stats())
    assert uses_of(after.manifest)["next"] == pytest.approx({GPU_HOURS: 0, CPU_HOURS: 2, COST: 1}, rel=0.01)
    page, text = to_html(after.manifest), io.StringIO()
    show(after, 0, Console(file=text, width=100))
    assert "50.0" in page and "50.0" in text.getvalue() and "GPU-hours" in page
    assert "GPU-hours" not in to_html(made.manifest)


def test_what_is_taken_from_an_earlier_run_costs_what_it_took_then(
    hour: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, provenance = MixConfig(work=str(tmp_path / "work")), derive("mix", 1, {})

    def made(name: str) -> dict[str, float]:
        def make() -> Stats:
            with DatasetWriter(output, PROMPTS, provenance) as writer:
                return Stats.from_json(writer.commit(Stats()).manifest.stats)

        output = str(tmp_path / name)
        once(output_request(config, provenance, output), make)
        return uses_of(Dataset.open(output, allow_empty=True).manifest)["mix"]

    first = made("first")
    monkeypatch.setenv(BEGAN_VARIABLE, str(time.time()))
    assert made("second") == first and first[COST] == pytest.approx(24, rel=0.01)
    monkeypatch.delenv(POD_VARIABLE)
    assert made("third") == first and pod_use() == {}


@pytest.mark.usefixtures("hour")
def test_hours_that_are_no_numbers_are_no_manifest(make_dataset: Callable[..., Dataset]) -> None:
    manifest = make_dataset(questions(1)).manifest
    manifest.origins[manifest.fingerprint]["use"]["cost"] = -1.0
    with pytest.raises(CorruptDataset, match="places, versions and use by fingerprint"):
        Manifest.from_json(manifest.to_json().encode(), "here")
