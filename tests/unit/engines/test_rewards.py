"""Reward functions by name, their combination, and the reward model against one-at-a-time scoring."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from kubealign_components.config import from_mapping
from kubealign_components.data.models import find_model
from kubealign_components.engines.last_token import SHORTEST_PREFIX, batches, share_prefixes
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.rewards import (
    Rewarder,
    RewardFunctionSpec,
    RewardInput,
    RewardSpec,
    flatten_chat,
    flatten_text,
    reward_params,
    reward_words,
)
from kubealign_components.errors import ConfigError, DataError, EngineError

SHIPPED = "kubealign_components.rewards.functions"


def build_reward_model(folder: Path, tokenizer_of: Path, *, pad: int | None = 0, **config: Any) -> Path:
    """A random-weight Llama reward model with the tokenizer of another model."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(1)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "num_labels": 1,
        "pad_token_id": pad,
    }
    LlamaForSequenceClassification(LlamaConfig(**shape | config)).save_pretrained(folder)
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return build_reward_model(tmp_path_factory.mktemp("models") / "tiny-reward", tiny_model)


@pytest.fixture
def user_module(tmp_path: Path) -> Any:
    """A function ``write(source)`` that makes importable reward functions of a user."""
    sys.path.insert(0, str(tmp_path))
    made: list[str] = []

    def write(source: str) -> str:
        name = f"user_rewards_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    sys.path.remove(str(tmp_path))
    for name in made:
        sys.modules.pop(name, None)


def item(text: str, prompt: str = "Hi?", **columns: Any) -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": prompt}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
        **columns,
    )


def spec(*functions: Any, **options: Any) -> RewardSpec:
    return from_mapping(RewardSpec, {"functions": functions, **options}, "reward")


def test_functions_are_combined_by_weight() -> None:
    rewarder = Rewarder(
        spec(
            {"function": f"{SHIPPED}:brevity", "weight": 2.0, "settings": {"scale": 4}},
            {"function": f"{SHIPPED}:format_match", "weight": -1.0, "settings": {"kind": "json"}},
        )
    )
    assert rewarder.score([item("[12]"), item("four")]) == [2 * 0.5 - 1, 2 * 0.5]
    assert rewarder.score([]) == []


def test_what_is_rewarded_is_told_in_words() -> None:
    told = reward_words(
        spec(
            "brevity",
            {
                "function": "format_match",
                "weight": 0.5,
                "settings": {"kind": "regex", "pattern": r"1\.", "keys": ["a"]},
                "about": "an object with a",
            },
            "lib.py:short",
            model="org/judge",
            model_weight=2.0,
        )
    )
    assert told[0] == ("the score of the reward model judge", "judge, weight 2")
    assert re.fullmatch(r"scale / \(scale \+ n\): from 1 towards 0 .*[^.]", told[1].about)
    assert told[1].computed.endswith("brevity")
    assert told[2].about == "an object with a"
    assert told[2].computed.endswith('format_match, weight 0.5, kind “regex”, pattern “1\\.”, keys ["a"]')
    assert told[3:] == [("lib.py:short", "lib.py:short")]
    assert reward_words(spec("brevity")) == told[1:2]


def test_words_about_a_function_change_no_recipe() -> None:
    plain, told = (spec({"function": "brevity", **about}) for about in ({}, {"about": "short texts"}))
    assert reward_params(plain) == reward_params(told)


