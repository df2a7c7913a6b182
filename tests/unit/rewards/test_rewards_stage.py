"""rewards: the same rewards for any chunking, over-length completions counted, means that add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from kubealign_components.config import from_mapping
from kubealign_components.data.chunks import Chunk, merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import (
    COMPLETIONS,
    REWARDED,
    TOKENIZED,
    canonical_json,
    completion_id,
    new_completion,
)
from kubealign_components.errors import SchemaMismatch
from kubealign_components.reports.rows import rows_page
from kubealign_components.rewards.component import rewards as component
from kubealign_components.rewards.stage import RewardsConfig, run
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as select
from support.pages import Page
from support.tiny import prompt_row

BREVITY = "kubealign_components.rewards.functions:brevity"
EXACT = {"function": "kubealign_components.rewards.functions:exact_answer", "weight": 0.5}


def config(*functions: Any, slice_rows: int = 3, model: str = "", **options: Any) -> RewardsConfig:
    reward = {"functions": functions, "model": model, **options}
    return from_mapping(RewardsConfig, {"reward": reward, "slice_rows": slice_rows}, "rewards")


def sampled_row(number: int, texts: list[str], offline: int = 1, **columns: Any) -> dict[str, Any]:
    """A row with reference completions, and an offline one first."""
    row = prompt_row(f"question {number}?", **columns)
    row["completions"] = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], list(text.encode())),
            reference=i >= offline,
            model="test",
            messages=canonical_json([{"role": "assistant", "content": text}]),
            token_ids=list(text.encode()),
            num_tokens=len(text),
            finish_reason="stop" if i >= offline else "offline",
        )
        for i, text in enumerate(texts)
    ]
    return row


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        sampled_row(i, [f"offline {i}", f"is {i}", "x" * (i + 1), "word " * i], answers=[str(i)])
        for i in range(count)
    ]


def reward_all(
    dataset: Dataset, settings: RewardsConfig, folder: Path, chunks: int = 1, work: str = "work"
) -> Dataset:
    planned = plan(dataset, work=str(folder / work), chunks=chunks)
    parts = [run(settings, chunk=Chunk.from_json(c.to_json())) for c in planned]
    return merge(parts, planned, str(folder / f"merged-{work}-{chunks}"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 12), chunks=st.integers(1, 5), slice_rows=st.integers(1, 7))
def test_any_chunking_gives_the_same_rewards(
    make_dataset: Callable[..., Dataset],
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    chunks: int,
    slice_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("rewards")
    dataset = make_dataset(rows_of(rows), COMPLETIONS)
    whole = reward_all(dataset, config(BREVITY, EXACT), folder, work="whole")
    cut = reward_all(dataset, config(BREVITY, EXACT, slice_rows=slice_rows), folder, chunks, "cut")
    assert cut.table().equals(whole.table())
    assert cut.manifest.fingerprint == whole.manifest.fingerprint
    assert cut.manifest.schema == REWARDED
    sums = cut.manifest.stats["sums"]
    rewards = [c["reward"] for row in cut.iter_rows() for c in row["completions"] if c["reference"]]
    assert sums["reference_reward"] == [pytest.approx(sum(rewards)), len(rewards)]
    assert sums["offline_reward"][1] == cut.manifest.stats["counts"]["offline_completions"] == rows


def test_rewards_are_those_of_the_functions(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    [row] = reward_all(
        make_dataset([sampled_row(1, ["x" * 256, "is 1", "is 2"], answers=["1"])], COMPLETIONS),
        config(BREVITY, EXACT),
        tmp_path,
    ).iter_rows()
    assert [c["reward"] for c in row["completions"]] == [0.5, 256 / 260 + 0.5, 256 / 260]


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_page_says_where_the_reward_contradicts_people(
    make_dataset: Callable[..., Dataset], tmp_path: Path, chunks: int
) -> None:
    def labelled(number: int, source: str, *sizes: int) -> dict[str, Any]:
        row = sampled_row(number, ["x" * size for size in sizes], offline=2) | {"source": source}
        for completion, label in zip(row["completions"], ("chosen", "rejected")):
            completion["label"] = label
        return row

    rows = [
        *(labelled(i, "long/物語", 40, 4, 9) for i in range(3)),
        labelled(3, "long/物語", 4, 40),
        labelled(4, "short", 4, 40),
        labelled(5, "short", 8, 8),
        sampled_row(6, ["without", "any label"]),
    ]
    rewarded = reward_all(make_dataset(rows, COMPLETIONS), config(BREVITY), tmp_path, chunks)
    page = Page(rows_page(rewarded))
    assert ["all", "6", "41.7%"] in page.rows
    assert ["long/物語", "4", "25.0%"] in page.rows and ["short", "2", "75.0%"] in page.rows
    assert "rejected in 75% of 4 labelled pairs of source 'long/物語'" in page.text
    assert "of source 'short'" not in page.text
    select(SelectConfig(pool="offline", min_references=1), rewarded=rewarded, output=str(tmp_path / "pairs"))
    selected = Page(rows_page(Dataset.open(str(tmp_path / "pairs"))))
    assert ["long/物語", "4", "25.0%"] in selected.rows
    assert "rejected in 75% of 4 labelled pairs of source 'long/物語'" in selected.text


def test_labels_of_a_reward_model_are_weighted_told_of_and_part_of_the_recipe(
    make_dataset: Callable[..., Dataset], tmp_path: Path, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0, id2label={"0": "helpfulness", "1": "verbosity"},
    )  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(tmp_path / "heads")
    tokenizer.save_pretrained(tmp_path / "heads")
    dataset = make_dataset(rows_of(5), COMPLETIONS)

    def rewarded(chunks: int = 1, **weights: float) -> Dataset:
        settings = config(BREVITY, model=str(tmp_path / "heads"), label_weights=weights)
        return reward_all(dataset, settings, tmp_path / f"{chunks}{weights}", chunks)

    def rewards(made: Dataset) -> list[float]:
        return [c["reward"] for row in made.iter_rows() for c in row["completions"]]

    functions = rewards(reward_all(dataset, config(BREVITY), tmp_path))
    first, second = (rewards(rewarded(**{name: 1.0})) for name in ("helpfulness", "verbosity"))
    both = rewarded(helpfulness=0.7, verbosity=-0.2)
    summed = [0.7 * (a - f) - 0.2 * (b - f) + f for a, b, f in zip(first, second, functions, strict=True)]
    assert rewards(both) == pytest.approx(summed, abs=1e-5)
    assert both.manifest.fingerprint != rewarded(helpfulness=0.7, verbosity=0.2).manifest.fingerprint
    mean = sum(a - f for a, f in zip(first, functions)) / len(first)
    told = both.manifest.stats["sums"]["reward_label_helpfulness"]
    assert told[0] / told[1] == pytest.approx(mean, abs=1e-5)
    assert "mean of helpfulness" in Page(rows_page(both)).text
    cut = rewarded(3, helpfulness=0.7, verbosity=-0.2)
    assert cut.table().equals(both.table()) and cut.manifest.fingerprint == both.manifest.fingerprint


def test_without_labels_the_page_has_nothing_of_agreement(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    page = Page(rows_page(reward_all(make_dataset(rows_of(2), COMPLETIONS), config(BREVITY), tmp_path)))
    assert "labels" not in page.text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"answers": ["7"]}, id="answers"),
        pytest.param({"metadata": '{"pattern":"x"}'}, id="metadata"),
    ],
)
def test_a_row_is_rewarded_again_when_what_its_reward_depends_on_changed(
    make_dataset: Callable[..., Dataset], tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = rows_of(4)
    reward_all(make_dataset(rows, COMPLETIONS), config(BREVITY, EXACT), tmp_path)
    changed = [rows[0] | change, *rows[1:]]
    dataset = make_dataset(changed, COMPLETIONS, params={"changed": True})
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    assert run(config(BREVITY, EXACT), chunk=chunk).reused_rows == 3
    assert run(config(BREVITY), chunk=chunk).reused_rows == 0


def test_a_reward_model_reads_no_answers_and_drops_what_is_too_long(
    make_dataset: Callable[..., Dataset], tmp_path: Path, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=80, num_labels=1, pad_token_id=0, **shape
    )
    model = tmp_path / "reward-model"
    LlamaForSequenceClassification(llama).save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = [sampled_row(i, ["fits", "fits too", "x" * 80 * (i % 2)]) for i in range(4)]
    rewarded = reward_all(make_dataset(rows, COMPLETIONS), config(model=str(model)), tmp_path, chunks=2)
    assert [len(row["completions"]) for row in rewarded.iter_rows()] == [3, 2, 3, 2]
    counts = rewarded.manifest.stats["counts"]
    assert counts["completions_over_length"] == 2
    assert counts["reference_completions"] == 6
    assert rewarded.manifest.slug.endswith("reward_model")
    with_answers = make_dataset([row | {"answers": ["1"]} for row in rows], COMPLETIONS, params={"a": 1})
    [chunk] = plan(with_answers, work=str(tmp_path / "work"), chunks=1)
    assert run(config(model=str(model)), chunk=chunk).reused_rows == 4


def test_where_the_model_lies_does_not_enter_the_recipe(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(rows_of(2), COMPLETIONS)
    step = reward_all(dataset, config(BREVITY), tmp_path).manifest.provenance.step
    assert set(step["models"]["reward"]["functions"]) == {BREVITY}
    assert not {"model", "model_revision", "token_budget", "slice_rows"} & step["params"].keys()


def test_tied_prompts_are_counted_and_offline_prompts_taken(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    rows = [sampled_row(i, ["aa", "bb", "c" * (i + 1)], offline=3) for i in range(3)]
    rewarded = reward_all(make_dataset(rows, TOKENIZED), config(BREVITY), tmp_path)
    assert rewarded.manifest.stats["counts"]["prompts_all_tied"] == 1
    assert "reference_reward" not in rewarded.manifest.stats["sums"]
    with pytest.raises(SchemaMismatch, match="expected"):
        reward_all(rewarded, config(BREVITY), tmp_path, work="again")


def test_component_runs_the_stage(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(rows_of(3), COMPLETIONS)
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    options = {"slice_rows": 2.0, "reward": {"over_length": "fail"}}
    text = component.python_func(chunk=chunk.to_json(), reward_functions=[BREVITY, EXACT], options=options)
    assert '"rows": 3' in text


def test_texts_that_share_token_ids_have_rewards_of_their_own(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    """As where a template trims: a reward reads text, so what one got is not taken for the other."""
    found = []
    for number, text in enumerate(("four", "four\n\nmore")):
        row = sampled_row(0, ["other", "four"])
        row["completions"][1]["messages"] = canonical_json([{"role": "assistant", "content": text}])
        dataset = make_dataset([row], COMPLETIONS, params={"number": number})
        planned = plan(dataset, work=str(tmp_path / "work"), chunks=1)
        parts = [run(config(BREVITY), chunk=chunk) for chunk in planned]
        rewarded = merge(parts, planned, str(tmp_path / f"merged-{number}"))
        found.append([c["reward"] for row in rewarded.iter_rows() for c in row["completions"]])
    assert found[0][0] == found[1][0]
    assert found[0][1] == 256 / 260
    assert found[1][1] == 256 / 266
