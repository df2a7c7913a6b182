"""The reward model on synthetic preferences: that it learns principles, what it saves, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL, canonical_json
from kubealign_components.engines.reward_model import HEAD_FILE, HEAD_KEY, load_head
from kubealign_components.engines.rewards import Rewarder, RewardInput, RewardSpec
from kubealign_components.errors import ConfigError, DataError, EngineError
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.model import padding_id
from kubealign_components.train_reward_model.pairs import conversations, shown_principles
from kubealign_components.train_reward_model.report import report_page
from kubealign_components.train_reward_model.stage import run
from kubealign_components.training.checkpoints import MARKERS
from kubealign_components.training.curves import training_log
from support.datasets import MakeDataset
from support.pages import Page
from support.preference_data import (
    LOUD,
    build_learner,
    is_loud,
    make_preferences,
    preference_rows,
    principle_set,
    write_files,
)
from support.tiny import build_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny policy, a template and a principle set."""
    folder = tmp_path_factory.mktemp("reward")
    build_learner(folder / "policy")
    write_files(folder)
    return folder


def settings(place: Path, **changes: Any) -> RewardModelConfig:
    """Six steps of eight pairs in full training, at a rate at which a tiny model moves."""
    defaults: dict[str, Any] = {
        "policy": str(place / "policy"),
        "template": str(place / "short-template.yaml"),
        "principles": str(place / "synthetic-principles.yaml"),
        "adapter": "none",
        "max_steps": 6,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "max_grad_norm": 1.0,
        "dtype": "float32",
    }
    return RewardModelConfig(**(defaults | changes))


@pytest.fixture
def some(make_dataset: MakeDataset) -> Dataset:
    """Forty pairs to train on and ten that are held out."""
    return make_preferences(make_dataset, preference_rows(40, validation=10))


def steps(model: Path) -> list[dict[str, Any]]:
    return [m for _, m in training_log(Dataset.open(str(model), MODEL)) if "loss" in m]


def losses(model: Path) -> list[float]:
    return [m["loss"] for m in steps(model)]


