"""Blocks of reasoning in prompts: empty ones stay before the answer, open ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubealign_components.data.chat import ChatTemplate, TemplateMismatch
from kubealign_components.data.chat.reasoning import empty_block, opens_block
from kubealign_components.data.models import ModelFiles
from support.families import Family, build_family

ASK = [{"role": "user", "content": "Name a fruit."}]
TURNS = "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<turn>assistant\n[]{% endif %}"


@pytest.mark.parametrize(
    "block", ["<|channel>thought\n<channel|>", "<think>\n</think>\n\n", "[THINK][/THINK]"]
)
def test_an_empty_block_of_the_prompt_stays_before_the_answer(block: str, tmp_path: Path) -> None:
    family = Family(
        template=TURNS + PROMPT.replace("[]", block),
        specials=("<turn>", "<end>", "<think>", "</think>", "<|channel>", "<channel|>"),
        eos="<end>",
    )
    of = ChatTemplate(ModelFiles(name="m", path=build_family(family, tmp_path)))
    said = of.completion_ids(ASK, [{"role": "assistant", "content": "Plum"}])
    text = of.tokenizer.decode([*of.prompt_ids(ASK), *said])
    assert text == f"<turn>user\nName a fruit.<end>\n<turn>assistant\n{block}Plum<end>"


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("Q<think>\n", "QPlum"),  # open: what follows is reasoning
        ("Q<|channel|>final<|message|>", "QPlum"),  # no pair
        ("Q</think>", "QPlum"),
        ("Q<think></think>", "Q<think>Plum"),  # the turn of a history begins otherwise
        ("Q", "QPlum"),
    ],
)
def test_what_is_no_empty_block(prompt: str, whole: str) -> None:
    assert empty_block(prompt, whole, "Plum") == ""


@pytest.mark.parametrize("mark", ["<think>", "<think>\n", "[THINK]", "<|START_THINKING|>", "<seed:think>"])
def test_an_open_block_is_told(mark: str, tmp_path: Path) -> None:
    assert opens_block("Q" + mark)
    family = Family(template=TURNS + PROMPT.replace("[]", mark), specials=("<turn>", "<end>"), eos="<end>")
    of = ChatTemplate(ModelFiles(name="m", path=build_family(family, tmp_path)))
    with pytest.raises(TemplateMismatch) as raised:
        of.completion_ids(ASK, [{"role": "assistant", "content": "Plum"}])
    assert raised.value.reason == "prompt_opens_reasoning"


@pytest.mark.parametrize("mark", ["</think>", "[/THINK]", "<|END_THINKING|>", "<b>", "I think"])
def test_a_closed_block_is_not_open(mark: str) -> None:
    assert not opens_block("Q" + mark)


def test_marks_within_a_turn_do_not_end_it(tmp_path: Path) -> None:
    turn = "<turn>{{ m.role }}<sep>{{ m.content }}<close>response<sep><close>message<sep><end>"
    prompt = "{% if add_generation_prompt %}<turn>assistant<sep>{% endif %}"
    family = Family(
        template="{% for m in messages %}" + turn + "{% endfor %}" + prompt,
        specials=("<turn>", "<sep>", "<close>", "<end>", "<eos>"),
        eos="<eos>",
    )
    of = ChatTemplate(ModelFiles(name="m", path=build_family(family, tmp_path)))
    assert of.tokenizer.convert_ids_to_tokens(list(of.end_ids)) == ["<end>", "<eos>"]
    said = of.completion_ids(ASK, [{"role": "assistant", "content": "Plum"}])
    assert of.tokenizer.decode(said) == "Plum<close>response<sep><close>message<sep><end>"
