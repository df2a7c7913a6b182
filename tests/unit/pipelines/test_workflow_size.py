"""The object of a run: its size as imitated, held to what was seen, and the chunks that it has room for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubealign_pipelines
from kubealign.runfile import RunFile, load_run_file
from kubealign_components.config import from_mapping
from kubealign_components.data import planning
from kubealign_components.data.chunks import Chunk
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.planning import PlanConfig
from kubealign_components.errors import ConfigError
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import StageResources
from kubealign_pipelines.workflow_size import LIMIT, _chunk, most_chunks, workflow_size
from support.pipeline_shapes import SHAPES
from support.tiny import prompt_row


def compiled(shape: str, folder: Path, **settings: Any) -> dict[str, Any]:
    pipeline, parameters, _ = SHAPES[shape]
    path = folder / "pipeline.yaml"
    compile_pipeline(pipeline, path, CompileSettings(**settings), parameters)
    spec: dict[str, Any] = next(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    return spec


def planned(spec: dict[str, Any]) -> set[int]:
    """The most chunks that the stages are told to plan."""
    inputs = [task.get("inputs", {}).get("parameters", {}) for task in spec["root"]["dag"]["tasks"].values()]
    return {int(one["max_chunks"]["runtimeValue"]["constant"]) for one in inputs if "max_chunks" in one}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_with_all_of_its_retries_fits(shape: str, tmp_path: Path) -> None:
    spec = compiled(shape, tmp_path, parallelism=100, retries=3)
    [most] = planned(spec)
    size = workflow_size(spec, most)
    assert size.total <= LIMIT
    rounds = SHAPES[shape][1].get("rounds", 1)
    least = 12 if isinstance(SHAPES[shape][1].get("sample_n"), dict) else {1: 16, 2: 12, 3: 4}[rounds]
    assert most >= least, "fewer chunks at once than the default, or too few"


def test_pods_are_fewer_and_chunks_larger_by_the_gpus_of_a_pod(tmp_path: Path) -> None:
    stages = {"sample": StageResources(accelerators=8), "rewards": StageResources(accelerators=0)}
    spec = compiled("scored after", tmp_path, parallelism=32, stages=stages)
    inputs = {
        name: {
            n: v["runtimeValue"]["constant"] for n, v in parameters.items() if n in ("max_chunks", "engines")
        }
        for name, task in spec["root"]["dag"]["tasks"].items()
        if "max_chunks" in (parameters := task.get("inputs", {}).get("parameters", {}))
    }
    assert inputs == {
        "filter": {"max_chunks": 4, "engines": 8},
        "merge-sample": {"max_chunks": 32, "engines": 1},
        "select": {"max_chunks": 32, "engines": 1},
    }


@pytest.mark.parametrize(("engines", "chunks"), [(1, 5), (2, 3), (8, 1)])
def test_a_chunk_has_so_many_rows_for_each_engine(
    make_dataset: Callable[..., Dataset], tmp_path: Path, engines: int, chunks: int
) -> None:
    dataset = make_dataset([prompt_row(f"question {i}") for i in range(10)])
    config = PlanConfig(work=str(tmp_path / "work"), rows_per_chunk=2, engines=engines)
    made = planning.planned(config, dataset)
    assert len(made) == chunks
    assert sum(chunk["rows"] for chunk in made) == 10


# With an engine a pod, tasks that split and conditions in the graph these were 318, 225, 174 and 129.
@pytest.mark.parametrize(
    ("name", "most"),
    [("offline_alignment_8b", 60), ("salmon", 53), ("offline_alignment_70b", 96), ("salmon_70b", 77)],
)
def test_shipped_run_files_for_gpus_need_few_pods(name: str, most: int, tmp_path: Path) -> None:
    run = load_run_file(Path(kubealign_pipelines.__file__).parent / "params" / f"{name}.yaml")
    compile_pipeline(run.pipeline, tmp_path / "p.yaml", run.compile, run.parameters)
    spec = next(yaml.load_all((tmp_path / "p.yaml").read_text(), Loader=yaml.CSafeLoader))
    [chunks] = planned(spec)
    assert pods(spec, chunks) <= most


def pods(spec: dict[str, Any], chunks: int) -> int:
    """Pods of a run: a driver and an executor a task, a driver a graph, and one more for each chunk."""
    components = spec["components"]

    def inside(dag: dict[str, Any]) -> int:
        return 1 + sum(
            of_task(task, components[task["componentRef"]["name"]]) for task in dag["tasks"].values()
        )

    def of_task(task: dict[str, Any], component: dict[str, Any]) -> int:
        if "dag" not in component:
            return 2
        once = inside(component["dag"])
        return 1 + chunks * once if "parameterIterator" in task else once

    return inside(spec["root"]["dag"])


def test_more_chunks_than_there_is_room_for_are_not_planned(tmp_path: Path) -> None:
    spec = compiled("salmon offline", tmp_path, parallelism=100, retries=3)
    [most] = planned(spec)
    assert most < 100
    assert workflow_size(spec, 100).total > LIMIT, "the case is none"
    [without] = planned(compiled("salmon offline", tmp_path, parallelism=100, retries=0))
    assert without > most


def test_a_fan_out_has_as_many_chunks_as_run_at_once(tmp_path: Path) -> None:
    assert planned(compiled("scored after", tmp_path, parallelism=7)) == {7}
    assert planned(compiled("scored after", tmp_path, parallelism=7, max_chunks=14)) == {14}
    assert planned(compiled("scored after", tmp_path)) == {16}
    local = RunFile().for_local_run()
    assert local.compile.chunks("sample") == 100, "here chunks are not made for pods"


def test_sizes_are_those_that_were_seen(tmp_path: Path) -> None:
    """A run of two chunks a fan-out and 12 other tasks: 160 nodes, 600 bytes packed of 4 kB each."""
    spec = compiled("scored after", tmp_path, check=False)
    size = workflow_size(spec, 2, retries=False)
    plain = 9 * 6 + 3 * 4
    assert size.nodes == plain + 2 + 2 + 3 * 2 * 12
    assert 450 < size.packed / size.nodes < 800
    assert 3000 < size.state / size.nodes < 6500


def test_size_grows_evenly_with_chunks(tmp_path: Path) -> None:
    spec = compiled("ppo", tmp_path)
    sizes = [workflow_size(spec, chunks).packed for chunks in (8, 16, 24)]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.35)
    limit = most_chunks(spec, 1000)
    assert 0.5 * LIMIT < workflow_size(spec, limit).total < 0.85 * LIMIT


def test_an_impossible_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_chunks=101: expected 0 "):
        from_mapping(CompileSettings, {"max_chunks": 101}, "compile")


def test_chunks_are_imitated_with_all_that_they_carry() -> None:
    texts = _chunk("gs://bucket/runs/import", 3, "0" * 64)
    assert Chunk.from_json(texts).to_json().keys() == texts.keys()
