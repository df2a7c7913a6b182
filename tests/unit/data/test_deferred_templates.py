"""What identifies a template is known without loading it, and is never that of another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kubealign_components.data.cache import CACHE, keep_text, kept_text
from kubealign_components.data.chat import ChatTemplate, DeferredTemplate, TemplateSettings, deferred, policy
from kubealign_components.data.chat.deferred import KIND
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import file_digest
from kubealign_components.data.models import find_model
from kubealign_components.errors import EngineError
from support.datasets import MakeDataset, questions
from support.tiny import CHATML
from support.training_data import make_training, score, training_rows

DATED = CHATML + "{{ strftime_now('%Y') if add_generation_prompt and false else '' }}"
ENDLESS = CHATML.replace("<|im_end|>", "|")


@pytest.fixture
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models whose tokenizer was loaded; an empty cache."""
    loaded: list[Path] = []
    load = policy.load_tokenizer

    def counted(model: Path) -> object:
        loaded.append(model)
        return load(model)

    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "load_tokenizer", counted)
    return loaded


def facts(template: ChatTemplate | DeferredTemplate) -> tuple[dict[str, str], tuple[int, ...]]:
    return template.identity, template.end_ids


@pytest.mark.parametrize(
    "settings",
    [
        None,
        TemplateSettings(text=CHATML + " "),
        TemplateSettings(text=DATED),
        TemplateSettings(text=DATED, date="2025-01-01"),
        TemplateSettings(text=CHATML + "{{ x }}", kwargs={"x": ""}),
        TemplateSettings(text=ENDLESS),
    ],
)
def test_a_template_is_loaded_once_for_what_identifies_it(
    tiny_model: Path, loads: list[Path], settings: TemplateSettings | None
) -> None:
    model = find_model(str(tiny_model))
    expected = facts(ChatTemplate(model, settings))
    plain = facts(ChatTemplate(model))
    del loads[:]
    assert facts(DeferredTemplate(model)) == plain
    for _ in range(3):
        assert facts(DeferredTemplate(model, settings)) == expected
    assert len(loads) == (1 if settings is None else 2)


def test_a_model_whose_files_differ_has_its_own(tiny_model: Path, tmp_path: Path, loads: list[Path]) -> None:
    seen = []
    changes = {
        "config.json": ("eos_token_id", 3),
        "generation_config.json": ("eos_token_id", [4]),
        "tokenizer_config.json": ("eos_token", "<|pad|>"),
        "chat_template.jinja": ("", CHATML.replace("\n", " ")),
    }
    for name, (member, value) in changes.items():
        folder = Path(shutil.copytree(tiny_model, tmp_path / name))
        if member:
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(content | {member: value}))
        else:
            (folder / name).write_text(str(value))
        if name == "config.json":
            (folder / "generation_config.json").unlink()
        model = find_model(str(folder))
        seen.append(facts(DeferredTemplate(model)))
        assert seen[-1] == facts(ChatTemplate(model))
    assert len({str(each) for each in seen}) == len(changes)
    assert len(loads) == 2 * len(changes)


def test_what_cannot_be_used_is_not_kept(tiny_model: Path, loads: list[Path]) -> None:
    model = find_model(str(tiny_model))
    unusable = TemplateSettings(text="{{ messages[0]['content'] }}")
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot be used"):
            _ = DeferredTemplate(model, unusable).identity
    assert len(loads) == 2


@pytest.mark.parametrize(
    "kept", ["", "{", "[]", "3", '{"fingerprint": "a"}', '{"fingerprint": "a", "end_ids": 3}']
)
def test_a_damaged_cache_does_no_harm(tiny_model: Path, tmp_path: Path, loads: list[Path], kept: str) -> None:
    model = find_model(str(tiny_model))
    expected = facts(DeferredTemplate(model))
    (file,) = (tmp_path / "cache" / KIND).iterdir()
    file.write_text(kept)
    assert facts(DeferredTemplate(model)) == expected
    assert len(loads) == 2


