"""Chats written as one text with ``Human:`` and ``Assistant:`` turns, as Anthropic's are."""

from __future__ import annotations

import re

from kubealign_components.sources.messages import Message
from kubealign_components.sources.values import Malformed

_SPEAKERS = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}
_NAMES = r"(?:#{1,6}[ \t]*|\*\*)?(Human|User|Assistant|System)[ \t]*(?::\*\*|\*\*:|:)"
_LINE_END = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_MARK = re.compile(rf"^[ \t]*{_NAMES}", re.IGNORECASE | re.MULTILINE)
_OPENING = re.compile(r"[\ufeff\s]*\n[ \t]*\n[ \t]*(?:#{1,6}[ \t]*|\*\*)?Human:")
_DUE = re.compile(
    r"(?:(?:\A|\\n|\n)\W*(?:A|AI|Bot|ChatBot|Chatbot|GPT|Model|Response|Assistant|ASSISTANT|Answer)\s*:"
    r"|<\|?\W*assistant\W*>|\[/INST\]|#{2,6}\s*(?:Response|Assistant|Answer):?)\W*\Z"
)
_HUMAN = re.compile(r"\s*Human[ \t]*:")
_ANSWERED = re.compile(r"\s*Assistant[ \t]*:")
_NEMO = re.compile(r"\s*<extra_id_[01]>(User|Assistant|System)\b[ \t]*\n?")
"""NeMo's marks of turns, as in HelpSteer2's prompts, which begin with the first user turn without one."""
_BLANK_LINE = re.compile(rf"(?:\A|\n[ \t]*\n)\s*{_NAMES}", re.IGNORECASE)
_ANY_LINE = re.compile(rf"(?:\A|\n)[ \t]*{_NAMES}", re.IGNORECASE)


def looks_like_transcript(text: str) -> bool:
    """Whether ``text`` begins with ``Human:``, or lines of it with the names of both speakers."""
    plain = _LINE_END.sub("\n", text)
    names = {_SPEAKERS[name.lower()] for name in _MARK.findall(plain)}
    return {"user", "assistant"} <= names or _OPENING.match(plain) is not None


def answer_is_due(text: str) -> bool:
    """Whether ``text`` ends with a mark of who speaks next: it is a chat, in a form that is not read."""
    return _DUE.search(text[-200:]) is not None


def read_transcript(text: str) -> list[Message]:
    """The turns of a transcript, with whatever line ends.

    A turn begins on a new line, after a blank line where the transcript has any before its marks: then an
    ``Assistant:`` amid a turn is text.

    Raises:
        Malformed: bad_transcript, when the text does not begin with a speaker's name or speaks out of turn.
    """
    plain = _LINE_END.sub("\n", text).strip("\ufeff \t\n")
    marks = _BLANK_LINE if len(_BLANK_LINE.findall(plain)) > 1 else _ANY_LINE
    before, *pieces = marks.split(plain)
    if before.strip() or not pieces:
        raise Malformed("bad_transcript")
    return [
        {"role": _SPEAKERS[who.lower()], "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def transcripts_of(chosen: str, rejected: str) -> list[list[Message]] | None:
    """Two chats when at least one of the texts looks like a transcript, else None.

    Raises:
        Malformed: bad_transcript, when only one of them is one.
    """
    if not (looks_like_transcript(chosen) or looks_like_transcript(rejected)):
        return None
    return [read_transcript(chosen), read_transcript(rejected)]


def without_names(
    prompt: list[Message] | None, chosen: object, rejected: object
) -> tuple[list[Message] | None, object, object]:
    """The three without who speaks, where a prompt that begins with ``Human:`` goes on in answers that begin
    with ``Assistant:``; else as they are."""
    answers = [text for text in (chosen, rejected) if isinstance(text, str) and _ANSWERED.match(text)]
    if prompt is None or len(answers) < 2 or not _HUMAN.match(prompt[-1]["content"]):
        return prompt, chosen, rejected
    asked = {**prompt[-1], "content": _HUMAN.sub("", prompt[-1]["content"], count=1).strip()}
    better, worse = (_ANSWERED.sub("", text, count=1).strip() for text in answers)
    return [*prompt[:-1], asked], better, worse


def prompt_of_transcript(text: str) -> list[Message] | None:
    """The turns of a prompt that is a transcript with the answer due, or has NeMo's marks; None for others.

    Raises:
        Malformed: bad_transcript, for text that begins as one and does not end where an answer is due.
    """
    if _NEMO.search(text):
        return _marked_turns(text)
    if not looks_like_transcript(text) or not _ANY_LINE.match(
        _LINE_END.sub("\n", text).lstrip("\ufeff \t\n")
    ):
        return None
    *turns, due = read_transcript(text)
    if not turns or due != {"role": "assistant", "content": ""}:
        raise Malformed("bad_transcript")
    return turns


def _marked_turns(text: str) -> list[Message]:
    first, *pieces = _NEMO.split(_LINE_END.sub("\n", text))
    said = [("User", first), *zip(pieces[::2], pieces[1::2], strict=True)]
    turns = [{"role": _SPEAKERS[who.lower()], "content": piece.strip("\n")} for who, piece in said]
    if not turns[0]["content"].strip():
        del turns[0]
    turns = [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        del turns[-1]
    if not turns or turns[-1]["role"] != "user":
        raise Malformed("bad_transcript")
    return turns
