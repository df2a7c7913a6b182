"""The chunked stages themselves under kill -9, SIGTERM and races: the same bytes, no work done twice."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

import kubealign_components
from kubealign_components.data.chunks import Chunk, Part, merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, CorruptDataset, EmptyDataset
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.preemption import EXIT_CODE
from support.slices import committed_rows
from support.stage_worker import STAGES, Settings, run, start
from support.tiny import prompt_row

ROWS, SLICE = 6, 2
SECOND_SLICE = 2  # number of the write that publishes its data, after data and record of the first
PRINCIPLES = """
schema: kubealign.principles/v1
name: two
version: 1
principles: [{name: Brief, positive: It is short.}, {name: Kind, positive: It is kind.}]
"""


class Inputs:
    """What each stage works on, made by the stages before it, and its settings."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._model, self._made = folder, model, 0
        self._reward_model = reward_model(folder / "reward", model)
        (folder / "two.yaml").write_text(PRINCIPLES)
        self.tokenized = self._tokenized(ROWS)
        self.completions = self._sampled(self.tokenized)
        self._expected: dict[str, Dataset] = {}

    def settings(self, stage: str) -> Settings:
        model = str(self._model)
        sampling = {"engine": "transformers", "n": 2, "max_new_tokens": 8, "dtype": "float32"}
        own: dict[str, Settings] = {
            "sample": {"policy": model, "sampling": sampling},
            "rewards": {"reward": {"model": str(self._reward_model)}},
            "logprobs": {"policy": model},
            "judge": {"judge": model, "principles": str(self.folder / "two.yaml"), "min_characters": 1},
            "rank": {"judge": {"judge": model, "principles": str(self.folder / "two.yaml")}},
        }
        return own[stage] | {"slice_rows": SLICE}

    def dataset(self, stage: str, rows: int = ROWS) -> Dataset:
        if rows == ROWS:
            return self.tokenized if stage == "sample" else self.completions
        tokenized = self._tokenized(rows)
        return tokenized if stage == "sample" else self._sampled(tokenized)

    def expected(self, stage: str) -> Dataset:
        """What the stage makes when nothing happens."""
        if stage not in self._expected:
            chunk = self.chunk(stage, self.folder / f"{stage}-undisturbed")
            output = str(self.folder / f"{stage}-expected")
            self._expected[stage] = merge([run(stage, self.settings(stage), chunk)], [chunk], output)
        return self._expected[stage]

    def chunk(self, stage: str, work: Path) -> Chunk:
        [chunk] = plan(self.dataset(stage), work=f"faulty://{work}", chunks=1)
        return chunk

    def _tokenized(self, rows: int) -> Dataset:
        self._made += 1
        folder = self.folder / str(self._made)
        with DatasetWriter(str(folder / "prompts"), PROMPTS, derive("test", rows, {})) as writer:
            writer.write_rows([prompt_row(f"question {i}?") for i in range(rows)])
            prompts = writer.commit(Stats(rows_in=rows, rows_out=rows))
        output = str(folder / "tokenized")
        filter_prompts(FilterConfig(policy=str(self._model)), prompts=prompts, output=output)
        return Dataset.open(output)

    def _sampled(self, tokenized: Dataset) -> Dataset:
        folder = Path(tokenized.uri).parent
        settings = {"policy": str(self._model), "sampling": {"engine": "fake", "n": 2, "max_new_tokens": 32}}
        [chunk] = plan(tokenized, work=str(folder / "work"), chunks=1)
        return merge([run("sample", settings, chunk)], [chunk], str(folder / "sampled"))


def reward_model(folder: Path, policy: Path) -> Path:
    torch.manual_seed(0)
    own = {"num_labels": 1, "pad_token_id": 0}
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(policy, **own)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"), tiny_model)


@pytest.fixture(params=sorted(STAGES))
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def committed(work: Path) -> int:
    """Rows that are committed below ``work``."""
    return len(committed_rows(str(work)))


def needing(inputs: Inputs, stage: str) -> int:
    """Rows that need a result: prompts with fewer than two different completions are not judged."""
    return sum(stage != "judge" or bool(row["judgements"]) for row in inputs.expected(stage).iter_rows())


def check_same_bytes(part: Part, chunk: Chunk, expected: Dataset, output: Path) -> None:
    merged = merge([part], [chunk], str(output))
    assert merged.manifest.fingerprint == expected.manifest.fingerprint
    assert merged.manifest.shards == expected.manifest.shards
    assert list(merged.iter_rows()) == list(expected.iter_rows())


