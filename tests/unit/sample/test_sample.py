"""The sample stage: completions under the data contract, the same however the work is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kubealign_components.data.asked import AskedPrompts
from kubealign_components.data.chunks import Chunk, Part, merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PROMPTS, completion_id
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.sample.stage import SampleConfig, run
from support.families import Family, build_family
from support.tiny import CHATML, build_tiny_model, prompt_row

END = 2


@pytest.fixture
def tokenized(make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path) -> Dataset:
    """Six prompts, the first with two offline completions, tokenised for the tiny model."""
    texts = ["Name a colour.", "1+1?", "Why?", "Say hi.", "Count to three.", "Spell cat."]
    rows = [prompt_row(text, ["Red.", "Blue."] if i == 0 else []) for i, text in enumerate(texts)]
    output = str(tmp_path / "tokenized")
    run_filter(FilterConfig(policy=str(tiny_model)), prompts=make_dataset(rows, PROMPTS), output=output)
    return Dataset.open(output)


def config_of(model: Path, *, truncated: str = "keep", slice_rows: int = 4, **sampling: Any) -> SampleConfig:
    values = {"engine": "fake", "n": 5, "max_new_tokens": 8, **sampling}
    return SampleConfig(
        policy=str(model), sampling=SamplingSpec(**values), truncated=truncated, slice_rows=slice_rows
    )


def sample(config: SampleConfig, dataset: Dataset, folder: Path, chunks: int = 1) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    planned = [Chunk.from_json(c.to_json()) for c in planned]
    parts = [Part.from_json(run(config, chunk=c).to_json()) for c in planned]
    return merge(parts, planned, str(folder / "merged"))


def completions(dataset: Dataset) -> list[dict[str, Any]]:
    return [c for row in dataset.iter_rows() for c in row["completions"]]


@pytest.mark.parametrize("engine", ["fake", "transformers"])
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.integers(1, 6), slice_rows=st.integers(1, 6))
def test_any_chunk_and_slice_size_gives_the_same_samples(
    engine: str,
    tokenized: Dataset,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    chunks: int,
    slice_rows: int,
) -> None:
    cut, whole = (
        sample(config_of(tiny_model, engine=engine, n=2, slice_rows=s), tokenized, folder, c)
        for s, c, folder in (
            (slice_rows, chunks, tmp_path_factory.mktemp("cut")),
            (9, 1, tmp_path_factory.mktemp("whole")),
        )
    )
    assert list(cut.iter_rows()) == list(whole.iter_rows())
    assert cut.manifest.fingerprint == whole.manifest.fingerprint


def test_several_engine_processes_give_the_same_samples(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model)
    one = sample(config, tokenized, tmp_path / "one")
    two = sample(replace(config, processes=2), tokenized, tmp_path / "two")
    assert list(one.iter_rows()) == list(two.iter_rows())
    assert one.manifest.fingerprint == two.manifest.fingerprint
    assert [shard.sha256 for shard in one.manifest.shards] == [s.sha256 for s in two.manifest.shards]


def test_a_run_that_was_interrupted_goes_on_with_the_same_samples(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, engine="transformers", n=2)
    undisturbed = sample(config, tokenized, tmp_path / "undisturbed")
    two, _ = plan(tokenized, work=str(tmp_path / "resumed" / "work"), chunks=2)
    run(config, chunk=two)  # all that was done when the pod was lost
    resumed = sample(config, tokenized, tmp_path / "resumed")
    assert resumed.manifest.stats["counts"]["rows_reused"] == 3
    assert list(resumed.iter_rows()) == list(undisturbed.iter_rows())


def test_a_share_of_the_prompts_is_sampled_as_it_is_in_all_of_them(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    whole = sample(config_of(tiny_model), tokenized, tmp_path)
    part = replace(config_of(tiny_model), share=0.5, validation_fraction=0.2)
    half = sample(part, tokenized, tmp_path / "alone")
    chunks = plan(tokenized, work=str(tmp_path / "work"), chunks=1)
    again = merge([run(part, chunk=chunks[0])], chunks, str(tmp_path / "again"))
    assert list(again.iter_rows()) == list(half.iter_rows())
    counts = half.manifest.stats["counts"]
    assert 0 < counts["prompts_not_asked"] < 6
    reused = again.manifest.stats["counts"]["rows_reused"]
    assert reused == 6 - counts["prompts_not_asked"], "of what was sampled without a share"
    assert counts["prompts_without_samples"] == 0
    asked = AskedPrompts(share=0.5, number=1, validation_fraction=0.2, split_seed=0)
    for row, full in zip(half.iter_rows(), whole.iter_rows(), strict=True):
        brought = [c for c in full["completions"] if not c["reference"]]
        assert row["completions"] == (full["completions"] if row["prompt_id"] in asked else brought)


def test_rows_hold_offline_completions_first_and_every_column_of_sampled_ones(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    out = sample(config_of(tiny_model, n=5), tokenized, tmp_path)
    before, after = next(tokenized.iter_rows()), next(out.iter_rows())
    assert after["completions"][:2] == before["completions"]
    assert len(after["completions"]) == 7
    assert {**after, "completions": [], "dropped_completions": None} == {**before, "completions": []}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for row in out.iter_rows():
        for c in row["completions"][-5:]:
            text = tokenizer.decode(c["token_ids"], skip_special_tokens=True)
            assert json.loads(c["messages"]) == [{"role": "assistant", "content": text}]
            assert c["completion_id"] == completion_id(row["prompt_id"], c["token_ids"])
            assert c["reference"] is True
            assert c["model"] == tiny_model.name
            assert c["num_tokens"] == len(c["token_ids"])
            assert (c["token_ids"][-1] == END) == (c["finish_reason"] == "stop")
            assert c["sampler_logprob"] < 0
            assert c["logprob"] is c["reward"] is c["label"] is None
    counts = out.manifest.stats["counts"]
    assert counts["sampled_completions"] == 30
    assert counts["sampled_tokens"] == sum(c["num_tokens"] for c in completions(out) if c["reference"])


def test_truncated_completions_are_kept_or_dropped_and_counted(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    kept = sample(config_of(tiny_model, n=20), tokenized, tmp_path / "kept")
    dropped = sample(config_of(tiny_model, n=20, truncated="drop"), tokenized, tmp_path / "dropped")
    cut = sum(c["finish_reason"] == "length" for c in completions(kept))
    assert cut > 0
    assert kept.manifest.stats["counts"]["truncated_kept"] == cut
    assert kept.manifest.stats["counts"].get("truncated_dropped", 0) == 0
    assert dropped.manifest.stats["counts"]["truncated_dropped"] == cut
    assert kept.manifest.fingerprint != dropped.manifest.fingerprint
    for before, after in zip(kept.iter_rows(), dropped.iter_rows()):
        whole = [c for c in before["completions"] if c["finish_reason"] != "length"]
        assert after["completions"] == whole
        assert before["dropped_completions"] == 0
        assert after["dropped_completions"] == len(before["completions"]) - len(whole)


def test_a_prompt_that_keeps_no_completion_is_not_lost(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, engine="transformers", n=1, max_new_tokens=1, truncated="drop")
    out = sample(config, tokenized, tmp_path)
    assert out.rows == tokenized.rows
    left = [[c for c in row["completions"] if c["reference"]] for row in out.iter_rows()]
    assert [] in left
    assert out.manifest.stats["counts"]["prompts_without_samples"] == left.count([])


def test_the_recipe_names_what_decides_the_samples_and_nothing_else(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    def made(name: str, **values: Any) -> Dataset:
        return sample(config_of(tiny_model, **values), tokenized, tmp_path / name)

    first = made("first")
    assert made("same", slice_rows=1, memory_fraction=0.5).manifest.fingerprint == first.manifest.fingerprint
    others = [made("n", n=4), made("seed", seed=1), made("t", temperature=0.5), made("l", max_new_tokens=9)]
    assert len({d.manifest.fingerprint for d in [first, *others]}) == 5
    assert first.manifest.slug.endswith("-n5")
    assert others[2].manifest.slug.endswith("-n5-temp0.5")
    step = first.manifest.provenance.step
    assert step["models"]["policy"]["end_tokens"] == [END]
    assert str(tiny_model) not in json.dumps(step)
    assert first.manifest.identity == tokenized.manifest.identity


def test_another_policy_than_the_prompts_were_tokenised_for_is_refused(
    tokenized: Dataset, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(ConfigError, match=r"policy=.*other.*digest [0-9a-f]{12}, .* was made for") as caught:
        sample(config_of(other), tokenized, tmp_path)
    assert tokenized.manifest.identity["policy"][:12] in str(caught.value)


def test_a_prompt_without_room_stops_the_chunk_before_sampling(
    tokenized: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    longest = max(tokenized.iter_rows(), key=lambda row: row["prompt_tokens"])
    config = config_of(tiny_model, max_model_len=longest["prompt_tokens"] + 7, slice_rows=1)
    with pytest.raises(DataError, match=longest["prompt_id"]):
        sample(config, tokenized, tmp_path)
    assert not (tmp_path / "work").exists()


def test_bad_settings_are_named(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="truncated='cut'"):
        config_of(tiny_model, truncated="cut")
    with pytest.raises(ConfigError, match="slice_rows=0"):
        config_of(tiny_model, slice_rows=0)


def test_the_text_of_a_sample_is_what_was_written_and_ends_at_special_stops(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    """Special tokens that the policy wrote are in the text, so that rewards see them; a stop may be one."""
    family = Family(
        template=CHATML,
        specials=("<|pad|>", "<|im_start|>", "<|im_end|>", "<think>", "<|tool|>"),
        eos="<|im_end|>",
        bos="<|im_start|>",
    )
    policy = build_family(family, tmp_path / "policy", weights=True)
    output = str(tmp_path / "tokens")
    rows = [prompt_row(f"Q{number}?") for number in range(6)]
    run_filter(FilterConfig(policy=str(policy)), prompts=make_dataset(rows, PROMPTS), output=output)
    config = config_of(policy, engine="transformers", n=8, max_new_tokens=80, stop=("<|tool|>",))
    found = completions(sample(config, Dataset.open(output), tmp_path / "sampled"))
    thinks, tool = 3, 4
    assert sum(thinks in c["token_ids"] for c in found) > 3
    for completion in found:
        [message] = json.loads(completion["messages"])
        assert message["content"].count("<think>") == completion["token_ids"].count(thinks)
        assert "<|im_end|>" not in message["content"]
        assert tool not in completion["token_ids"][:-1]
        if completion["token_ids"][-1] == tool:
            assert completion["finish_reason"] == "stop" and message["content"].endswith("<|tool|>")
    assert any(c["token_ids"][-1] == tool for c in found)
