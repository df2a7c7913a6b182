"""Which tokens end a turn is read from the files of a model, whatever stands in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chat.ends import ids_of_files, next_answer
from kubealign_components.data.models import ModelFiles
from kubealign_components.errors import EngineError
from support.families import FAMILIES, Family, build_family

ALWAYS_OPENS = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
"""That of Llama 3 as it came out: it begins an answer after every chat, asked for or not."""
OPENS_WITHOUT_END = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}{{ '<|assistant|>' }}"
)
"""GLM-Edge's, which writes no end, either."""
_GLM = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "[gMASK]", "<sop>")
ASK = [{"role": "user", "content": "Name a fruit."}]
SAID = [{"role": "assistant", "content": "Plum"}]
AGAIN = [*ASK, *SAID, {"role": "user", "content": "A town?"}]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("named", "ids"), [("5", {2, 5}), ("[5, 1]", {1, 2, 5}), ("null", {2}), ("-1", {2}), ("[-1, 5]", {2, 5})]
)
def test_ends_are_those_of_generation_config_and_tokenizer(model: Path, named: str, ids: set[int]) -> None:
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {named}}}')
    assert ids_of_files(model) == ids


@pytest.mark.parametrize("named", ['"2"', '[2, "<|im_end|>"]', "true", "2.5", '{"id": 2}'])
def test_an_end_that_is_no_token_id_is_named(model: Path, named: str) -> None:
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {named}}}')
    with pytest.raises(EngineError, match="expected a token id or a list of them"):
        ids_of_files(model)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("body", ["{", "[]", "\x00"])
def test_settings_that_are_none_are_named(model: Path, name: str, body: str) -> None:
    (model / name).write_text(body)
    with pytest.raises(EngineError, match=rf"{name} (is no JSON|holds a)"):
        ids_of_files(model)


def test_an_answer_that_every_chat_ends_with_is_no_end_of_the_one_before(tmp_path: Path) -> None:
    family = FAMILIES["llama3.1"]
    folder = build_family(
        Family(template=ALWAYS_OPENS, specials=family.specials, bos=family.bos, eos="<|eot_id|>"), tmp_path
    )
    template = ChatTemplate(ModelFiles(name="llama3", path=folder))
    decode = template.tokenizer.decode
    assert template.tokenizer.convert_ids_to_tokens(list(template.end_ids)) == ["<|eot_id|>"]
    for chat in (ASK, AGAIN):
        prompt, ids = template.prompt_ids(chat), template.completion_ids(chat, SAID)
        assert decode(ids) == "Plum<|eot_id|>"
        whole = template.tokenizer.apply_chat_template([*chat, *SAID], tokenize=False)
        assert whole.startswith(decode(prompt + ids))


@pytest.mark.parametrize("text", [OPENS_WITHOUT_END, "glm4moe"])
@pytest.mark.parametrize(
    ("ends", "end"), [((), "<|endoftext|>"), (("<|endoftext|>", "<|user|>", "<|observation|>"), "<|user|>")]
)
def test_where_the_next_question_ends_an_answer_it_is_the_end(
    text: str, ends: tuple[str, ...], end: str, tmp_path: Path
) -> None:
    folder = build_family(Family(template=text, specials=_GLM, eos="<|endoftext|>", ends=ends), tmp_path)
    template = ChatTemplate(ModelFiles(name="glm", path=folder))
    ids = template.completion_ids(AGAIN, SAID)
    assert template.tokenizer.convert_ids_to_tokens(ids[-1]) == end
    assert sum(token in template.end_ids for token in ids) == 1
    assert template.decode(ids).endswith("Plum")


def test_a_template_that_opens_no_answer_by_itself_has_none_to_take_off() -> None:
    question = "kubealignasks"
    for prompt, after, between in (
        (f"<s>[INST] {question} [/INST]", "</s>", "</s>[INST] "),
        (f"<|user|>\n{question}</s>\n", "</s>\n", "</s>\n<|user|>\n"),
        (f"A: {question}\nB: ", "\n", "\nA: "),
        (question, "", ""),
    ):
        assert next_answer(prompt, after, between, ["<s>", "</s>", "<|user|>", ""]) == ""
    opens = next_answer(f"<s><u>{question}</s><a>", "</s><a>", "</s><u>", ["<s>", "</s>", "<u>", "<a>"])
    assert opens == "<a>"