@pytest.mark.parametrize("name", ["model_files.py", "models.py", "ends.py"])
def test_what_other_code_found_out_is_found_out_again(
    tiny_model: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The code that reads a model's configs names ends of turns too, wherever it lies."""
    model = find_model(str(tiny_model))
    expected = facts(DeferredTemplate(model))

    def changed(path: Path) -> str:
        return file_digest(path) + (", changed" if path.name == name else "")

    monkeypatch.setattr(deferred, "file_digest", changed)
    deferred._made_by.cache_clear()
    try:
        assert facts(DeferredTemplate(model)) == expected
    finally:
        deferred._made_by.cache_clear()
    assert len(loads) == 2


def test_what_cannot_be_kept_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    (tmp_path / KIND / "key").mkdir(parents=True)  # no file can take its place
    keep_text(KIND, "key", "text")
    assert [path.name for path in (tmp_path / KIND).iterdir()] == ["key"]
    keep_text(KIND, "other", "text")
    assert kept_text(KIND, "other") == "text"
    assert len(list((tmp_path / KIND).iterdir())) == 2


STAGES = """
import sys
from kubealign_components.config import from_mapping
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.evaluate.stage import EvaluateConfig, run as evaluate
from kubealign_components.filter.stage import FilterConfig, run as filter_prompts
from kubealign_components.logprobs.stage import LogprobsConfig, run as logprobs
from kubealign_components.rewards.stage import RewardsConfig, run as rewards
from kubealign_components.sample.stage import SampleConfig, run as sample
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run as train

def chunked(stage, settings, dataset, name):
    chunks = plan(dataset, work=work, chunks=1)
    return merge([stage(settings, chunk=chunk) for chunk in chunks], chunks, output + name)

policy, prompts, training, work, output = sys.argv[1:]
limits = FilterConfig(policy=policy, max_seq_len=512, max_prompt_len=256, work=work)
filter_prompts(limits, prompts=Dataset.open(prompts), output=output + "tokenized")
sampling = SamplingSpec(engine="fake", n=2, max_new_tokens=8)
tokenized = Dataset.open(output + "tokenized")
sampled = chunked(sample, SampleConfig(policy=policy, sampling=sampling), tokenized, "sampled")
scoring = {"policy": policy, "source": "scorer", "reference": policy, "dtype": "float32"}
chunked(logprobs, from_mapping(LogprobsConfig, scoring, "logprobs"), sampled, "scored")
settings = TrainConfig(policy=policy, max_steps=1, batch_size=2, dtype="float32", work=work)
train(settings, training=Dataset.open(training), output=output + "model")
reward = {"functions": [{"function": "kubealign_components.rewards.functions:brevity"}]}
given = {"policy": policy, "sampling": sampling, "reward": reward, "validation_fraction": 0.5, "work": work}
rewarding = from_mapping(RewardsConfig, {"reward": reward}, "rewards")
rewarded = chunked(rewards, rewarding, sampled, "rewarded")
settings = from_mapping(EvaluateConfig, given, "evaluate")
evaluate(settings, rewarded=rewarded, model=output + "model", output=output + "evaluated")
print([name for name in ("torch", "transformers", "tokenizers") if name in sys.modules])
"""


def test_stages_that_find_their_output_load_no_tokenizer(
    tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    prompts = make_dataset(questions(12))
    training = make_training(make_dataset, tiny_model, score(training_rows(6, validation=2), tiny_model))
    inputs = [str(tiny_model), prompts.uri, training.uri, str(tmp_path / "work")]

    def loaded(output: str) -> str:
        command = [sys.executable, "-c", STAGES, *inputs, f"{tmp_path / output}-"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert "transformers" in loaded("first")
    assert loaded("again") == "[]"
    both = [Dataset.open(f"{tmp_path / name}-evaluated").manifest for name in ("first", "again")]
    assert both[0].shards == both[1].shards
