"""Pairs that people labelled: no samples and no reward, and better than chance on prompts that are new."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubealign import load_run_file, quickstart, run_local
from kubealign_components.data.schemas import SELECTION
from support.tiny import build_tiny_model

SHIPPED = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/preferences.yaml"
CHARACTERS = 96
"""Of an answer: how it begins tells a refusal from compliance, and a byte is a token of the tiny model."""
APART = 0.75
"""Least difference of the two ratings of a pair, of a scale from 0 to 1."""


def pairs(ratings: Path) -> Iterator[dict[str, str]]:
    """A prompt's best rated answer against its worst, its second best against its second worst, and so on."""
    rated: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for line in ratings.read_text().splitlines():
        row = json.loads(line)
        rated[row["prompt"]].append((row["score"], row["completion"][:CHARACTERS]))
    for prompt, answers in rated.items():
        answers.sort(reverse=True)
        for (good, chosen), (bad, rejected) in list(zip(answers, answers[::-1]))[: len(answers) // 2]:
            if good - bad >= APART and chosen != rejected:
                yield {"prompt": prompt[:CHARACTERS], "chosen": chosen, "rejected": rejected}


def test_held_out_people_are_agreed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 40 % of the prompts held out, and an interval by prompt. Of seeds 0 to 3, which choose them, the
    model's weights and the order of examples, accuracies were 0.73 to 0.81 and lower bounds 0.59 to 0.69."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = tmp_path / "people.jsonl"
    rows = list(pairs(quickstart.ratings() / "harm.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "policy": str(build_tiny_model(tmp_path / "model")),
        "sources.0.uri": str(source),
        "validation_fraction": "0.4",
        "sample_engine": "transformers",
        "sample_max_new_tokens": "2",
        "train_adapter": "none",
        "train_learning_rate": "0.002",
        "train_options": "{batch_size: 16, max_steps: 24}",
    }
    run = load_run_file(SHIPPED).with_parameters([f"{name}={value}" for name, value in settings.items()])
    results = run_local(run, output=tmp_path / "runs")
    assert [row.stage for row in results.stages] == [
        *("import_prompts", "filter", "select", "logprobs", "mix", "train", "evaluate")
    ]
    told = results.evaluation
    assert told["preference_pairs"] > 40
    assert told["preference_accuracy_low"] > 0.5
    assert "reward_gain" not in told
    labelled = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows}
    selected = results.datasets["select"]
    assert selected.manifest.schema == SELECTION
    for row in selected.iter_rows():
        for pair in row["pairs"]:
            sides = (row["completions"][pair[side]] for side in ("chosen", "rejected"))
            texts = [json.loads(side["messages"])[0]["content"] for side in sides]
            assert (json.loads(row["messages"])[-1]["content"], *texts) in labelled
