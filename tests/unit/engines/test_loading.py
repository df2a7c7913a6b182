"""A model directory that does not hold what it seems to hold is refused by name; its code never runs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sentencepiece
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from kubealign_components.data.chat import ChatTemplate, end_token_ids
from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.models import find_model
from kubealign_components.engines.generation import Prompt, SamplingSpec, open_engine
from kubealign_components.engines.packing import Group
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.scoring import Scorer
from kubealign_components.errors import EngineError
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.models import load_policy
from support.tiny import CHATML, build_tiny_model

CHAT = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model to spoil."""
    return build_tiny_model(tmp_path / "model")


@pytest.fixture
def reward_model(model: Path, tmp_path: Path) -> Path:
    """A reward model of the same shape."""
    folder = tmp_path / "reward"
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(model, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def sampled(model: Path, ids: list[int]) -> Any:
    with open_engine(SamplingSpec(engine="transformers", n=1, max_new_tokens=2), model) as engine:
        return list(engine.generate([Prompt("0" * 32, ids)]))


def scored(model: Path, ids: list[int]) -> Any:
    with Scorer(model, device="cpu") as scorer:
        return scorer.score([Group(ids, [ids])])


USES: dict[str, Callable[[Path], Any]] = {
    "sample": lambda model: sampled(model, [3, 4]),
    "score": lambda model: scored(model, [3, 4]),
    "train": lambda model: load_policy(TrainConfig(policy="p"), model),
    "reward": lambda model: RewardModel(find_model(str(model))),
}


def without(model: Path, name: str) -> Path:
    file = model / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights[name]
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    return model


@pytest.mark.parametrize("use", ["sample", "score", "train"])
def test_weights_that_are_missing_are_named(model: Path, use: str) -> None:
    with pytest.raises(EngineError, match=r"not whole: it lacks model.layers.1.mlp.up_proj.weight"):
        USES[use](without(model, "model.layers.1.mlp.up_proj.weight"))


@pytest.mark.parametrize("use", ["sample", "score", "train"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_reward_model_is_no_policy(reward_model: Path, use: str, tied: bool) -> None:
    config = json.loads((reward_model / "config.json").read_text())
    (reward_model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    with pytest.raises(EngineError, match=r"no causal language model: its checkpoint holds score.weight"):
        USES[use](reward_model)


def test_a_policy_is_no_reward_model(model: Path) -> None:
    with pytest.raises(EngineError, match=r"no reward model: .* lacks score.weight.*LlamaForCausalLM"):
        USES["reward"](model)


@pytest.mark.parametrize("use", ["sample", "score", "train"])
def test_weights_of_adapters_are_not_left_out(model: Path, use: str) -> None:
    file = model / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 32)
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    with pytest.raises(EngineError, match="merge them first"):
        USES[use](model)


def test_a_model_of_images_and_text_is_named_in_a_line(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(
        EngineError, match=r"a Qwen2_5_VL, which transformers .* AutoModelForCausalLM; .{,30}$"
    ):
        USES["score"](model)


@pytest.mark.parametrize("change", [{"model_type": "unheard-of"}, {"hidden_size": "x"}], ids=str)
def test_a_config_that_does_not_fit_is_named(model: Path, change: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EngineError, match=f"cannot load the model {model}"):
        USES["score"](model)


@pytest.mark.parametrize("use", ["sample", "score", "train"])
def test_weights_of_other_shapes_are_named_with_both(model: Path, use: str) -> None:
    config = json.loads((model / "config.json").read_text())
    wide = config["intermediate_size"]
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": wide + 8}))
    shapes = rf"{wide + 8}\D.*expected|expected \(\d+, {wide + 8}\)"
    with pytest.raises(EngineError, match=rf"does not fit its config: model\.layers\.0\.mlp\..*({shapes})"):
        USES[use](model)


OWN_CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("use", [*USES, "tokenizer"])
def test_code_of_a_model_never_runs_whatever_is_answered(
    model: Path, tmp_path: Path, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    (model / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    config = json.loads((model / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoModelForSequenceClassification": "own.OwnModel",
    }
    (model / "config.json").write_text(json.dumps(config))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    if use == "tokenizer":
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    with pytest.raises(EngineError, match=r"needs Python code|cannot load the tokenizer"):
        (USES | {"tokenizer": load_tokenizer})[use](model)
    assert not marker.exists()


def with_token(model: Path, *, special: bool, template: str = CHATML) -> Path:
    """``model`` whose tokenizer has one token more than its embedding has rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|tool|>"], special_tokens=special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return model


@pytest.mark.parametrize("use", [sampled, scored])
def test_ids_outside_the_embedding_are_named_with_both_sizes(model: Path, use: Callable[..., Any]) -> None:
    template = ChatTemplate(find_model(str(with_token(model, special=True, template="<|tool|>" + CHATML))))
    with pytest.raises(EngineError, match=r"ids up to 259, and its embedding has 259 rows"):
        use(model, template.prompt_ids(CHAT))


@pytest.mark.parametrize(
    ("special", "template", "warned"),
    [(True, CHATML, False), (False, CHATML, True), (True, "<|tool|>" + CHATML, True)],
)
def test_a_control_token_that_no_text_becomes_may_have_no_row(
    model: Path, caplog: pytest.LogCaptureFixture, special: bool, template: str, warned: bool
) -> None:
    chat = ChatTemplate(find_model(str(with_token(model, special=special, template=template))))
    assert ("its embedding has 259 rows" in caplog.text) is warned
    if not warned:
        ids = chat.prompt_ids([{"role": "user", "content": "<|tool|> is spelled"}])
        assert sampled(model, ids) and scored(model, ids)


def test_an_end_of_turn_outside_the_embedding_is_named(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 9999]}')
    with pytest.raises(EngineError, match=r"ends turns with token 9999, .* embedding of 259 rows"):
        end_token_ids(model)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_model_is_read_as_sentencepiece_reads_it(model: Path, kind: str) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Name a colour of the sky.", "The quick brown fox jumps over the dog."] * 20),
        model_writer=written,
        model_type=kind,
        vocab_size=70 if kind == "bpe" else 40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(written.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    for text in ("the quick colour", "Name the dog"):
        ids = load_tokenizer(model).encode(text, add_special_tokens=False)
        assert ids == expected.encode(text)


def test_what_reads_a_tokenizer_model_and_cannot_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(EngineError, match=r"sentencepiece 0\.2\.\d+ does not go with protobuf \d"):
        load_tokenizer(model)
