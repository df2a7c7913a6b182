"""The logprobs stage: scorer and sampler sources, drift, and independence of chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.sampled import named_in_round
from kubealign_components.data.schemas import COMPLETIONS, completion_id, new_completion
from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer
from kubealign_components.errors import ConfigError, DriftError, EngineError, SchemaMismatch
from kubealign_components.logprobs.stage import LogprobsConfig, run
from support.tiny import prompt_row


@pytest.fixture
def dataset(tiny_model: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    """Five prompts, each with an offline completion, a sampled one, and the sampled one again."""
    template = ChatTemplate(find_model(str(tiny_model)))
    rows = []
    with Scorer(tiny_model, device="cpu") as scorer:
        for number in range(5):
            row = prompt_row(f"question {number}")
            prompt = template.prompt_ids([{"role": "user", "content": f"question {number}"}])
            texts = [[30 + number, 31, 2], [40, 41 + number, 42, 2]]
            offline, sampled = (completion(row["prompt_id"], ids) for ids in texts)
            [[_, exact]] = scorer.score([Group(prompt, texts)])
            sampled |= {"reference": True, "sampler_logprob": exact}
            rows.append(
                row
                | {"prompt_token_ids": prompt, "prompt_tokens": len(prompt)}
                | {"completions": [offline, sampled, dict(sampled)]}
            )
    return make_dataset(rows, COMPLETIONS, identity=template.identity)


def completion(prompt: str, ids: list[int]) -> dict[str, Any]:
    return new_completion(
        completion_id=completion_id(prompt, ids), reference=False, token_ids=ids, num_tokens=len(ids),
        messages="[]", finish_reason="stop",
    )  # fmt: skip


def logprobs(dataset: Dataset, folder: Path, policy: Path, chunks: int = 1, **settings: Any) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    config = LogprobsConfig(policy=str(policy), **settings)
    return merge([run(config, chunk=chunk) for chunk in planned], planned, str(folder / "merged"))


def values(dataset: Dataset) -> list[list[float]]:
    return [[c["logprob"] for c in row["completions"]] for row in dataset.iter_rows()]


def changed(dataset: Dataset, make_dataset: Callable[..., Dataset], value: float | None) -> Dataset:
    """The same rows, with another log-probability from the sampler."""
    rows = list(dataset.iter_rows())
    for row in rows:
        for c in row["completions"]:
            if c["reference"]:
                c["sampler_logprob"] = value
    return make_dataset(rows, COMPLETIONS, identity=dataset.manifest.identity)


@pytest.mark.parametrize("source", ["scorer", "sampler"])
def test_chunks_slices_and_budgets_change_nothing(
    dataset: Dataset, tiny_model: Path, tmp_path: Path, source: str
) -> None:
    whole = logprobs(dataset, tmp_path / "a", tiny_model, source=source)
    cut = logprobs(dataset, tmp_path / "b", tiny_model, 3, source=source, slice_rows=1, token_budget=20)
    assert whole.manifest.fingerprint == cut.manifest.fingerprint
    assert whole.manifest.schema == COMPLETIONS
    for one, other in zip(values(whole), values(cut), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
        assert one[1] == one[2] < 0, "identical completions have one log-probability"
    assert whole.manifest.stats["counts"]["completions"] == 15


def test_sampler_and_scorer_agree_and_the_drift_is_recorded(
    dataset: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    scored = values(logprobs(dataset, tmp_path / "a", tiny_model))
    taken = logprobs(dataset, tmp_path / "b", tiny_model, source="sampler", drift_share=1.0)
    for one, other in zip(scored, values(taken), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    total, count = taken.manifest.stats["sums"]["drift_per_token"]
    assert count == 5
    assert total == pytest.approx(0, abs=1e-3)


def test_drift_beyond_the_limit_fails_with_both_numbers(
    dataset: Dataset, make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    off = changed(dataset, make_dataset, -0.25)
    with pytest.raises(DriftError, match=r"differ by .* nats per token.*-0\.250 from the sampler"):
        logprobs(off, tmp_path, tiny_model, source="sampler")
    logprobs(off, tmp_path, tiny_model, source="scorer")


def test_what_the_policy_of_a_further_round_said_is_scored(
    dataset: Dataset, make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    """It is a reference where that round was the first to ask a prompt, but of another policy."""
    rows = list(changed(dataset, make_dataset, -0.25).iter_rows())
    for row in rows:
        row["completions"] = [{**c, "model": named_in_round("policy", 2)} for c in row["completions"]]
    further = make_dataset(rows, COMPLETIONS, identity=dataset.manifest.identity)
    taken = logprobs(further, tmp_path / "a", tiny_model, source="sampler", drift_share=1.0)
    for one, other in zip(values(taken), values(logprobs(dataset, tmp_path / "b", tiny_model)), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("value", [0.5, float("nan"), None])
def test_an_impossible_sampler_value_is_refused(
    dataset: Dataset,
    make_dataset: Callable[..., Dataset],
    tiny_model: Path,
    tmp_path: Path,
    value: float | None,
) -> None:
    with pytest.raises(EngineError, match=f"log-probability {value!r}"):
        logprobs(changed(dataset, make_dataset, value), tmp_path, tiny_model, source="sampler", max_drift=1e9)


def test_a_broken_model_names_the_prompt(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoModelForCausalLM

    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_input_embeddings().weight.data[250] = float("nan")
    model.save_pretrained(broken)
    row = prompt_row("question") | {"prompt_token_ids": [5, 6], "prompt_tokens": 2}
    row["completions"] = [completion(row["prompt_id"], ids) for ids in ([7, 2], [250, 2])]
    template = ChatTemplate(find_model(str(broken)))
    dataset = make_dataset([row], COMPLETIONS, identity=template.identity)
    with pytest.raises(EngineError, match=f"completion 1 of prompt {row['prompt_id']} has log-prob.* nan"):
        logprobs(dataset, tmp_path, broken)


def test_another_policy_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    from support.tiny import build_tiny_model

    other = build_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="policy='other'"):
        logprobs(dataset, tmp_path, other)


def test_prompts_without_completions_are_the_wrong_kind(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(SchemaMismatch, match=r"kubealign\.prompts/v1"):
        logprobs(make_dataset([prompt_row("a")]), tmp_path, tiny_model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "guess"}, "source='guess'"),
        ({"max_drift": 0.0}, "max_drift=0.0"),
        ({"drift_share": 2.0}, "drift_share=2.0"),
    ],
)
def test_settings_are_checked_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogprobsConfig(policy="p", **settings)


def test_another_template_of_the_same_texts_is_scored_again(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    """An offline completion's id is its text's: other tokens under the same id must not get its number."""
    row = prompt_row("question") | {"prompt_token_ids": [5, 6], "prompt_tokens": 2}
    identity = ChatTemplate(find_model(str(tiny_model))).identity
    found = []
    for number, ids in enumerate(([7, 8, 2], [9, 2])):
        own = completion(row["prompt_id"], [1]) | {"token_ids": ids, "num_tokens": len(ids)}
        rows = [row | {"completions": [own]}]
        dataset = make_dataset(rows, COMPLETIONS, identity=identity, params={"template": number})
        planned = plan(dataset, work=str(tmp_path / "work"), chunks=1)
        parts = [run(LogprobsConfig(policy=str(tiny_model)), chunk=chunk) for chunk in planned]
        found.append(values(merge(parts, planned, str(tmp_path / f"merged-{number}"))))
    assert found[0] != found[1]


def test_the_recipe_says_what_auto_was(dataset: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    step = logprobs(dataset, tmp_path, tiny_model).manifest.provenance.step
    assert step["params"]["regime"] == {
        "weights": "float32",
        "compute": "bfloat16" if torch.cuda.is_available() else "float32",
        "head": "float32",
        "attention": "segments",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    assert not {"dtype", "adapter", "max_drift"} & step["params"].keys()
