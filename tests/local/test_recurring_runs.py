"""A schedule's second run over prompts that grew: only the new ones are sampled, and the result is whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, components, dsl, local

from kubealign_components.data.chunks import Chunk, Part
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.filter.component import filter
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.import_prompts.component import import_prompts
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as run_import
from kubealign_components.merge.stage import run as run_merge
from kubealign_components.sample.component import sample
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as run_sample
from kubealign_components.split.stage import SplitConfig
from kubealign_components.split.stage import run as run_split
from kubealign_components.store import join
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.resources import CompileSettings, Placement
from support.slices import committed_rows

OLD = [f"What is {number} times 7?" for number in range(17)]
NEW = [f"Name a river of country {number}." for number in range(6)]
GROWTHS = {
    "at the end": OLD + NEW,
    "at the front, which moves every row to another chunk": NEW + OLD,
    "in between": [text for pair in zip(OLD, [*NEW, *OLD[6:]]) for text in pair],
    "while some prompts went": [*OLD[3:9], *NEW],
}


@dataclass
class Schedule:
    """Runs of the stages as the graph wires them, over one source and one work prefix."""

    model: str
    folder: Path
    work: str

    def write(self, prompts: list[str]) -> str:
        """The prompts are where they always are."""
        path = self.folder / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in dict.fromkeys(prompts)))
        return str(path)

    def run(self, name: str, prompts: list[str], rows_per_chunk: int = 5) -> tuple[Dataset, int]:
        """The merged samples, and how many rows were reused."""
        folder = str(self.folder / name)
        source = SourceConfig(name="mine", uri=self.write(prompts))
        run_import(ImportConfig(sources=(source,)), output=join(folder, "imported"))
        config = FilterConfig(policy=self.model, min_completions=0)
        run_filter(config, prompts=Dataset.open(join(folder, "imported")), output=join(folder, "filtered"))
        split = SplitConfig(work=self.work, rows_per_chunk=rows_per_chunk)
        chunks = run_split(split, dataset=Dataset.open(join(folder, "filtered")))
        planned = [Chunk.from_json(json.loads(json.dumps(chunk.to_json()))) for chunk in chunks]
        sampling = SamplingSpec(engine="fake", n=2, max_new_tokens=8)
        settings = SampleConfig(policy=self.model, sampling=sampling, slice_rows=2)
        parts = [run_sample(settings, chunk=chunk) for chunk in planned]
        returned = [Part.from_json(part.to_json()) for part in parts]
        merged = run_merge(parts=returned, chunks=planned, output=join(folder, "sampled"))
        return merged, sum(part.reused_rows for part in parts)


def asked(work: str) -> list[str]:
    """Prompts that engines were ever asked for: what an engine gives is committed, nothing else."""
    return committed_rows(join(work, "sample"))


def rows(dataset: Dataset) -> list[dict[str, object]]:
    return list(dataset.iter_rows())


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_a_second_run_samples_only_the_new_prompts(
    growth: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    schedule = Schedule(str(tiny_model), tmp_path, str(tmp_path / "work"))
    first, reused = schedule.run("first", OLD)
    before = asked(schedule.work)
    assert (first.rows, reused, len(before)) == (len(OLD), 0, len(OLD))

    second, reused = schedule.run("second", growth, rows_per_chunk=7)
    after = asked(schedule.work)
    grown = set(growth)
    assert len(after) - len(before) == len(NEW) == len(grown - set(OLD))
    assert set(before) < set(after)
    assert len(set(after)) == len(after), "a prompt was sampled twice"
    assert reused == second.manifest.stats["counts"]["rows_reused"] == len(grown & set(OLD))

    alone = Schedule(str(tiny_model), tmp_path, str(tmp_path / "other work"))
    nothing, reused = alone.run("from nothing", growth)
    assert reused == 0
    assert second.manifest.fingerprint == nothing.manifest.fingerprint != first.manifest.fingerprint
    assert rows(second) == rows(nothing)
    assert {json.loads(str(row["messages"]))[0]["content"] for row in rows(second)} == grown


def test_a_third_run_over_the_same_prompts_asks_for_none(tiny_model: Path, tmp_path: Path) -> None:
    schedule = Schedule(str(tiny_model), tmp_path, str(tmp_path / "work"))
    schedule.run("first", OLD)
    before = asked(schedule.work)
    again, reused = schedule.run("second", OLD, rows_per_chunk=3)
    assert (again.rows, reused) == (len(OLD), len(OLD))
    assert asked(schedule.work) == before


def test_another_recipe_reuses_nothing(tiny_model: Path, tmp_path: Path) -> None:
    schedule = Schedule(str(tiny_model), tmp_path, str(tmp_path / "work"))
    schedule.run("first", OLD)
    dataset = Dataset.open(str(tmp_path / "first" / "filtered"))
    [chunk] = run_split(SplitConfig(work=schedule.work, chunks=1), dataset=dataset)
    sampling = SamplingSpec(engine="fake", n=2, max_new_tokens=8, temperature=0.7)
    part = run_sample(SampleConfig(policy=schedule.model, sampling=sampling), chunk=chunk)
    assert part.reused_rows == 0


def test_the_compiled_graph_twice(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through KFP's local runner: tasks are processes, which share nothing but the work prefix."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    place = Placement(CompileSettings())

    @dsl.pipeline(name="recurring")
    def pipeline(sources: list[dict[str, Any]], policy: str, work: str) -> None:
        cut = {"work": work, "rows_per_chunk": 20}
        imported = place(import_prompts, sources=sources)
        filtered = place(filter, prompts=imported.outputs["dataset"], policy=policy, min_completions=0, **cut)
        fan_out(place, sample, filtered, policy=policy, engine="fake", n=2, max_new_tokens=8)

    package = str(tmp_path / "pipeline.yaml")
    compiler.Compiler().compile(pipeline, package)
    schedule = Schedule(str(tiny_model), tmp_path, str(tmp_path / "work"))
    counts: list[int] = []
    merged: list[Dataset] = []
    for number, prompts in enumerate((OLD, NEW + OLD)):
        root = tmp_path / f"run-{number}"
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
        components.load_component_from_file(package)(
            sources=[{"name": "mine", "uri": schedule.write(prompts)}],
            policy=schedule.model,
            work=schedule.work,
        )
        counts.append(len(asked(schedule.work)))
        # An artifact is its manifest; the rows lie beside it.
        found = [path.parent for path in root.rglob("dataset/manifest.json")]
        [each] = [str(path) for path in found if Dataset.open(str(path)).manifest.schema == COMPLETIONS]
        merged.append(Dataset.open(each))
    assert counts == [len(OLD), len(OLD) + len(NEW)]
    assert [dataset.manifest.stats["counts"]["rows_reused"] for dataset in merged] == [0, len(OLD)]
    whole, _ = Schedule(str(tiny_model), tmp_path, str(tmp_path / "other work")).run("whole", NEW + OLD)
    assert whole.rows == merged[1].rows == len(OLD) + len(NEW)
