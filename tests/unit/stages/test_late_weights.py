"""Weights are fetched when an engine starts: a task whose results are all finished needs none of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from kubealign_components.config import from_mapping
from kubealign_components.data.cache import CACHE
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model, with_weights
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import EngineError, KubeAlignError
from kubealign_components.evaluate.stage import EvaluateConfig
from kubealign_components.evaluate.stage import run as evaluate
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.store import register
from support.bucket import Bucket
from support.stage_worker import STAGES, run
from support.tiny import build_tiny_model, prompt_row

ROWS, WEIGHTS = 4, "model.safetensors"
SAMPLING = {"engine": "transformers", "n": 2, "max_new_tokens": 4, "dtype": "float32"}


class Remote:
    """A policy and a reward model in a bucket, prompts and completions on this machine."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self.bucket, self._folder = bucket, folder
        policy = build_tiny_model(folder / "bucket" / "policy")
        shape = LlamaConfig.from_pretrained(policy, num_labels=1, pad_token_id=0)
        LlamaForSequenceClassification(shape).save_pretrained(folder / "bucket" / "reward")
        AutoTokenizer.from_pretrained(policy).save_pretrained(folder / "bucket" / "reward")
        self.policy, self.reward = (f"bucket://{folder}/bucket/{name}" for name in ("policy", "reward"))
        with DatasetWriter(str(folder / "prompts"), PROMPTS, derive("test", 1, {})) as writer:
            writer.write_rows([prompt_row(f"question {i}?") for i in range(ROWS)])
            prompts = writer.commit(Stats(rows_in=ROWS, rows_out=ROWS))
        output = str(folder / "tokenized")
        filter_prompts(FilterConfig(policy=str(policy)), prompts=prompts, output=output)
        self.tokenized = Dataset.open(output)
        settings = {"policy": str(policy), "sampling": {"engine": "fake", "n": 2, "max_new_tokens": 16}}
        [chunk] = plan(self.tokenized, work=str(folder / "sampled"), chunks=1)
        self.completions = merge([run("sample", settings, chunk)], [chunk], str(folder / "completions"))

    def settings(self, stage: str) -> dict[str, object]:
        own: dict[str, dict[str, object]] = {
            "sample": {"policy": self.policy, "sampling": SAMPLING},
            "rewards": {"reward": {"model": self.reward}},
            "logprobs": {"policy": self.policy},
            "judge": {"judge": self.policy, "min_characters": 1, "principle_names": ["Concise"]},
            "rank": {"judge": {"judge": self.policy, "principle_names": ["Concise"]}},
        }
        return own[stage]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    bucket = Bucket()
    register("bucket", lambda: bucket)
    monkeypatch.setenv(CACHE, str(tmp_path / "first-machine"))
    return Remote(tmp_path, bucket)


def on_another_machine(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "second-machine"))
    remote.bucket.fetched = []


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_finished_results_are_put_together_without_weights(
    stage: str, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = remote.tokenized if stage == "sample" else remote.completions
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    first = run(stage, remote.settings(stage), chunk)
    assert WEIGHTS in remote.bucket.fetched
    rows = list(Dataset.open(first.uri).iter_rows())
    shutil.rmtree(tmp_path / "work" / stage / "parts")
    on_another_machine(remote, tmp_path, monkeypatch)
    again = run(stage, remote.settings(stage), chunk)
    assert list(Dataset.open(again.uri).iter_rows()) == rows
    assert remote.bucket.fetched, "config and tokenizer tell which model it is"
    assert WEIGHTS not in remote.bucket.fetched


def test_a_finished_evaluation_is_taken_over_without_weights(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "policy": remote.policy, "sampling": SAMPLING, "reward": {"model": remote.reward},
        "validation_fraction": 0.99, "work": str(tmp_path / "work"), "kl_prompts": 2,
    }  # fmt: skip
    config = from_mapping(EvaluateConfig, settings, "evaluate")

    def evaluated(name: str) -> Dataset:
        evaluate(config, rewarded=remote.tokenized, model=remote.policy, output=str(tmp_path / name))
        return Dataset.open(str(tmp_path / name))

    first = evaluated("first")
    on_another_machine(remote, tmp_path, monkeypatch)
    again = evaluated("again")
    assert again.manifest.fingerprint == first.manifest.fingerprint
    assert remote.bucket.fetched
    assert WEIGHTS not in remote.bucket.fetched


def test_weights_are_fetched_once_however_many_processes_load_them(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that starts them: these know no such bucket, and end."""
    find_model(remote.reward)  # leaves a record, so that weights are no longer fetched to say which they are
    on_another_machine(remote, tmp_path, monkeypatch)
    [chunk] = plan(remote.completions, work=str(tmp_path / "work"), chunks=1)
    with pytest.raises(KubeAlignError):
        run("rewards", {**remote.settings("rewards"), "processes": 2}, chunk)
    assert remote.bucket.fetched.count(WEIGHTS) == 1


def test_a_template_that_changed_since_results_were_looked_up_is_refused(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_model(remote.reward)
    on_another_machine(remote, tmp_path, monkeypatch)
    looked_up = find_model(remote.reward, weights=False)
    assert looked_up.elsewhere
    template = Path(remote.reward.removeprefix("bucket://")) / "chat_template.jinja"
    template.write_text(template.read_text() + "{# other #}")
    with pytest.raises(EngineError, match="was changed since this task began"):
        with_weights(looked_up)


def test_weights_that_changed_since_results_were_looked_up_are_refused(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_model(remote.policy)
    on_another_machine(remote, tmp_path, monkeypatch)
    looked_up = find_model(remote.policy, weights=False)
    file = Path(remote.policy.removeprefix("bucket://")) / WEIGHTS
    body = file.read_bytes()
    file.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(EngineError, match="was changed since this task began"):
        with_weights(looked_up)
    file.write_bytes(body)
    assert (with_weights(looked_up).path / WEIGHTS).read_bytes() == body
