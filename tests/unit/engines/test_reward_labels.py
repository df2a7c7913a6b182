"""Reward models with several labels: what public models declare, which labels are weighted, and the values of
each kind against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    pipeline,
)

from kubealign_components.config import from_mapping
from kubealign_components.data.models import find_model
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.engines.reward_labels import Labels
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.rewards import (
    Rewarder,
    RewardFunctionSpec,
    RewardSpec,
    reward_params,
    reward_words,
)
from kubealign_components.errors import ConfigError

NAMES = ("helpfulness", "correctness", "verbosity")
NAMED = {str(i): name for i, name in enumerate(NAMES)}
TEXTS = ("So.", "It is because of the rain, and of the wind.", "No")
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def classifier(folder: Path, base: Path, *, kind: type = LlamaConfig, **config: Any) -> Path:
    """A random classifier of :data:`NAMES` with the tokenizer of ``base``."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    own = kind(**{**_SHAPE, "vocab_size": len(tokenizer), "id2label": NAMED, **config})
    AutoModelForSequenceClassification.from_config(own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec(folder: Path, **settings: Any) -> RewardSpec:
    return from_mapping(RewardSpec, {"model": str(folder), **settings}, "reward")


def items() -> list[RewardInput]:
    question = [{"role": "user", "content": "Why?"}]
    return [
        RewardInput(
            messages=question, completion=[{"role": "assistant", "content": text}], text=text, answers=[]
        )
        for text in TEXTS
    ]


def token_ids(folder: Path) -> list[list[int]]:
    model = RewardModel(find_model(str(folder)), label_weights={"0": 1.0})
    return [model.tokenise([*one.messages, *one.completion]) for one in items()]


@pytest.mark.parametrize(
    ("problem", "function"),
    [
        (None, None),
        ("regression", None),
        ("multi_label_classification", "sigmoid"),
        ("single_label_classification", "softmax"),
    ],
)
@pytest.mark.parametrize("kind", [LlamaConfig, BertConfig])
def test_values_are_those_that_the_model_declares(
    kind: type, problem: str | None, function: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    """As transformers' own pipeline has them for a function, by name and by number, with negative weights."""
    own = {"num_key_value_heads": 2} if kind is LlamaConfig else {}
    folder = classifier(tmp_path / "model", tiny_model, kind=kind, problem_type=problem, **own)
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    whole.config.pad_token_id = None
    with torch.inference_mode():
        logits = torch.cat([whole(torch.tensor([ids])).logits for ids in token_ids(folder)])
    expected = {None: logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(1)}[function]
    weights = {"verbosity": -0.2, "0": 0.7}
    outcomes = Rewarder(spec(folder, label_weights=weights, model_weight=2)).outcomes(items())
    assert [o.reward for o in outcomes] == pytest.approx(
        (2 * (0.7 * expected[:, 0] - 0.2 * expected[:, 2])).tolist(), abs=1e-4
    )
    for outcome, row in zip(outcomes, expected.tolist()):
        assert outcome.labels == pytest.approx((row[0], row[2]), abs=1e-4)
    asked = Rewarder(spec(folder, label_weights=weights, label_activation="none", model_weight=2))
    assert asked.score(items()) == pytest.approx(
        (2 * (0.7 * logits[:, 0] - 0.2 * logits[:, 2])).tolist(), abs=1e-4
    )


def test_declared_values_are_those_of_the_pipeline_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    folder = classifier(
        tmp_path / "model", tiny_model, kind=BertConfig, problem_type="multi_label_classification"
    )
    classify = pipeline("text-classification", model=str(folder), top_k=None)
    text = "It rains."
    ids = classify.tokenizer(text)["input_ids"]
    expected = {one["label"]: one["score"] for one in classify([text])[0]}
    [values] = RewardModel(find_model(str(folder)), label_weights={"0": 1.0}).values([ids])
    assert dict(zip(NAMES, values)) == pytest.approx(expected, abs=1e-5)


def test_an_objective_layer_without_labels_is_weighted_by_number(tiny_model: Path, tmp_path: Path) -> None:
    """As ArmoRM is published: its own class, whose layer is called otherwise, and a config of one label."""
    folder = classifier(tmp_path / "model", tiny_model, num_key_value_heads=2)
    scored = Rewarder(spec(folder, label_weights={"2": 1.0, "0": 0.5})).score(items())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = {name.replace("score.", "regression_layer."): value for name, value in weights.items()}
    renamed["gating.layers.0.weight"] = torch.ones(4, 32)
    safetensors.torch.save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "num_objectives": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    again = Rewarder(spec(folder, label_weights={"2": 1.0, "LABEL_0": 0.5}))
    assert again.score(items()) == pytest.approx(scored, abs=1e-6)


def test_the_bias_of_a_head_counts_though_transformers_has_no_place_for_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    """As the published DPA model has one: a sigmoid of its labels is another without it."""
    folder = classifier(tmp_path / "model", tiny_model, num_key_value_heads=2)
    before = RewardModel(find_model(str(folder)), label_weights={"0": 1.0}).values(token_ids(folder))
    bias = torch.tensor([0.5, -1.0, 2.0])
    weights = safetensors.torch.load_file(folder / "model.safetensors") | {"score.bias": bias}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = RewardModel(find_model(str(folder)), label_weights={"0": 1.0})
    after = model.values(token_ids(folder))
    assert torch.tensor(after) == pytest.approx(torch.tensor(before) + bias, abs=1e-5)
    sigmoids = Rewarder(spec(folder, label_weights={"2": 1.0}, label_activation="sigmoid")).score(items())
    assert sigmoids == pytest.approx([1 / (1 + math.exp(-row[2])) for row in after], abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"helpfullness": 1.0}, "0 helpfulness, 1 correctness, 2 verbosity.*did you mean helpfulness"),
        ({"3": 1.0}, "2 verbosity"),
        ({"-1": 1.0}, "2 verbosity"),
        ({"helpfulness": 1.0, "0": 1.0}, "one weight for label 0"),
    ],
)
def test_labels_that_the_model_does_not_have_are_refused_before_it_is_loaded(
    weights: dict[str, float], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "model", tiny_model, num_key_value_heads=2)
    with pytest.raises(ConfigError, match=said):
        Rewarder(spec(folder, label_weights=weights))


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_are_finite_and_not_all_nothing(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"label_weights\.helpfulness=.*finite"):
        RewardSpec(model="m", label_weights={"helpfulness": weight})
    with pytest.raises(ConfigError, match="not 0"):
        RewardSpec(model="m", label_weights={"helpfulness": 0.0})
    with pytest.raises(ConfigError, match="without a reward model"):
        RewardSpec(functions=(RewardFunctionSpec(function="brevity"),), label_weights={"helpfulness": 1.0})
    with pytest.raises(ConfigError, match="label_activation='sigmoid'"):
        RewardSpec(model="m", label_activation="sigmoid")