def test_killed_in_its_second_slice(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    work, settings = tmp_path / "work", inputs.settings(stage)
    chunk = inputs.chunk(stage, work)
    killed = start(stage, settings, chunk, tmp_path, write=SECOND_SLICE, moment="amid", how="kill")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert committed(work) == SLICE
    part = run(stage, settings, chunk)
    assert part.reused_rows == SLICE  # only the slice in flight is computed again
    check_same_bytes(part, chunk, inputs.expected(stage), tmp_path / "merged")


def test_killed_when_all_is_computed(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    settings, chunk = inputs.settings(stage), inputs.chunk(stage, tmp_path / "work")
    shard = 2 * ROWS // SLICE
    killed = start(stage, settings, chunk, tmp_path, write=shard, moment="amid", how="kill")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    part = run(stage, settings, chunk)
    assert part.reused_rows == needing(inputs, stage)
    check_same_bytes(part, chunk, inputs.expected(stage), tmp_path / "merged")


def test_sigterm_keeps_what_is_committed(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    work, settings = tmp_path / "work", inputs.settings(stage)
    chunk = inputs.chunk(stage, work)
    stopped = start(stage, settings, chunk, tmp_path, write=1, moment="after", how="terminate")
    stopped.join()
    said = (tmp_path / "said").read_text()
    assert stopped.exitcode == EXIT_CODE, said
    assert "Traceback" not in said
    assert SLICE <= committed(work) < ROWS
    assert not list(work.rglob("manifest.json"))
    kept = committed(work)
    part = run(stage, settings, chunk)
    assert part.reused_rows == kept
    check_same_bytes(part, chunk, inputs.expected(stage), tmp_path / "merged")


def test_two_pods_on_one_chunk_publish_one_part(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    """Both have computed the first slice before either commits it."""
    work, settings = tmp_path / "work", inputs.settings(stage)
    chunk = inputs.chunk(stage, work)
    racing = [start(stage, settings, chunk, tmp_path, write=0, moment="before", how="meet") for _ in "xy"]
    for process in racing:
        process.join()
        assert process.exitcode == 0, (tmp_path / "said").read_text()
    one, other = (Part.from_json(json.loads(p.read_text())) for p in tmp_path.glob("part-*"))
    assert one.uri == other.uri
    assert len(list(work.rglob("manifest.json"))) == 1
    assert committed(work) == needing(inputs, stage)
    check_same_bytes(one, chunk, inputs.expected(stage), tmp_path / "merged")


def test_one_row_is_enough(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    chunks = plan(inputs.dataset(stage, rows=1), work=f"faulty://{tmp_path}/work", chunks=3)
    parts = [run(stage, inputs.settings(stage), chunk) for chunk in chunks]
    assert merge(parts, chunks, str(tmp_path / "merged")).rows == 1


def test_rows_that_changed_since_they_were_planned_are_refused(
    inputs: Inputs, stage: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(inputs.dataset(stage).uri, copy)
    chunk = replace(inputs.chunk(stage, tmp_path / "work"), dataset=str(copy))
    [shard] = copy.glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptDataset, match=shard.name):
        run(stage, inputs.settings(stage), chunk)
    assert not list((tmp_path / "work").rglob("manifest.json"))


def test_another_dataset_than_was_planned_is_refused(inputs: Inputs, stage: str, tmp_path: Path) -> None:
    other = inputs.dataset(stage, rows=ROWS + 1)
    chunk = replace(inputs.chunk(stage, tmp_path / "work"), dataset=other.uri)
    with pytest.raises((ChunkError, CorruptDataset), match="planned"):
        run(stage, inputs.settings(stage), chunk)


def test_no_rows_are_refused_before_any_pod_starts(tmp_path: Path) -> None:
    with DatasetWriter(str(tmp_path / "none"), COMPLETIONS, derive("test", 1, {})) as writer:
        writer.commit(Stats())
    with pytest.raises(EmptyDataset, match="none"):
        Dataset.open(str(tmp_path / "none"))
    with pytest.raises(ChunkError, match="no rows to cut into chunks: none came in"):
        plan(Dataset.open(str(tmp_path / "none"), allow_empty=True), work=str(tmp_path), chunks=1)


def test_every_stage_that_is_run_in_chunks_is_here() -> None:
    stages = Path(kubealign_components.__file__).parent.glob("*/stage.py")
    chunked = {path.parent.name for path in stages if "run_chunk(" in path.read_text()}
    assert chunked == set(STAGES)
