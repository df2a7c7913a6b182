"""Chats of model families: the token ids are those of the whole conversation, as transformers gives them."""

# ruff: noqa: E501  templates and chats stand as they are written
from __future__ import annotations

import re
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.chat import ChatTemplate, Message, TemplateMismatch
from kubealign_components.data.chat.marks import RESERVED
from kubealign_components.data.chat.rendering import fold_system
from kubealign_components.data.chat.settings import DATE
from kubealign_components.data.chat.tokenizer_files import TokenizerFiles
from kubealign_components.data.models import ModelFiles
from kubealign_components.engines.generation import end_token_ids
from support.families import FAMILIES, Family, build_family

ASK: list[Message] = [{"role": "user", "content": "Name a fruit."}]
CHATS: dict[str, list[Message]] = {
    "one turn": ASK,
    "system": [{"role": "system", "content": "Be brief."}, *ASK],
    "three turns": [*ASK, {"role": "assistant", "content": "Plum\n\n  * x"}, {"role": "user", "content": " é 🙂\n\nb "}],
}  # fmt: skip
ANSWERS = ("Plum, the best.", " b \n", "", "\n\nb", "1. é 🙂\n\n2. <b>x</b>")
OPENS_REASONING = ("deepseek-v3", "deepseek-r1")
"""Their prompts end with an open <think>, which answers without reasoning do not go on from."""
FRAMES_BY_END = set(FAMILIES) - {"alpaca"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``template(name)``: that of a family."""

    @cache
    def of(name: str) -> ChatTemplate:
        folder = build_family(FAMILIES[name], tmp_path_factory.mktemp("family") / name)
        return ChatTemplate(ModelFiles(name=name, path=folder))

    return of


def whole_ids(template: ChatTemplate, messages: list[Message], **values: Any) -> list[int]:
    """The conversation as transformers renders and tokenises it, with one BOS, on the pinned date."""
    today = date.fromisoformat(DATE)
    ids = template.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, strftime_now=today.strftime, **values
    )
    bos = template.tokenizer.bos_token_id
    return list(ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids)


def accepted(template: ChatTemplate, messages: list[Message]) -> list[Message]:
    """``messages`` in a form that the template takes a system turn in."""
    try:
        shown = template.tokenizer.apply_chat_template(messages, tokenize=False)
        return messages if all(m["content"].strip() in shown for m in messages) else fold_system(messages)
    except Exception:
        return fold_system(messages)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", sorted(FRAMES_BY_END))
def test_prompt_and_completion_are_the_whole_conversation(name: str, chat: str, template: Any) -> None:
    of, messages = template(name), CHATS[chat]
    tokenizer, ends = of.tokenizer, set(of.end_ids)
    prompt = of.prompt_ids(messages)
    assert prompt == whole_ids(of, accepted(of, messages), add_generation_prompt=True)
    for answer in ANSWERS:
        said = {"role": "assistant", "content": answer}
        if name in OPENS_REASONING:
            with pytest.raises(TemplateMismatch) as raised:
                of.completion_ids(messages, [said])
            assert raised.value.reason == "prompt_opens_reasoning"
            continue
        ids = of.completion_ids(messages, [said])
        whole = whole_ids(of, [*accepted(of, messages), said])
        assert whole[: len(prompt + ids)] == prompt + ids, tokenizer.decode(prompt + ids)
        assert not tokenizer.decode([t for t in whole[len(prompt + ids) :] if t not in ends]).strip()
        assert [token in ends for token in ids] == [False] * (len(ids) - 1) + [True]
        assert answer.strip() in tokenizer.decode(ids)


def test_families_end_their_turns_with(template: Any) -> None:
    def ends(name: str) -> list[str]:
        of = template(name)
        assert end_token_ids(of.model.path) == of.end_ids
        return sorted(of.tokenizer.convert_ids_to_tokens(list(of.end_ids)))

    assert ends("llama2") == ["</s>"]
    assert ends("llama3.1") == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert ends("gemma2") == ["<end_of_turn>", "<eos>"]
    # Neither its tokenizer nor a generation config names the token that its template writes.
    assert ends("gemma3") == ["<end_of_turn>", "<eos>"]
    assert ends("phi3") == ["<|assistant|>", "<|endoftext|>", "<|end|>"]
    assert ends("alpaca") == ["</s>"]


def test_a_template_that_writes_no_end_gets_one(template: Any) -> None:
    of = template("alpaca")
    ids = of.completion_ids(ASK, [{"role": "assistant", "content": "Plum"}])
    assert of.tokenizer.decode(of.prompt_ids(ASK) + ids).endswith("### Response:\nPlum</s>")
    assert ids.count(of.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", sorted(FRAMES_BY_END - {"deepseek-v3", "deepseek-r1"}))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_messages_say_never_becomes_a_control_token(
    name: str, data: st.DataObject, template: Any
) -> None:
    of = template(name)
    tokenizer, family = of.tokenizer, FAMILIES[name]
    pieces = st.sampled_from([*family.specials, "[INST]", "a", " ", "\n", "<|", "|>", "é", "🙂", "</think>"])
    text = st.lists(pieces | st.text(max_size=3), max_size=6).map("".join)
    asked, answer = (
        data.draw(text, "asked").replace(RESERVED, ""),
        data.draw(text, "answer").replace(RESERVED, ""),
    )
    plain = [{"role": "user", "content": "?"}]
    said = [{"role": "user", "content": asked}]
    try:
        prompt, expected = of.prompt_ids(said), of.prompt_ids(plain)
        ids = of.completion_ids(said, [{"role": "assistant", "content": answer}])
    except TemplateMismatch:
        return
    special = set(tokenizer.convert_tokens_to_ids(list(family.specials)))
    assert [t for t in prompt if t in special] == [t for t in expected if t in special]
    assert [t in of.end_ids for t in ids] == [False] * (len(ids) - 1) + [True]
    squashed = "".join(tokenizer.decode(prompt).split())
    assert "".join(asked.split()) in squashed
    assert "".join(answer.replace("</think>", "").split()) in "".join(
        tokenizer.decode(ids).replace("</think>", "").split()
    )


def test_marks_of_an_answer_are_its_own(template: Any) -> None:
    """What Qwen 3 writes itself stays what it is, also in an answer that people wrote."""
    of = template("qwen3")
    inline = {"role": "assistant", "content": "<think>\nabc\n</think>\n\n2"}
    apart = {"role": "assistant", "content": "2", "reasoning_content": "abc"}
    ids = of.completion_ids(ASK, [inline])
    assert ids == of.completion_ids(ASK, [apart])
    assert of.tokenizer.decode(ids) == "<think>\nabc\n</think>\n\n2<|im_end|>"
    assert ids[0] == of.tokenizer.convert_tokens_to_ids("<think>")


SHIPPED = sorted(
    path.name.removesuffix(".jinja")
    for path in files("trl").joinpath("chat_templates").iterdir()
    if path.name.endswith(".jinja") and "training" not in path.name
)


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_others_ship_work_or_say_why(name: str, tmp_path: Path) -> None:
    text = files("trl").joinpath(f"chat_templates/{name}.jinja").read_text()
    marks = dict.fromkeys(re.findall(r"<\|?[a-zA-Z_｜▁/]+\|?>|\[/?[A-Z_]+\]", text))
    of_answers = [mark for mark in marks if "think" in mark or "tool" in mark]
    specials = dict.fromkeys(["<pad>", "<bos>", "<eos>", *(m for m in marks if m not in of_answers)])
    family = Family(template=text, specials=[*specials], added=of_answers, eos="<eos>", bos="<bos>")
    of = ChatTemplate(ModelFiles(name=name, path=build_family(family, tmp_path)))
    prompt = of.prompt_ids(CHATS["system"])
    shown = of.tokenizer.decode(prompt)
    assert "Be brief." in shown and "Name a fruit." in shown
    try:
        ids = of.completion_ids(ASK, [{"role": "assistant", "content": "<think>\nabc\n</think>\n\nPlum"}])
    except TemplateMismatch as mismatch:
        assert mismatch.reason in ("prompt_opens_reasoning", "template_mismatch")
        return
    written = of.tokenizer.decode(of.prompt_ids(ASK) + ids)
    assert written.count("abc") == 1 and "Plum" in written
    assert [t in of.end_ids for t in ids] == [False] * (len(ids) - 1) + [True]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_read_from_its_files_gives_the_same(name: str, chat: str, template: Any) -> None:
    of = template(name)
    read = ChatTemplate(of.model, tokenizer=TokenizerFiles(of.model.path))
    said = {"role": "assistant", "content": "Plum, é 🙂 <|im_end|></s>"}
    assert (read.end_ids, read.lacks_bos, read.fingerprint) == (of.end_ids, of.lacks_bos, of.fingerprint)
    assert read.prompt_ids(CHATS[chat]) == of.prompt_ids(CHATS[chat])
    if name not in OPENS_REASONING:
        assert read.completion_ids(CHATS[chat], [said]) == of.completion_ids(CHATS[chat], [said])
