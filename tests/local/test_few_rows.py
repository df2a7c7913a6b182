"""One row passes every stage; no rows are a message that says where they went, in every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kubealign_components.config import from_mapping
from kubealign_components.data.chunks import Chunk, Part, merge
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS, REWARDED, SELECTION, TOKENIZED
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.errors import ChunkError, EmptyDataset
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as run_import
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.logprobs.stage import run as run_logprobs
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as run_mix
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as run_rewards
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as run_sample
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as run_select
from kubealign_components.split.stage import SplitConfig
from kubealign_components.split.stage import run as run_split


class Recipe:
    """The stages up to the training dataset, one after the other, on a tiny model."""

    def __init__(self, model: Path, folder: Path, prompts: list[str], **filters: int) -> None:
        self.model, self.folder = str(model), folder
        source = folder / "source.jsonl"
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        self.source = SourceConfig(name="mine", uri=str(source))
        self.filters = filters

    def place(self, stage: str) -> str:
        return str(self.folder / stage)

    def open(self, stage: str) -> Dataset:
        return Dataset.open(self.place(stage))

    def fan_out(self, of: str, stage: str, worker: Callable[[Chunk], Part]) -> None:
        chunks = run_split(SplitConfig(work=self.place("work")), dataset=self.open(of))
        merge([worker(chunk) for chunk in chunks], chunks, self.place(stage))

    def run(self, stage: str) -> None:
        getattr(self, stage)()

    def import_prompts(self) -> None:
        run_import(ImportConfig(sources=(self.source,)), output=self.place("import_prompts"))

    def filter(self) -> None:
        config = FilterConfig(policy=self.model, min_completions=0, **self.filters)
        run_filter(config, prompts=self.open("import_prompts"), output=self.place("filter"))

    def sample(self) -> None:
        config = SampleConfig(policy=self.model, sampling=SamplingSpec(engine="fake", n=4, max_new_tokens=8))
        self.fan_out("filter", "sample", lambda chunk: run_sample(config, chunk=chunk))

    def rewards(self) -> None:
        brevity = {"functions": ["kubealign_components.rewards.functions:brevity"]}
        config = from_mapping(RewardsConfig, {"reward": brevity}, "rewards")
        self.fan_out("sample", "rewards", lambda chunk: run_rewards(config, chunk=chunk))

    def select(self) -> None:
        run_select(SelectConfig(), rewarded=self.open("rewards"), output=self.place("select"))

    def logprobs(self) -> None:
        config = LogprobsConfig(policy=self.model)
        self.fan_out("select", "logprobs", lambda chunk: run_logprobs(config, chunk=chunk))

    def mix(self) -> None:
        run_mix(MixConfig(), selections=[self.open("logprobs")], output=self.place("mix"))


STAGES = ["import_prompts", "filter", "sample", "rewards", "select", "logprobs", "mix"]


def test_one_row_passes_every_stage(tiny_model: Path, tmp_path: Path) -> None:
    recipe = Recipe(tiny_model, tmp_path, ["What is a chunk?"])
    for stage in STAGES:
        recipe.run(stage)
        assert recipe.open(stage).rows == 1


def test_all_rows_dropped_stop_the_next_stage_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    recipe = Recipe(tiny_model, tmp_path, ["a long prompt", "another long prompt"], max_prompt_len=1)
    recipe.run("import_prompts")
    recipe.run("filter")
    with pytest.raises(EmptyDataset, match=r"has no rows: all were dropped \(2 prompt_too_long\)"):
        recipe.run("sample")
    assert not (tmp_path / "sample").exists()


KINDS = [PROMPTS, TOKENIZED, COMPLETIONS, REWARDED, SELECTION, SELECTION]


@pytest.mark.parametrize(("stage", "before", "kind"), list(zip(STAGES[1:], STAGES, KINDS)))
def test_an_empty_dataset_stops_a_stage_before_it_starts(
    tiny_model: Path, tmp_path: Path, make_dataset: Callable[..., Dataset], stage: str, before: str, kind: str
) -> None:
    Path(make_dataset([], kind).uri).rename(tmp_path / before)
    with pytest.raises(EmptyDataset, match="has no rows"):
        Recipe(tiny_model, tmp_path, []).run(stage)
    assert not (tmp_path / stage).exists()


def test_a_source_without_rows_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"mine|source\.jsonl") as failed:
        Recipe(tiny_model, tmp_path, []).run("import_prompts")
    assert type(failed.value).__module__ == "kubealign_components.errors"


def test_nothing_is_planned_for_no_rows(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    empty = Dataset.open(make_dataset([]).uri, allow_empty=True)
    with pytest.raises(ChunkError, match="no rows"):
        run_split(SplitConfig(work=str(tmp_path), chunks=3), dataset=empty)
