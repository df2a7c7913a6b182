"""Rows of two answers in columns of their own, and a column that says which of them people preferred."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kubealign_components.sources.example import Columns, Example, Offline
from kubealign_components.sources.messages import (
    Message,
    read_answer,
    read_turns,
    split_common,
    turns_from_text,
)
from kubealign_components.sources.prompt_columns import (
    PROMPT_COLUMNS,
    agreed,
    explicit_prompt,
    with_system,
)
from kubealign_components.sources.values import (
    Malformed,
    is_missing,
    list_from_text,
    name_of,
    number_of,
    truth_of,
)

ANSWER_COLUMNS = (
    ("candidate_0", "candidate_1"),
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("response_A", "response_B"),
    ("response_j", "response_k"),
    *((f"{word}_0", f"{word}_1") for word in ("answer", "completion", "output")),
    *((f"{word}{gap}1", f"{word}{gap}2") for word in ("answer", "completion", "output") for gap in ("_", "")),
    *((f"{word}_a", f"{word}_b") for word in ("answer", "completion", "output", "messages")),
    *((f"{word}_A", f"{word}_B") for word in ("answer", "completion", "output")),
    ("human_ref_A", "human_ref_B"),
    ("conversation_a", "conversation_b"),
)
"""What the columns of two answers are called: in SteerLM's files, PKU-SafeRLHF, HelpSteer2 and 3, the Chatbot
Arena, pairs of StackExchange, WebGPT, AlpacaEval, MultiPref and SHP."""
_BETTER_FIRST = ("response_j", "response_k")
"""Answers that stand in the order of preference."""
_SIDE = re.compile(
    r"(?:(?:answer|candidate|completion|conversation|human_ref|model|output|response)[_ ]?)?"
    r"([abjk]|\d)(?:\.0)?"
)
"""A side of a comparison by the name of its column, or by its last letter alone."""
_ORDER = re.compile(r"\[*\s*a\s*(>+|<+|=+)\s*b\s*\]*|\[*\s*b\s*(>+|<+|=+)\s*a\s*\]*")
"""A verdict in signs, as of Arena-Hard: ``[[A>>B]]``."""
_EQUAL = ("tie", "both", "neither", "equal", "same", "draw")
_STRENGTHS = ("overall_preference", "preference_strength")
_CHOICES = ("choice", "better_response_id", "winner")
"""Columns that name the better answer."""
_MAY_NAME = ("chosen", "preferred", "preference", "better_response")
"""Columns that do so, too, or say in words why it is better."""
_ALPACA_EVAL = ("output_1", "output_2")
_BETWEEN = 1.5
"""AlpacaEval's preference of neither output: below it is the first one's, and it may be weighted."""
_TIE = -1
"""The verdict of a tie; others are 0 or 1, the better answer, and None where the row has no such column."""


def answer_columns(there: Collection[str]) -> tuple[str, str] | None:
    """Which of ``there`` are the two answers; None for no two, or for more, as of a question with choices."""
    pairs = (pair for pair in ANSWER_COLUMNS if pair[0] in there and pair[1] in there)
    return next(
        (pair for pair in pairs if not {_beside(pair[0], -1), _beside(pair[1], 1)} & set(there)), None
    )


def _beside(name: str, step: int) -> str:
    """The name of the answer that is numbered, or lettered, by ``step`` more."""
    return f"{name[:-1]}{chr(ord(name[-1]) + step)}"


def candidates(row: Columns) -> Example:
    """Two answers, and which of them is better; of a tie, or where nothing says it, both without a label.

    Raises:
        Malformed: bad_choice, for a verdict that is none; no_prompt; or what the turns raise.
    """
    names = answer_columns(row.names()) or ANSWER_COLUMNS[0]
    asked = _rounds(row)
    prompt = None if asked else _prompt(row)
    prompt, both = _answers(row, prompt, asked, [_judged(row, row.take(name)) for name in names])
    better = _better(row, names)
    if better is None and names == ANSWER_COLUMNS[0]:
        raise Malformed("bad_choice")
    if better is None:
        row.reading.notes["comparisons_without_a_verdict"] += 1
    if better == _TIE:
        row.reading.notes["comparisons_that_are_ties"] += 1
    labels = {0: ("chosen", "rejected"), 1: ("rejected", "chosen")}.get(_TIE if better is None else better)
    offered = [
        Offline(
            messages=turns,
            label=label,
            score=row.number(f"score_{name[-1]}"),
            model=name_of(row.take(f"model_{name[-1]}", f"generator_{name[-1]}", f"{name}_source")),
        )
        for name, turns, label in zip(names, both, labels or (None, None), strict=True)
    ]
    return Example(messages=with_system(row, prompt), completions=offered, whole=True)


def _prompt(row: Columns) -> list[Message] | None:
    """The turns of the prompt; SHP's is called history, HelpSteer3's context."""
    if any(row.has(name) for name in PROMPT_COLUMNS):
        return explicit_prompt(row)
    value = row.take("history", "context")
    if value is None:
        return explicit_prompt(row, "input")
    return [{"role": "user", "content": value}] if isinstance(value, str) else read_turns(value, row.reading)


def _answers(
    row: Columns, prompt: list[Message] | None, asked: list[str], values: list[object]
) -> tuple[list[Message], list[list[Message]]]:
    """The prompt and both answers; whole chats are cut where their common beginning ends."""
    if asked:
        both = [_chat(asked, _listed(value)) for value in values]
    else:
        both = [read_answer(_whole_chat(row, prompt, value), row.reading) for value in values]
    if any(chat[0]["role"] != "assistant" for chat in both):
        shared, both = split_common(both)
        prompt = agreed(prompt, shared)
    if prompt is None:
        raise Malformed("no_prompt")
    return prompt, both


def _whole_chat(row: Columns, prompt: list[Message] | None, value: object) -> object:
    """The chat that ``value`` is JSON text of, where no column has the prompt; else a text is an answer."""
    return turns_from_text(value, row.reading.roles) if prompt is None else value


def _judged(row: Columns, chat: object) -> object:
    """What was judged of ``chat``: in MT-bench, it goes on after the turn that was."""
    turn = number_of(row.peek("turn"))
    if turn is None or not isinstance(chat, list) or not all(isinstance(said, Mapping) for said in chat):
        return chat
    ends = [i for i, said in enumerate(chat) if said.get("role") == "assistant"]
    return chat[: ends[int(turn) - 1] + 1] if 1 <= turn <= len(ends) else chat


def _listed(value: object) -> object:
    """The texts that ``value`` is a list of, or JSON text of one."""
    return list_from_text(value) if isinstance(value, str) else value


def _rounds(row: Columns) -> list[str]:
    """What the user said turn by turn, where the prompt is a list of that; else nothing."""
    value = _listed(row.peek("prompt"))
    if not value or not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return []
    row.take("prompt")
    return value


def _chat(asked: list[str], replies: object) -> list[Message]:
    """The turns of a chat whose sides stand apart, as the Chatbot Arena's do."""
    if not isinstance(replies, list) or len(asked) != len(replies):
        raise Malformed("bad_message")
    if not all(isinstance(text, str) for text in replies):
        raise Malformed("empty_completion")
    pairs = zip(asked, replies, strict=True)
    return [{"role": r, "content": text} for pair in pairs for r, text in zip(("user", "assistant"), pair)]