def weights(model: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    return state


def read_alone(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Scores of the preferred completions by plain transformers, one at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for row in rows:
        text = tokenizer.apply_chat_template(
            conversations(row)[0], principles=shown_principles(row), tokenize=False
        )
        with torch.no_grad():
            scores.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
    return scores


def bradley_terry(margins: torch.Tensor) -> float:
    return float(-torch.nn.functional.logsigmoid(margins).mean())


def as_inputs(rows: list[dict[str, Any]]) -> list[RewardInput]:
    """The preferred completions as the rewards stage gives them to a reward model."""
    inputs = []
    for row in rows:
        written = json.loads(row["completions"][row["preferred"]]["messages"])
        inputs.append(
            RewardInput(
                messages=json.loads(row["messages"]),
                completion=written,
                text=written[0]["content"],
                principles=shown_principles(row),
            )
        )
    return inputs


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_principle_and_its_negation_are_learned(
    make_dataset: MakeDataset, place: Path, tmp_path: Path, adapter: str
) -> None:
    """Held-out accuracy above 0.9 for either, and the saved model's scores are those of the training."""
    rows = preference_rows(800, validation=100)
    data = make_preferences(make_dataset, rows)
    config = settings(place, adapter=adapter, max_steps=100, batch_size=32)
    out = tmp_path / "out"
    stats = run(config, preferences=data, output=str(out))
    numbers = stats.numbers
    assert numbers["held_out_accuracy_positive"] > 0.9
    assert numbers["held_out_accuracy_negated"] > 0.9
    assert numbers["principle_sensitivity"] > 0.9
    assert numbers["swap_sensitivity"] == 0
    assert numbers["calibration_error"] < 0.1
    assert losses(out)[0] == pytest.approx(math.log(2), abs=1e-6)
    # The validation loss of the trainer is that of the saved model's scores.
    held_out = [row for row in rows if row["split"] == "validation"]
    turned = [row | {"preferred": 1 - row["preferred"]} for row in held_out]
    rewarder = Rewarder(RewardSpec(model=str(out)))
    chosen, rejected = (rewarder.score(as_inputs(one)) for one in (held_out, turned))
    margins = torch.tensor(chosen) - torch.tensor(rejected)
    assert numbers["eval_loss"] == pytest.approx(bradley_terry(margins), abs=1e-5)
    assert chosen == pytest.approx(read_alone(out, held_out), abs=1e-4)
    # Without principles given it goes by its own, stated positively: loud and tidy.
    plain = [replace(item, principles=None) for item in as_inputs(held_out)]
    own = [{"name": p.name, "text": p.statement()} for p in principle_set()]
    assert rewarder.score(plain) == pytest.approx(
        rewarder.score([replace(item, principles=own) for item in plain]), abs=1e-5
    )
    loud = [s for s, item in zip(rewarder.score(plain), plain) if is_loud(item.text)]
    soft = [s for s, item in zip(rewarder.score(plain), plain) if not is_loud(item.text)]
    assert min(loud) > max(soft)  # type: ignore[operator, type-var]
    page = Page(report_page(str(out)))
    assert {"Loss", "Accuracy", "Calibration on held-out pairs"} <= set(page.charts)
    assert [LOUD, "negated"] in [row[:2] for row in page.rows] and not page.loaded
    assert "The same answers under the principles of a pair and under their opposites" in page.text


def test_first_without_principles_then_with_them_from_adapters_and_head(
    make_dataset: MakeDataset, place: Path, tmp_path: Path
) -> None:
    """The second run starts where the first one ended; either adds up from its adapters and head."""
    human = make_preferences(make_dataset, preference_rows(64, seed=1, principled=False), kind="human")
    driven = make_preferences(make_dataset, preference_rows(64, seed=2), kind="driven")
    lora = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "batch_size": 32, "max_steps": 20}
    first, second = tmp_path / "first", tmp_path / "second"
    one = run(
        settings(place, **lora, principles="", head="normal", schedule="constant"),
        preferences=human,
        output=str(first),
    )
    assert losses(first)[0] != pytest.approx(math.log(2), abs=1e-4)  # a head that is not zero
    assert one.numbers["reward_accuracy"] > 0.9
    assert "held_out_accuracy" not in one.numbers
    run(
        settings(place, **lora | {"batch_size": 64, "max_steps": 1}),
        preferences=driven,
        start=Dataset.open(str(first)),
        output=str(second),
    )
    # The first loss of the second run is that of the first run's model on the same pairs.
    rows = preference_rows(64, seed=2)
    turned = [row | {"preferred": 1 - row["preferred"]} for row in rows]
    margins = torch.tensor(read_alone(first, rows)) - torch.tensor(read_alone(first, turned))
    assert losses(second)[0] == pytest.approx(bradley_terry(margins), abs=1e-5)
    for folder in (first, second):
        check_adapter(place, folder)
    manifest = Dataset.open(str(second)).manifest
    params = {step["params"].get("head") for step in manifest.recipe.values()} - {None}
    assert params == {"new, normal", "of start"}
    assert [parent["name"] for parent in manifest.parents] == ["preferences", "start"]


def check_adapter(place: Path, folder: Path) -> None:
    """The adapters on the policy, read through the head beside them, give the whole model's scores."""
    from peft import PeftModel

    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(place / "policy")
    assert said["task_type"] == "CAUSAL_LM"
    base = AutoModelForCausalLM.from_pretrained(place / "policy", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    head = load_head(folder / "adapter")
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        hidden = adapted.get_base_model().get_decoder()(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(head @ hidden, whole(ids).logits[0], atol=1e-5, rtol=1e-4)
    assert head.dtype == torch.float32 and head.shape == (1, 64)
    moved = max(w.abs().max() for n, w in adapted.named_parameters() if "lora_B" in n)
    assert moved > 0


def test_a_whole_reward_model_can_be_trained_on(some: Dataset, place: Path, tmp_path: Path) -> None:
    run(settings(place), preferences=some, output=str(tmp_path / "first"))
    first = Dataset.open(str(tmp_path / "first"))
    run(settings(place, learning_rate=1e-9), preferences=some, start=first, output=str(tmp_path / "second"))
    for name, weight in weights(tmp_path / "first").items():
        torch.testing.assert_close(weights(tmp_path / "second")[name], weight, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="trained in full and has no adapters"):
        run(settings(place, adapter="lora"), preferences=some, start=first, output=str(tmp_path / "third"))


def test_a_model_without_its_head_is_refused_by_file(some: Dataset, place: Path, tmp_path: Path) -> None:
    config = settings(place, adapter="lora", lora_r=4, max_steps=1)
    run(config, preferences=some, output=str(tmp_path / "first"))
    first = Dataset.open(str(tmp_path / "first"))

    def go_on(**changes: Any) -> None:
        run(replace(config, **changes), preferences=some, start=first, output=str(tmp_path / "second"))

    with pytest.raises(ConfigError, match="lora_r=8: expected 4"):
        go_on(lora_r=8)
    with pytest.raises(ConfigError, match=r"lora_targets=\('q_proj',\)"):
        go_on(lora_targets=("q_proj",))
    other = build_tiny_model(tmp_path / "other", seed=1, hidden=64)
    with pytest.raises(ConfigError, match=r"start=.*a reward model of the policy other"):
        go_on(policy=str(other))
    (tmp_path / "first" / "adapter" / HEAD_FILE).unlink()
    with pytest.raises(EngineError, match=rf"first/adapter/{HEAD_FILE} is missing"):
        go_on()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    whole.save_pretrained(
        tmp_path / "first", state_dict={k: v for k, v in whole.state_dict().items() if k != HEAD_KEY}
    )
    with pytest.raises(EngineError, match=r"first is no reward model: its checkpoint lacks score\.weight"):
        go_on(adapter="none")


def test_pairs_are_dropped_and_counted_but_never_cut(
    make_dataset: MakeDataset, place: Path, tmp_path: Path
) -> None:
    rows = preference_rows(20, validation=4)
    messages = canonical_json([{"role": "assistant", "content": "x" * 200}])
    rows[3]["completions"][1]["messages"] = messages
    rows[21]["completions"][0]["messages"] = messages
    rows[5]["completions"][1] = rows[5]["completions"][0]
    rows[7]["margin"] = None
    data = make_preferences(make_dataset, rows)
    config = settings(place, max_length=100, max_steps=1, margin=0.5)
    stats = run(config, preferences=data, output=str(tmp_path / "out"))
    assert stats.rows_in == 24 and stats.rows_out == 21
    assert dict(stats.dropped) == {"over_length": 2, "same_tokens": 1}
    assert (stats.counts["train_pairs"], stats.counts["validation_pairs"]) == (18, 3)
    assert stats.counts["pairs_without_margin"] == 1
    with pytest.raises(ConfigError, match=r"pairs to train on \(dropped: 24 over_length\)"):
        run(settings(place, max_length=5), preferences=data, output=str(tmp_path / "none"))


def test_margin_and_centring_enter_the_loss(some: Dataset, place: Path, tmp_path: Path) -> None:
    """All margins are 1. With all first scores 0 the loss is −log σ(−factor)."""
    run(settings(place, margin=2.5, max_steps=1), preferences=some, output=str(tmp_path / "margin"))
    assert losses(tmp_path / "margin")[0] == pytest.approx(math.log1p(math.exp(2.5)), rel=1e-6)
    first = []
    for centring in (0.0, 1.0, 3.0):
        config = settings(place, head="normal", centring=centring, max_steps=1)
        run(config, preferences=some, output=str(tmp_path / str(centring)))
        first.append(losses(tmp_path / str(centring))[0])
    assert first[1] - first[0] > 0.01
    assert first[2] - first[0] == pytest.approx(3 * (first[1] - first[0]), rel=1e-4)


def test_a_run_is_the_same_however_it_is_cut_and_resumed(some: Dataset, place: Path, tmp_path: Path) -> None:
    """Micro-batches, a checkpoint of another attempt, and a finished run."""
    plain = settings(place, adapter="lora", lora_dropout=0.1, batch_size=12, eval_every=2)
    run(plain, preferences=some, output=str(tmp_path / "straight"))
    saved = replace(plain, save_every=2, keep_checkpoints=9, work=str(tmp_path / "work"))
    run(saved, preferences=some, output=str(tmp_path / "saved"))
    for marker in (tmp_path / "work").rglob(f"{MARKERS}/*.json"):
        if json.loads(marker.read_text())["step"] > 2:
            marker.unlink()
    stats = run(saved, preferences=some, output=str(tmp_path / "resumed"))
    straight = weights(tmp_path / "straight")
    resumed = weights(tmp_path / "resumed")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert run(saved, preferences=some, output=str(tmp_path / "resumed")).metrics() == stats.metrics()
    whole = replace(plain, lora_dropout=0.0)
    cut = [whole, replace(whole, micro_batch_tokens=60, gradient_checkpointing=True)]
    for config, name in zip(cut, ("whole", "cut")):
        run(config, preferences=some, output=str(tmp_path / name))
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    manifests = [
        Dataset.open(str(tmp_path / name)).manifest for name in ("straight", "resumed", "whole", "cut")
    ]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[2].fingerprint == manifests[3].fingerprint != manifests[0].fingerprint


def test_the_recipe_holds_template_and_principles_not_their_places(
    some: Dataset, place: Path, tmp_path: Path
) -> None:
    run(settings(place, max_steps=1), preferences=some, output=str(tmp_path / "out"))
    manifest = Dataset.open(str(tmp_path / "out")).manifest
    step = manifest.recipe[manifest.fingerprint]
    assert step["params"]["template"]["name"] == "short"
    assert [name for name, _ in step["params"]["own_principles"]] == ["Loud", "Tidy"]
    assert step["params"]["head"] == "new, zero"
    assert step["models"]["policy"].keys() == {"digest", "tokenizer"}
    assert str(place) not in json.dumps(step)
    body = yaml.safe_load((place / "short-template.yaml").read_text())
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(body | {"text": body["text"] + "="}))
    config = settings(place, max_steps=1, template=str(tmp_path / "t.yaml"), principle_names=(LOUD,))
    run(config, preferences=some, output=str(tmp_path / "other"))
    other = Dataset.open(str(tmp_path / "other")).manifest
    assert other.recipe[other.fingerprint]["params"]["template"] != step["params"]["template"]
    assert [n for n, _ in other.recipe[other.fingerprint]["params"]["own_principles"]] == ["Loud"]


def test_rows_that_are_no_pairs_are_refused(make_dataset: MakeDataset, place: Path, tmp_path: Path) -> None:
    for number, change in enumerate(({"preferred": 2}, {"completions": []}, {"margin": -1.0})):
        rows = preference_rows(3)
        rows[1] |= change
        data = make_preferences(make_dataset, rows, number=number)
        with pytest.raises(DataError, match=rows[1]["pair_id"]):
            run(settings(place, margin=1.0), preferences=data, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    "change",
    [
        {"head": "random"},
        {"margin": -1.0},
        {"centring": math.inf},
        {"max_length": -1},
        {"lora_targets": ("q_proj", "score")},
        {"principles": "", "principle_names": ("Concise",)},
        {"learning_rate": 0.0},
        {"adapter": "qlora", "strategy": "zero3"},
        {"template": "nowhere"},
    ],
)
def test_settings_that_do_not_fit_are_named(place: Path, some: Dataset, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        run(settings(place, **change), preferences=some, output=str(place / "never"))
    assert error.value.field in change


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could")
def test_qlora_needs_cuda(place: Path, some: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4-bit weights need a CUDA device"):
        run(settings(place, adapter="qlora"), preferences=some, output=str(tmp_path / "out"))


def test_a_padding_token_that_the_model_does_not_know_is_none(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = len(tokenizer)
    assert padding_id(tokenizer, rows) == tokenizer.pad_token_id
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == rows
    assert padding_id(tokenizer, rows) == tokenizer.eos_token_id
    assert padding_id(tokenizer, rows + 1) == padding_id(tokenizer, None) == rows
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.pad_token_id = padding_id(tokenizer, rows)
    AutoModelForSequenceClassification.from_config(model.config)
