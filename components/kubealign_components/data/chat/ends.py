"""Which tokens end a turn: one answer for offline completions, samplers and PPO."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.chat.rendering import ASKED
from kubealign_components.data.model_files import text_config
from kubealign_components.data.models import read_object
from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ids_of_files(model: Path) -> set[int]:
    """The ends that the generation config (or else the config) and the tokenizer's files name.

    Both are needed: the generation config of some chat models lists only the end of text, and that of
    others ends of turn that their tokenizer does not name.

    Raises:
        EngineError: a file cannot be read, or names an end that is no token id.
    """
    generation, config = read_json(model / "generation_config.json"), read_json(model / "config.json")
    named = generation.get("eos_token_id")
    if named is None:
        named = text_config(config).get("eos_token_id", config.get("eos_token_id"))
    ids = _ids(named, model)
    eos = read_json(model / "tokenizer_config.json").get("eos_token")
    content = eos.get("content") if isinstance(eos, dict) else eos
    added = read_json(model / "tokenizer.json").get("added_tokens", ())
    return ids | {token["id"] for token in added if token["content"] == content}


def _ids(named: object, model: Path) -> set[int]:
    """The token ids that ``eos_token_id`` names; a negative one stands for none."""
    listed = named if isinstance(named, list) else [] if named is None else [named]
    ids = [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]
    if len(ids) < len(listed):
        raise EngineError(
            f"{model} ends turns with {named!r}, expected a token id or a list of them; mend eos_token_id in "
            "its generation_config.json or config.json"
        )
    return {one for one in ids if one >= 0}


def template_end(tokenizer: PreTrainedTokenizerBase, after_answer: str) -> set[int]:
    """The token with which a template ends the last answer, if it does: the last of those that stand there
    in a row. Where a text goes on after them (``<|close|>response<|sep|>…<|end_of_msg|>``), they close a part
    of the turn alone, and its end is the last token of all.

    Args:
        tokenizer: of the model.
        after_answer: what the template writes after the answer's text.
    """
    marks = {
        str(token.content): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and not token.content.isalnum()
    }
    rest, ids = after_answer.lstrip(), set[int]()
    while mark := max((text for text in marks if rest.startswith(text)), key=len, default=""):
        ids, rest = {marks[mark]}, rest.removeprefix(mark)
    if not ids or not rest or rest[0].isspace():
        return ids
    last = max(marks, key=lambda text: (rest.rfind(text), len(text)), default="")
    return {marks[last]} if last in rest else ids


def next_answer(prompt: str, after_answer: str, between_turns: str, marks: Collection[str]) -> str:
    """The part of ``after_answer`` that begins another answer, as it stands at the end of ``prompt``, too.

    Args:
        prompt: of one question, whose answer is due.
        after_answer: what the template writes after the last answer's text.
        between_turns: what it writes between an answer and the next question.
        marks: texts of control tokens, at one of which the question's turn begins.
    """
    before = prompt.partition(ASKED)[0]
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(before), reversed(between_turns)))
    begins = between_turns[len(between_turns) - len(list(alike)) :]
    first = min((begins.find(mark) for mark in marks if mark and mark in begins), default=0)
    end = between_turns.removesuffix(begins[first:])
    opened = after_answer.removeprefix(end)
    return opened if after_answer.startswith(end) and opened.strip() and prompt.endswith(opened) else ""


def checked(ids: set[int], model: Path) -> tuple[int, ...]:
    """``ids``, ascending.

    Raises:
        EngineError: there are none, or the model does not know one.
    """
    if not ids:
        raise EngineError(
            f"{model} names no end-of-turn token; set eos_token_id in its generation_config.json, or every "
            "completion runs to max_new_tokens"
        )
    rows = embedding_rows(model)
    if rows is not None and max(ids) >= rows:
        raise EngineError(
            f"{model} ends turns with token {max(ids)}, which is outside its embedding of {rows} rows; mend "
            "eos_token_id in its generation_config.json, or every completion runs to max_new_tokens"
        )
    return tuple(sorted(ids))


def embedding_rows(model: Path) -> int | None:
    """Tokens that the model in the directory ``model`` knows, None where its config does not say."""
    rows = text_config(read_json(model / "config.json")).get("vocab_size")
    return rows if isinstance(rows, int) else None


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file; an empty one where there is no file.

    Raises:
        EngineError: it cannot be read, or is something else.
    """
    return read_object(path) if path.is_file() else {}