def names_sides(row: Columns) -> bool:
    """Whether ``chosen`` and ``rejected`` are not answers, but say which of two columns hold them."""
    pair = answer_columns(row.names())
    if pair and row.peek("chosen") in [row.peek(name) for name in pair]:
        return False
    named = [_side(row, pair, row.peek(side)) if pair else None for side in ("chosen", "rejected")]
    return sorted(side for side in named if side is not None) == [0, 1]


def _better(row: Columns, names: tuple[str, str]) -> int | None:
    if (named := _named(row, names)) is not None:
        return named
    verdicts = (read(row) for read in (_voted, _signed, _first_is_better))
    verdict = next((v for v in verdicts if v is not None), None)
    verdict = _labelled(row, names) if verdict is None else verdict
    in_words = any(row.has(name) for name in _MAY_NAME)
    if verdict is None and names == _BETTER_FIRST and not in_words:
        return 0
    verdict = _scored(row, names) if verdict is None else verdict
    if verdict is None and in_words:
        raise Malformed("bad_choice")
    return verdict


def _named(row: Columns, names: tuple[str, str]) -> int | None:
    """The side that is named: by its column, by the number or letter at the end of that, or by its model."""
    sides = [_side(row, names, row.take(name)) for name in _CHOICES if row.has(name)]
    for name in filter(row.has, _MAY_NAME):
        value = row.peek(name)
        weighted = name == "preference" and names == _ALPACA_EVAL
        side = _weighted(row, value) if weighted else None
        side = _side(row, names, value) if side is None else side
        if side is not None:
            row.take(name)
            sides.append(side)
    if not sides:
        return None
    if row.has("rejected") and (worse := _side(row, names, row.take("rejected"))) in (0, 1):
        sides.append(1 - worse)
    if None in sides or len(set(sides)) > 1:
        raise Malformed("bad_choice")
    return sides[0]