@pytest.mark.parametrize(
    ("config", "names", "activation"),
    [
        ({"id2label": NAMED, "problem_type": "regression"}, NAMES, "none"),
        ({"id2label": {"0": "LABEL_0"}, "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}},
         ("LABEL_0",), "sigmoid"),
        ({"num_labels": 2, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
          "problem_type": "multi_label_classification"}, ("LABEL_0", "LABEL_1"), "none"),
        ({"id2label": {"0": "a"}, "sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
         ("a",), "Tanh"),
        ({}, ("LABEL_0", "LABEL_1"), "none"),
    ],
)  # fmt: skip
def test_what_configs_declare(config: dict[str, Any], names: tuple[str, ...], activation: str) -> None:
    labels = Labels.of(config)
    assert (labels.names, labels.activation) == (names, activation)
    if activation == "Tanh":
        with pytest.raises(ConfigError, match="declares Tanh"):
            labels.activation_for("declared")
        assert labels.activation_for("sigmoid") == "sigmoid"


def test_weights_of_labels_are_in_the_recipe_and_in_words_and_leave_others_as_they_were() -> None:
    plain = reward_params(RewardSpec(model="m"))
    assert not {"label_weights", "label_activation"} & plain.keys()
    weighted = RewardSpec(model="m", label_weights={"helpfulness": 0.7, "verbosity": -0.2})
    assert reward_params(weighted)["label_weights"] == {"helpfulness": 0.7, "verbosity": -0.2}
    assert reward_params(weighted)["label_activation"] == "declared"
    assert "helpfulness × 0.7, verbosity × -0.2" in reward_words(weighted)[0].computed


def test_one_label_scores_as_it_did(tiny_model: Path, tmp_path: Path) -> None:
    """Whatever its config declares, unless its label is weighted."""
    folder = classifier(
        tmp_path / "model", tiny_model, num_key_value_heads=2, id2label={"0": "LABEL_0"},
        problem_type="multi_label_classification",
    )  # fmt: skip
    plain = Rewarder(spec(folder)).score(items())
    whole = LlamaForSequenceClassification.from_pretrained(folder).eval()
    whole.config.pad_token_id = None
    with torch.inference_mode():
        logits = [whole(torch.tensor([ids])).logits.item() for ids in token_ids(folder)]
    assert plain == pytest.approx(logits, abs=1e-4)
    halved = Rewarder(spec(folder, label_weights={"LABEL_0": 0.5})).score(items())
    assert halved == pytest.approx([0.5 / (1 + math.exp(-logit)) for logit in logits], abs=1e-4)