def test_model_and_functions_are_combined_by_weight(reward_model: Path) -> None:
    items = [item("first"), item("a second, longer one")]
    model = Rewarder(spec(model=str(reward_model))).score(items)
    brevity = Rewarder(spec(f"{SHIPPED}:brevity")).score(items)
    both = Rewarder(spec(f"{SHIPPED}:brevity", model=str(reward_model), model_weight=-3)).score(items)
    assert both == pytest.approx([b - 3 * m for b, m in zip(brevity, model)])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "a reward function, a reward model, or both", id="nothing"),
        pytest.param({"functions": ({"function": "brevit"},)}, "module:function", id="no-module"),
        pytest.param({"model": "m", "over_length": "cut"}, "over_length='cut'", id="over-length"),
        pytest.param({"model": "m", "dtype": "int4"}, "dtype='int4'", id="dtype"),
        pytest.param({"model": "m", "model_weight": 0}, "model_weight=0.0", id="weight"),
        pytest.param({"functions": ({"function": "a:b"},), "max_length": 9}, "max_length=9", id="max-length"),
        pytest.param({"model": "m", "token_budget": 0}, "token_budget=0", id="budget"),
        pytest.param({"modle": "m"}, "modle", id="unknown"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(RewardSpec, settings, "reward")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param("no.such.module:f", "No module named 'no'", id="module"),
        pytest.param(f"{SHIPPED}:brevety", "one of brevity, exact_answer", id="function"),
        pytest.param(f"{SHIPPED}:UNITS", "a function of", id="not-callable"),
        pytest.param({"function": f"{SHIPPED}:brevity", "settings": {"size": 3}}, "size", id="setting"),
    ],
)
def test_unknown_functions_and_settings_fail_before_anything_runs(function: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rewarder(spec(function))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(
            "return float('nan')", r"returned nan, expected a finite number.*'four words of", id="nan"
        ),
        pytest.param("return '0.5'", "returned '0.5'", id="text"),
        pytest.param("return None", "returned None", id="none"),
        pytest.param("raise KeyError('unit')", r"raised KeyError: 'unit'.*'Hi\?'", id="raises"),
    ],
)
def test_a_bad_reward_names_function_and_input(
    user_module: Callable[[str], str], body: str, message: str
) -> None:
    name = user_module(f"def reward(item):\n    {body}\n")
    with pytest.raises(EngineError, match=f"{name}:reward {message}"):
        Rewarder(spec(f"{name}:reward")).score([item("four words of text")])


def test_long_inputs_are_clipped_in_errors(user_module: Callable[[str], str]) -> None:
    name = user_module("def reward(item):\n    return float('inf')\n")
    with pytest.raises(EngineError, match=r"100000 characters") as caught:
        Rewarder(spec(f"{name}:reward")).score([item("x" * 100_000)])
    assert len(str(caught.value)) < 1000


def test_identity_follows_the_source_of_the_functions(user_module: Callable[[str], str]) -> None:
    one = user_module("def helper(): return 1\ndef reward(item): return helper()\n")
    two = user_module("def helper(): return 2\ndef reward(item): return helper()\n")
    identities = [Rewarder(spec(f"{name}:reward")).identity["functions"] for name in (one, two)]
    assert list(identities[0].values()) != list(identities[1].values())


def test_identity_follows_weights_and_template(reward_model: Path, tmp_path: Path, tiny_model: Path) -> None:
    same = build_reward_model(tmp_path / "tiny-reward", tiny_model)
    first = Rewarder(spec(model=str(reward_model))).identity
    assert Rewarder(spec(model=str(same))).identity == first
    template = same / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert Rewarder(spec(model=str(same))).identity != first


def test_whole_numbers_of_settings_do_not_depend_on_the_way_they_came() -> None:
    made = [RewardFunctionSpec(function="a:b", settings={"scale": value}) for value in (64, 64.0)]
    assert [type(m.settings["scale"]) for m in made] == [int, int]


