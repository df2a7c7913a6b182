"""Reward-free DPO on what real people wrote and rated: better than chance on prompts that it has not seen."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from kubealign import load_run_file, quickstart, run_local
from support.tiny import build_tiny_model

SHIPPED = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/preferences.yaml"
CHARACTERS = 96
"""Of an answer: how it begins tells a refusal from compliance, and a byte is a token of the tiny model."""
APART = 0.75
"""Least difference of the two ratings of a pair, of a scale from 0 to 1."""
Z = 1.96
"""Standard errors that an interval of 95 % reaches to each side."""


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


def trained_on(source: Path, folder: Path, seed: int) -> Mapping[str, float]:
    """What ``evaluate`` says of a run on ``source`` whose model, split and order are the seed's."""
    settings = {
        "policy": str(build_tiny_model(folder / "model", seed=seed)),
        "sources.0.uri": str(source),
        "validation_fraction": "0.4",
        "seed": str(seed),
        "sample_engine": "transformers",
        "sample_max_new_tokens": "2",
        "train_adapter": "none",
        "train_learning_rate": "0.002",
        "train_options": "{batch_size: 16, max_steps: 24}",
    }
    run = load_run_file(SHIPPED).with_parameters([f"{name}={value}" for name, value in settings.items()])
    return run_local(run, output=folder / "runs").evaluation


def test_held_out_people_are_agreed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two seeds, each with 40 % of the prompts held out; intervals are by prompt."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = tmp_path / "people.jsonl"
    rows = list(pairs(quickstart.ratings() / "harm.jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [trained_on(source, tmp_path / str(seed), seed) for seed in (0, 1)]
    held = np.array([t["preference_pairs"] for t in told])
    accuracy = np.array([t["preference_accuracy"] for t in told])
    error = (accuracy - np.array([t["preference_accuracy_low"] for t in told])) / Z
    share = held / held.sum()
    assert held.min() > 20
    assert share @ accuracy - Z * np.sqrt(share**2 @ error**2) > 0.5
