"""Principles at scoring time: templates that show them, rewards that depend on them, and their identity."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from kubealign_components.config import from_mapping
from kubealign_components.data.models import find_model
from kubealign_components.data.principles import load_principles
from kubealign_components.data.templates import load_reward_template
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.rewards import Rewarder, RewardInput, RewardSpec, reward_params
from kubealign_components.errors import ConfigError, EngineError

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi {% raw %}\n\nthere"},
    {"role": "assistant", "content": " Hello 🙂"},
]
SHOWN = [
    {"name": "Concise", "text": "It is {{ short }}."},
    {"name": "Umläute", "text": 'A "quoted"\n\\ text 🙂'},
]


def build_model(folder: Path, tokenizer_of: Path, chat_template: str | None) -> Path:
    """A random-weight reward model whose scores differ visibly."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def principled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A reward model that reads principles, by default the one of the shipped set that is named Concise."""
    template = load_reward_template("reward").chat_template(SHOWN[:1])
    return build_model(tmp_path_factory.mktemp("models") / "principled", tiny_model, template)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A reward model that reads the chat alone."""
    return build_model(tmp_path_factory.mktemp("models") / "blind", tiny_model, None)


def item(text: str, **columns: Any) -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": "Hi?"}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
        **columns,
    )


def rewarder(model: Path, **settings: Any) -> Rewarder:
    return Rewarder(from_mapping(RewardSpec, {"model": str(model), **settings}, "reward"))


def test_the_shipped_template_reads_well_with_and_without_principles() -> None:
    template = load_reward_template("reward")
    assert template.conversation(CHAT[1:], [{"name": "Concise", "text": "It is short."}]) == (
        "# Conversation\nUser: Hi {% raw %}\n\nthere\nAssistant:  Hello 🙂\n\n# Review\n"
        "How well does the last turn follow these principles, and nothing else?\n"
        "- Concise: It is short.\nScore:"
    )
    assert template.conversation(CHAT[1:], []).endswith(
        "Hello 🙂\n\n# Review\nHow well does the last turn serve the user?\nScore:"
    )


OWN = (
    "  \n {% for m in messages %}{{ m.content }}{% endfor %}"
    "{% for p in principles %} {{ p.text }}{% endfor %}\n\n"
)


@pytest.mark.parametrize("beginning", ["", "<|im_start|>"])
@pytest.mark.parametrize("own", [False, True])
def test_a_tokenizer_renders_what_the_template_says(
    tiny_model: Path, tmp_path: Path, own: bool, beginning: str
) -> None:
    """Also blanks at either end, quotes, braces and what is outside the basic plane."""
    body = {"schema": "kubealign.reward-template/v1", "name": "own", "version": 2, "text": OWN}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(body))
    template = load_reward_template(str(tmp_path / "own.yaml") if own else "reward")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template.chat_template(SHOWN, beginning=beginning)

    def render(**values: Any) -> str:
        return str(tokenizer.apply_chat_template(CHAT, tokenize=False, **values))

    for given, expected in (({}, SHOWN), ({"principles": None}, SHOWN), ({"principles": []}, [])):
        assert render(**given) == beginning + template.conversation(CHAT, expected)
    assert render(principles=SHOWN[1:]) == beginning + template.conversation(CHAT, SHOWN[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"schema": "kubealign.judge-template/v1"}, "schema", id="schema"),
        pytest.param({"version": 0}, "version=0", id="version"),
        pytest.param({"answer": "x"}, "only schema, name, version, text", id="member"),
        pytest.param({"text": "{{ messages }} {{ principle }}"}, "'principle' is undefined", id="name"),
        pytest.param(
            {"text": "{{ messages[-1].content }}{% for p in principles %}{{ p.text }}{% endfor %}"},
            "messages, and after them",
            id="no-prompt",
        ),
        pytest.param(
            {"text": "{% for p in principles %}{{ p.text }}{% endfor %}{{ messages }}"},
            "after them the text of each principle",
            id="order",
        ),
    ],
)
def test_broken_templates_are_refused_by_file_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    body = {"schema": "kubealign.reward-template/v1", "name": "own", "version": 1, "text": "x"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(body | change))
    with pytest.raises(ConfigError, match=message):
        load_reward_template(str(tmp_path / "own.yaml"))


def test_scores_are_those_under_the_principles_that_were_given(principled: Path) -> None:
    model = RewardModel(find_model(str(principled)))
    read = model._tokenizer.decode(model.tokenise(CHAT, SHOWN[1:]))
    assert read == load_reward_template("reward").conversation(CHAT, SHOWN[1:])
    texts = ["first", "a second, longer one"]
    shown = [{"name": "Concise", "text": load_principles("judging").get("Concise").positive}]
    scored = rewarder(principled, principles="judging", principle_names=["Concise"])
    expected = model.score(
        [
            model.tokenise([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": t}], shown)
            for t in texts
        ]
    )
    assert scored.score([item(t) for t in texts]) == pytest.approx(expected, abs=1e-5)
    default, none = (rewarder(principled).score([item("first", **p)])[0] for p in ({}, {"principles": []}))
    own = scored.score([item("first", principles=SHOWN), item("first", principles=SHOWN[:1]), item("first")])
    assert own[1] == pytest.approx(default, abs=1e-5)  # the template's own default
    assert own[2] == pytest.approx(expected[0], abs=1e-5)
    assert len({round(float(v or 0), 4) for v in (*own, none)}) == 4


def test_a_template_that_ignores_principles_is_named(blind: Path) -> None:
    with pytest.raises(EngineError, match=r"template of blind shows no principles.*Concise"):
        rewarder(blind, principles="judging").score([item("first")])
    with pytest.raises(EngineError, match="Umläute"):
        rewarder(blind).score([item("first", principles=SHOWN[1:])])
    assert rewarder(blind).score([item("first", principles=[])]) == rewarder(blind).score([item("first")])


def test_principles_without_a_model_or_unknown_ones_are_refused(principled: Path, tmp_path: Path) -> None:
    function = "kubealign_components.rewards.functions:brevity"
    with pytest.raises(ConfigError, match="principles='judging': expected none without a reward model"):
        from_mapping(RewardSpec, {"functions": [{"function": function}], "principles": "judging"}, "reward")
    with pytest.raises(ConfigError, match="none without a set of principles"):
        from_mapping(RewardSpec, {"model": "m", "principle_names": ["Concise"]}, "reward")
    with pytest.raises(ConfigError, match="Consise"):
        rewarder(principled, principles="judging", principle_names=["Consise"])


def test_the_identity_holds_the_statements_that_are_shown_and_nothing_else(
    principled: Path, tmp_path: Path
) -> None:
    plain = rewarder(principled)
    assert set(plain.identity) == {"functions", "model"}
    chosen = rewarder(principled, principles="judging", principle_names=["Ethical", "Concise"])
    statements = chosen.identity["principles"]
    assert [name for name, _ in statements] == ["Concise", "Ethical"]
    text = load_principles("judging").get("Concise").positive
    assert statements[0][1] == hashlib.sha256(f'"{text}"'.encode()).hexdigest()[:32]
    assert reward_params(chosen.spec) == reward_params(plain.spec)  # so recipes of old stay as they were
    whole = rewarder(principled, principles="judging").principles
    assert whole is not None and len(whole) == 8  # three are for the judge alone
    every = rewarder(principled, principles="rl").principles
    assert every is not None and len(every) == 14