def sequences_of_mixed_lengths() -> list[list[int]]:
    """Alone, with a prompt in common, one that begins another; every one ends as a turn does."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 259, (count,), generator=generator).tolist()  # type: ignore[no-any-return]

    prompt = tokens(30)
    alone = [[*tokens(n), 2] for n in (3, 150, 40, 41, 7, 90, 60)]
    return [*alone, [2], *([*prompt, *tokens(n), 2] for n in (1, 25, 60)), prompt, alone[1]]


@pytest.mark.parametrize(
    "pad", [pytest.param(0, id="own"), pytest.param(2, id="is-eos"), pytest.param(None, id="none")]
)
@pytest.mark.parametrize("budget", [1, 120, 4096])
def test_scores_equal_one_at_a_time(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, pad: int | None, budget: int
) -> None:
    """Where pad is eos, pooling by pad token would read the token before the last."""
    folder = build_reward_model(tmp_path / "model", tiny_model, pad=pad)
    model = RewardModel(find_model(str(folder)), token_budget=budget)
    sequences = sequences_of_mixed_lengths()
    expected = plain_scores(LlamaForSequenceClassification.from_pretrained(folder), sequences)
    assert model.score(sequences) == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected[:-1]}) == len(expected) - 1
    assert not caplog.records, "it was packed"


def test_decoders_that_cannot_be_packed_and_encoders_are_padded(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.5, "num_labels": 1,
    }  # fmt: skip
    gemma2 = {"num_key_value_heads": 1, "head_dim": 8}
    phimoe = {"num_key_value_heads": 1, "sliding_window": 6, "num_local_experts": 2}
    families: dict[str, tuple[dict[str, Any], list[str]]] = {
        "gemma2": (gemma2, ["soft-caps"]),
        "phimoe": (phimoe, ["do not pass on their sliding window of 6"]),
        "bert": ({}, []),
    }
    for name, (more, said) in families.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, pad_token_id=0, **sizes, **more)
        made = AutoModelForSequenceClassification.from_config(config)
        made.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        caplog.clear()
        sequences = sequences_of_mixed_lengths()
        scores = RewardModel(find_model(str(tmp_path / name)), token_budget=400).score(sequences)
        assert scores == pytest.approx(plain_scores(made, sequences), abs=1e-4)
        assert [word in r.message for r, word in zip(caplog.records, said, strict=True)] == [True] * len(said)


def plain_scores(model: Any, sequences: list[list[int]]) -> list[float]:
    """Scores of one sequence at a time, read at the last token."""
    model.eval().config.pad_token_id = None
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0, 0].item() for ids in sequences]


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=24).map(tuple)


@settings(max_examples=100)
@given(st.lists(TOKENS, max_size=5), st.sets(st.tuples(st.integers(0, 4), TOKENS), min_size=1, max_size=30))
def test_prefixes_are_shared_and_nothing_is_lost(
    prompts: list[tuple[int, ...]], ends: set[tuple[int, tuple[int, ...]]]
) -> None:
    sequences = sorted({(*(prompts[i] if i < len(prompts) else ()), *end) for i, end in ends})
    groups = share_prefixes(sequences)
    assert [(*g.prompt, *rest) for g in groups for rest in g.completions] == sequences
    assert all(rest for g in groups for rest in g.completions)
    assert all(len(g.prompt) >= SHORTEST_PREFIX - 1 or not g.prompt for g in groups)


def test_completions_of_a_prompt_share_it_whatever_the_template_opens_with() -> None:
    opening = tuple(range(100, 120))
    prompts = [(*opening, *([n] * 40)) for n in range(3)]
    sequences = sorted((*prompt, 50 + n, 60 + n) for prompt in prompts for n in range(4))
    assert [(g.prompt, len(g.completions)) for g in share_prefixes(sequences)] == [(p, 4) for p in prompts]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200))
def test_batches_hold_everything_within_the_budget(lengths: list[int], budget: int) -> None:
    sequences = [(i,) * n for i, n in enumerate(lengths)]
    made = list(batches(sequences, budget))
    assert sorted(s for batch in made for s in batch) == sorted(sequences)
    assert all(len(b) == 1 or len(b) * max(map(len, b)) <= budget for b in made)


def test_over_length_is_dropped_or_fails_and_never_cut(reward_model: Path) -> None:
    items = [item("short"), item("x" * 300), item("as short")]
    dropped = Rewarder(spec(model=str(reward_model))).score(items)
    assert dropped[1] is None
    alone = Rewarder(spec(model=str(reward_model))).score([items[0], items[2]])
    assert [dropped[0], dropped[2]] == pytest.approx(alone, abs=1e-6)
    with pytest.raises(DataError, match="at most 256"):
        Rewarder(spec(model=str(reward_model), over_length="fail")).score(items)
    assert Rewarder(spec(model=str(reward_model), max_length=20)).score(items) == [None] * 3


def test_what_is_no_reward_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    two = build_reward_model(tmp_path / "two", tiny_model, num_labels=2)
    with pytest.raises(ConfigError, match=r"label_weights=\{\}: expected weights of the model's 2 labels"):
        RewardModel(find_model(str(two)))
    with pytest.raises(EngineError, match=r"lacks score\.weight"):
        RewardModel(find_model(str(tiny_model)))


def test_system_turns_are_folded_where_the_template_has_none(tiny_model: Path, tmp_path: Path) -> None:
    folder = build_reward_model(tmp_path / "model", tiny_model)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert RewardModel(find_model(str(folder))).tokenise(chat)[:7] != []
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    model = RewardModel(find_model(str(folder)))
    text = model._tokenizer.decode(model.tokenise(chat))
    assert text == "<|im_start|>user\nBe kind.\n\nHi<|im_end|><|im_start|>assistant\nHello<|im_end|>"


def test_flattening_keeps_calls_outputs_and_tools_as_text() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    prompt = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Bern?"}],
        },
    ]
    completion = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    assert flatten_text(completion) == 'weather({"city":"Bern"})\n\nIt is sunny.'
    assert flatten_chat([*prompt, *completion], [{"name": "weather"}]) == [
        {"role": "system", "content": 'Available tools:\n{"name":"weather"}\n\nBe brief.'},
        {"role": "user", "content": "Weather\nin Bern?"},
        {"role": "assistant", "content": 'weather({"city":"Bern"})'},
        {"role": "user", "content": "Tool output:\nsunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
