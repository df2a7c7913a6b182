"""Runs that take what others finished: after a failed evaluation the model is still there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubealign import Results, RunFile, run_local
from kubealign.errors import RunFailed


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages run in processes of their own: small models are faster on one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run_file(tiny_model: Path, folder: Path, **parameters: object) -> RunFile:
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(24)))
    return RunFile(
        parameters={
            "sources": [{"name": "own", "uri": str(source)}],
            "policy": str(tiny_model),
            "reward_functions": ["kubealign_components.rewards.functions:brevity"],
            "validation_fraction": 0.3,
            "sample_engine": "transformers",
            "sample_n": 4,
            "sample_max_new_tokens": 8,
            "train_learning_rate": 0.001,
            "train_options": {"max_steps": 2, "batch_size": 4},
            **parameters,
        }
    )


def logs(results: Results) -> dict[str, str]:
    return {log.stem.partition("-")[2]: log.read_text() for log in results.folder.rglob("logs/*/*.log")}


def weights(results: Results) -> Path:
    assert results.model is not None
    return Path(results.model) / "model.safetensors"


def test_after_a_failed_evaluation_the_model_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    failing = run_file(tiny_model, tmp_path, evaluate_options={"min_gain": 1e6})
    with pytest.raises(RunFailed, match="min_gain"):
        run_local(failing, output=output, name="first")
    second = run_local(run_file(tiny_model, tmp_path), output=output, name="second")
    told = logs(second)
    for stage in ("import-prompts", "filter", "select", "mix", "train", "evaluate"):
        assert "was finished before" in told[stage], stage
    trained = next((output / "runs" / "first").rglob("model.safetensors"))
    assert weights(second).stat().st_ino == trained.stat().st_ino
    third = run_local(run_file(tiny_model, tmp_path, train_options={"max_steps": 3}), output=output)
    assert "was finished before" in logs(third)["mix"]
    assert "was finished before" not in logs(third)["train"]
    assert "get_accelerator" not in logs(third)["train"], "DeepSpeed is loaded where it shards nothing"
