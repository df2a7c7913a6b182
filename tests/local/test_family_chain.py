"""Families from import to the aligned model: one idea of tokens and of ends all the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.data.chat import ChatTemplate, end_token_ids, stored_settings
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.engines.rewards import RewardFunctionSpec, RewardSpec
from kubealign_components.errors import DataError
from kubealign_components.evaluate.comparable import check_tokens
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
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run as run_train
from support.families import FAMILIES, build_family

BREVITY = RewardSpec(
    functions=(RewardFunctionSpec(function="kubealign_components.rewards.functions:brevity"),)
)


def chunked(run: Callable[..., Any], config: Any, dataset: Dataset, folder: Path) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=1)
    return merge([run(config, chunk=c) for c in planned], planned, str(folder / "merged"))


SETTINGS: dict[str, dict[str, Any]] = {
    "llama3.2": {"chat_template_date": "2025-12-01"},
    "qwen3": {"chat_template_kwargs": {"enable_thinking": False}},
    "alpaca": {"chat_template": "own.jinja"},
}
"""Of the template, for some families."""
OWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("name", FAMILIES)
def test_from_import_to_the_aligned_model(name: str, tmp_path: Path) -> None:
    settings = dict(SETTINGS.get(name, {}))
    if "chat_template" in settings:
        settings["chat_template"] = str(tmp_path / "own.jinja")
        (tmp_path / "own.jinja").write_text(OWN)
    policy = build_family(FAMILIES[name], tmp_path / name, weights=True)
    source = tmp_path / "rows.jsonl"
    system = [{"role": "system", "content": "Be brief."}]
    rows = [
        {
            "messages": [
                *system,
                {"role": "user", "content": f"Fruit {i}?"},
                {"role": "assistant", "content": "Plum"},
            ]
        }
        for i in range(6)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = [str(tmp_path / step) for step in ("prompts", "tokens", "selected", "mixed", "aligned")]
    run_import(ImportConfig(sources=(SourceConfig(name="s", uri=str(source)),)), output=place[0])
    filtering = FilterConfig(policy=str(policy), **settings)
    run_filter(filtering, prompts=Dataset.open(place[0]), output=place[1])
    tokens = Dataset.open(place[1])
    template = ChatTemplate(ModelFiles(name=name, path=policy), stored_settings(tokens))

    config = SampleConfig(
        policy=str(policy), sampling=SamplingSpec(engine="transformers", n=4, max_new_tokens=10)
    )
    sampled = chunked(run_sample, config, tokens, tmp_path / "sample")
    ends = set(template.end_ids)
    for row in sampled.iter_rows():
        for completion in row["completions"]:
            inside, last = completion["token_ids"][:-1], completion["token_ids"][-1]
            assert not ends.intersection(inside)
            assert (last in ends) == (completion["finish_reason"] in ("stop", "offline"))
            if completion["reference"]:
                text = json.loads(completion["messages"])[0]["content"]
                written = completion["token_ids"] if last not in ends else inside
                assert text == template.tokenizer.decode(written)

    rewarded = chunked(run_rewards, RewardsConfig(reward=BREVITY), sampled, tmp_path / "rewards")
    run_select(SelectConfig(), rewarded=rewarded, output=place[2])
    scoring = LogprobsConfig(policy=str(policy))
    scored = chunked(run_logprobs, scoring, Dataset.open(place[2]), tmp_path / "logprobs")
    run_mix(MixConfig(validation_fraction=0.0), selections=[scored], output=place[3])
    training = TrainConfig(policy=str(policy), max_steps=1, dtype="float32", batch_size=4)
    run_train(training, training=Dataset.open(place[3]), output=place[4])

    aligned = ModelFiles(name="aligned", path=Path(place[4]))
    row = next(tokens.iter_rows())
    check_tokens(aligned, template.end_ids, row, stored_settings(tokens))
    assert end_token_ids(aligned.path) == template.end_ids
    manifest = Dataset.open(place[4]).manifest
    assert manifest.extra["chat_template"]["of"] == ("setting" if "chat_template" in settings else "policy")
    if "chat_template" in settings:
        check_tokens(aligned, template.end_ids, row)
    elif settings:
        with pytest.raises(DataError, match="tokenises prompt"):
            check_tokens(aligned, template.end_ids, row)
