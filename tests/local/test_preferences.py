"""Pairs that people labelled: trained on as they are, without samples and without a reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubealign import load_run_file, run_local
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import SELECTION

SHIPPED = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/preferences.yaml"


def settings(policy: Path, pairs: Path, **changes: str) -> list[str]:
    values = {"policy": str(policy), "sources.0.uri": str(pairs), "sources.0.name": "people", **changes}
    return [f"{name}={value}" for name, value in values.items()]


def test_the_shipped_run_file_aligns_on_labels_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        {"prompt": f"Number {i}?", "chosen": "aaaa" * (i % 3 + 1), "rejected": "zz" * (i % 2 + 2)}
        for i in range(48)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    small = {
        "validation_fraction": "0.3",
        "sample_engine": "transformers",
        "sample_max_new_tokens": "6",
        "train_adapter": "none",
        "train_learning_rate": "0.002",
        "train_options": "{batch_size: 8, max_steps: 24}",
    }
    run = load_run_file(SHIPPED).with_parameters(settings(tiny_model, pairs, **small))
    results = run_local(run, output=tmp_path / "runs")
    assert [row.stage for row in results.stages] == [
        *("import_prompts", "filter", "select", "logprobs", "mix", "train", "evaluate")
    ]
    assert results.evaluation["preference_accuracy"] > 0.9
    assert results.evaluation["preference_accuracy_low"] > 0.5
    assert "reward_gain" not in results.evaluation
    folder = next(path.parent for path in results.folder.rglob("manifest.json") if "select" in str(path))
    for row in Dataset.open(str(folder), SELECTION).iter_rows():
        [pair] = row["pairs"]
        texts = [json.loads(row["completions"][pair[side]]["messages"]) for side in ("chosen", "rejected")]
        assert [text[0]["content"][0] for text in texts] == ["a", "z"]