def _side(row: Columns, names: tuple[str, str], value: object) -> int | None:
    """The side that ``value`` stands for, :data:`_TIE` for neither, and None for what is no verdict."""
    answers = [row.peek(name) for name in names]
    if value in answers and answers[0] != answers[1]:
        return answers.index(value)
    word, ends = str(value).strip().lower(), [name[-1].lower() for name in names]
    if word.startswith(_EQUAL):
        return _TIE
    if order := _ORDER.fullmatch(word):
        sign = order[1] or order[2]
        return _TIE if sign[0] == "=" else int((sign[0] == "<") == (order[1] is not None))
    models = [str(row.peek(f"model_{name[-1]}")).strip().lower() for name in names]
    if word in models and models[0] != models[1]:
        return models.index(word)
    side = _SIDE.fullmatch(word)
    if side is None:
        return None
    if ends == ["1", "2"] and side[1] in ("a", "b") and row.has("model_a") and row.has("model_b"):
        ends = ["a", "b"]  # as PPE names the models by letters and their answers by numbers
    return ends.index(side[1]) if side[1] in ends else None


def _weighted(row: Columns, value: object) -> int | None:
    """The side of a number that is AlpacaEval's preference; 0 was its tie at first."""
    number = number_of(value)
    if number is None or not (number == 0 or 1 <= number <= 2):
        return None
    row.reading.scales.weighted("preference", number)
    return _TIE if number in (0, _BETWEEN) else int(number > _BETWEEN)


def _signed(row: Columns) -> int | None:
    """HelpSteer's strength of preference: below 0 for the first answer, above 0 for the second.

    Whether a column is on such a scale is seen from all of its rows, see
    :class:`~kubealign_components.sources.scales.Scales`.
    """
    name = next((name for name in _STRENGTHS if row.has(name)), None)
    if name is None:
        return None
    strength = number_of(row.take(name))
    if strength is None:
        raise Malformed("bad_choice")
    row.reading.scales.signed(name, strength)
    return _TIE if strength == 0 else int(strength > 0)


def _labelled(row: Columns, names: tuple[str, str]) -> int | None:
    """What ``label`` says in words or signs (JudgeBench), or by the number of the column where they are
    numbered from 1 (LLMBar); elsewhere 0 and 1 may as well say whether the first answer is the better one."""
    value = row.peek("label")
    numbered = number_of(value) is not None
    if value is None or (numbered and names[0][-1] != "1"):
        return None
    side = _side(row, names, value)
    if side is None and numbered:
        raise Malformed("bad_choice")
    if side is not None:
        row.take("label")
    return side


def _scored(row: Columns, names: tuple[str, str]) -> int | None:
    """By the scores of both, where nothing else says it (WebGPT)."""
    scores = [number_of(row.peek(f"score_{name[-1]}")) for name in names]
    if scores[0] is None or scores[1] is None:
        return None
    row.reading.notes["comparisons_decided_by_scores"] += 1
    return _TIE if scores[0] == scores[1] else int(scores[1] > scores[0])


def _voted(row: Columns) -> int | None:
    """A column for each outcome, one of them 1."""
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    if not any(row.has(name) for name in names):
        return None
    votes = [truth_of(row.take(name)) for name in names]
    if votes.count(True) != 1:
        raise Malformed("bad_choice")
    return (0, 1, _TIE)[votes.index(True)]


def _first_is_better(row: Columns) -> int | None:
    """SHP's label: 1 where the first answer is preferred."""
    if is_missing(row.peek("human_ref_A")):
        return None
    value = row.take("labels", "label")
    if value is None:
        return None
    first = truth_of(value)
    if first is None:
        raise Malformed("bad_choice")
    return int(not first)
