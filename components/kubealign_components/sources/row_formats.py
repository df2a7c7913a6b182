"""What the rows of known datasets mean: one parser a format, and which format a row looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kubealign_components.sources import swissai
from kubealign_components.sources.comparisons import ANSWER_COLUMNS, answer_columns, candidates, names_sides
from kubealign_components.sources.example import Columns, Example, Offline, answers_of
from kubealign_components.sources.messages import (
    ROLES,
    Message,
    Reading,
    check_order,
    read_answer,
    read_turns,
    split_common,
    split_last,
    turns_from_text,
)
from kubealign_components.sources.prompt_columns import (
    CHAT_COLUMNS,
    agreed,
    explicit_prompt,
    may_hold_prompt,
    with_system,
)
from kubealign_components.sources.refusals import shape_of
from kubealign_components.sources.scales import Scales
from kubealign_components.sources.tool_calls import read_tools
from kubealign_components.sources.transcripts import (
    answer_is_due,
    looks_like_transcript,
    transcripts_of,
    without_names,
)
from kubealign_components.sources.values import Malformed, from_json_text, list_from_text, name_of


def preference(row: Columns) -> Example:
    """``chosen`` and ``rejected``; the prompt is explicit or what both begin with."""
    if names_sides(row):
        return candidates(row)
    sides = _pair_columns(row) or PAIR_COLUMNS[0]
    chosen, rejected = _named_answers(row, *(row.take(name) for name in sides))
    if chosen is None or rejected is None:
        raise Malformed("no_pair")
    if _are_texts(chosen) or _are_texts(rejected):
        return _sides_of_many(row, chosen, rejected)
    if begun := row.take("initial_reason_steps"):  # Step-DPO: both go on from there
        chosen, rejected = (
            f"{begun}{text}" if isinstance(text, str) else text for text in (chosen, rejected)
        )
    prompt = explicit_prompt(row, *(["input"] if _is_prompt_beside(row.peek("input"), chosen) else []))
    prompt, chosen, rejected = without_names(prompt, chosen, rejected)
    both = _chats(row, chosen, rejected, prompt)
    if any(chat[0]["role"] != "assistant" for chat in both):
        shared, both = split_common(both)
        prompt = agreed(prompt, shared)
    if prompt is None:
        raise Malformed("no_prompt")
    offered = [_pair_member(row, side, turns) for side, turns in zip(("chosen", "rejected"), both)]
    if str(row.peek("status")).lower() == "tie":  # who labelled Argilla's pairs anew found none better
        row.reading.notes["comparisons_that_are_ties"] += 1
        offered = [replace(completion, label=None) for completion in offered]
    else:
        _note_doubts(row, prompt, *offered)
    return Example(messages=with_system(row, prompt), whole=True, completions=offered)


def conversation(row: Columns) -> Example:
    """``messages`` or ShareGPT ``conversations``: a last assistant turn is an offline completion.

    Beside ``rejected_response`` it is the chosen one of a pair, as in ms-swift's files.
    """
    if row.has("chosen") or row.has("rejected") or _pair_columns(row):
        return preference(row)
    turns = row.take(*CHAT_COLUMNS)
    if turns is None:
        raise Malformed("no_messages")
    prompt, completion = split_last(read_turns(turns, row.reading, chat=True))
    if row.has("prompt"):
        prompt = agreed(explicit_prompt(row), prompt)
    if not completion:
        completion = _completion(row)
    worse = row.take("rejected_response")
    if completion and isinstance(worse, str):
        pair = (("chosen", completion), ("rejected", read_answer(worse)))
        offered = [_pair_member(row, side, turns) for side, turns in pair]
        return Example(messages=with_system(row, prompt), completions=offered, whole=True)
    return Example(messages=with_system(row, prompt), completions=_labelled(row, completion), whole=True)


def instruction(row: Columns) -> Example:
    """A prompt of its own column, with at most one completion (or a pair)."""
    if row.has("chosen") or row.has("rejected") or _pair_columns(row):
        return preference(row)
    if _are_ranked(row.peek("answers")):
        return completions(row)
    prompt = explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    offered = _labelled(row, _completion(row))
    return Example(messages=with_system(row, prompt), completions=offered, whole=True)


def completions(row: Columns) -> Example:
    """UltraFeedback and its like: a prompt and a list of completions, scored, ranked (Nectar) or neither."""
    listed = from_json_text(row.take("completions", "responses", "generations", "answers"))
    if not isinstance(listed, list):
        raise Malformed("bad_completions")
    prompt = explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    if row.has("completions") and _is_list_for(row.peek("labels"), listed):  # TRL's: one answer in steps
        raise Malformed("labels_of_steps")
    offered = _with_lists_beside(row, [_listed_completion(row, item) for item in listed])
    return Example(messages=with_system(row, prompt), completions=offered)


def swissai_row(row: Columns) -> Example:
    """The swissai format; the prompt is what all branches begin with."""
    start = swissai.opening(row.take("system_prompt"), row.take("initial_prompt"))
    branches = from_json_text(row.take("conversation_branches")) or []
    if not isinstance(branches, list):
        raise Malformed("bad_branch")
    read = [swissai.read_branch(branch) for branch in branches]
    going_on = [(b, r) for b, r in zip(branches, read) if r.turns]
    prompt, ends = start, []
    if len(going_on) == 1:
        prompt, last = split_last([*start, *going_on[0][1].turns])
        ends = [last] if last else []
    elif going_on:
        prompt, ends = split_common([[*start, *r.turns] for _, r in going_on])
    offered = [
        Offline(messages=turns, score=row.read_number(branch.get("reward")), model=r.model)
        for (branch, r), turns in zip(going_on, ends)
    ]
    answers = [answer for r in read for answer in r.answers]
    return Example(messages=prompt, completions=offered, answers=answers_of(answers))


Parser = Callable[[Columns], Example]

_SCORES = ("overall_score", "score", "rating", "pm_score")
"""What the score of one completion is called."""
_LISTS_OF_SCORES = ("scores", "ratings", "rewards")
"""What a list is called that has a score for each of the row's completions."""

PAIR_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
)
"""What the columns of the better and of the worse answer are called."""

FORMATS: dict[str, Parser] = {
    "swissai": swissai_row,
    "preference": preference,
    "candidates": candidates,
    "sharegpt": conversation,
    "completions": completions,
    "messages": conversation,
    "instruction": instruction,
    "prompt": instruction,
}
WANTED: dict[str, str] = {
    "swissai": "initial_prompt, or conversation_branches",
    "preference": "chosen and rejected (or chosen_response, …), with a prompt or chats that begin alike",
    "candidates": "candidate_0 and candidate_1 (or response_0, response_a, …), with choice and a prompt",
    "sharegpt": "conversations, or conversation",
    "completions": "completions, responses or generations (lists), with a prompt",
    "messages": "messages",
    "instruction": "instruction, with input and output",
    "prompt": "prompt, question, problem, query or input_text, with completion and answer",
}
"""The columns that each format is known by, in words."""
SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "swissai": (("initial_prompt",), ("conversation_branches",)),
    "preference": PAIR_COLUMNS,
    "candidates": ANSWER_COLUMNS,
    "sharegpt": (("conversations",), ("conversation",)),
    "completions": (("completions",), ("responses",), ("generations",)),
    "messages": (("messages",),),
    "instruction": (("instruction",),),
    "prompt": (("prompt",), ("question",), ("problem",), ("query",), ("input_text",)),
}
"""The columns that each format is known by: all of one of these."""


def looks_like(row: object) -> str | None:
    """The format that ``row`` looks like by its columns; None when it looks like none."""
    if not isinstance(row, Mapping):
        return None
    there = {name for name, value in row.items() if value is not None}
    for name, signs in SIGNS.items():
        seen = bool(answer_columns(there)) if signs is ANSWER_COLUMNS else any(map(there.issuperset, signs))
        if seen:
            return name
    return None


def format_of(row: object, usual: str) -> str:
    """The format of one row of a source whose format was detected: another than ``usual`` only where the
    row has not the columns of ``usual``, not even empty ones, and has those of the other. A prompt without
    the completions that all others have is an incomplete row of ``usual``."""
    if not isinstance(row, Mapping) or any(row.keys() >= set(sign) for sign in SIGNS[usual]):
        return usual
    own = looks_like(row)
    incomplete = own == "prompt" and usual in ("preference", "completions", "candidates")
    return usual if own is None or incomplete else own


def parse(
    row: object, parser: Parser, roles: Mapping[str, str] = ROLES, scales: Scales | None = None
) -> Example:
    """Read one row.

    Args:
        row: the row.
        parser: of :data:`FORMATS`.
        roles: meaning of the role names.
        scales: is told what values the columns of verdicts have in rows that can be used.

    Raises:
        Malformed: the row cannot be used; names the reason.
    """
    if not isinstance(row, Mapping):
        raise Malformed("not_an_object")
    if reason := shape_of(row):
        raise Malformed(reason)
    reading = Reading(roles=roles)
    try:
        example = _parse(Columns(row, reading), parser)
    except RecursionError:
        raise Malformed("too_deep") from None
    if scales is not None:
        scales.add(reading.scales)
    return example


def _parse(row: Columns, parser: Parser) -> Example:
    example = parser(row)
    example.tools = read_tools(row.take("tools", "functions", "available_functions"))
    names = ("answers", "answer", "expected_answer", "solution")[
        1 if _are_ranked(row.peek("answers")) else 0 :
    ]
    example.answers = example.answers or answers_of(row.take(*names)) or _ground_truth(row)
    example.metadata = row.rest()
    example.notes = row.reading.notes
    _check_prompt(example.messages)
    _screen(example)
    return example


def _pair_columns(row: Columns) -> tuple[str, str] | None:
    return next((pair for pair in PAIR_COLUMNS if row.has(pair[0]) and row.has(pair[1])), None)


def _named_answers(row: Columns, *values: Any) -> tuple[Any, ...]:
    """What the row holds under ``values`` where they are the names of two of its columns; else ``values``."""
    named = all(isinstance(v, str) and v not in ("chosen", "rejected") and row.has(v) for v in values)
    return tuple(row.take(v) for v in values) if named and values[0] != values[1] else values


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _sides_of_many(row: Columns, chosen: object, rejected: object) -> Example:
    """Several answers on a side, or lists of one, as in RewardBench 2."""
    prompt = explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    offered = []
    for side, value in (("chosen", chosen), ("rejected", rejected)):
        texts = value if isinstance(value, list) and _are_texts(value) else [value]
        offered += [Offline(messages=read_answer(text, row.reading), label=side) for text in texts]
    return Example(messages=with_system(row, prompt), completions=offered, whole=True)


def _is_list_for(value: object, listed: Sequence[object]) -> bool:
    return isinstance(value, list) and len(value) == len(listed) > 0


def _with_lists_beside(row: Columns, offered: list[Offline]) -> list[Offline]:
    """The completions with scores and models that stand in lists of their own."""

    def listed(*names: str) -> list[object]:
        name = next((name for name in names if _is_list_for(row.peek(name), offered)), "")
        return list(row.take(name)) if name else [None] * len(offered)

    beside = zip(offered, listed(*_LISTS_OF_SCORES), listed("models", "generation_models"), strict=True)
    return [
        replace(
            completion,
            score=row.read_number(score) if completion.score is None else completion.score,
            model=completion.model or name_of(model),
        )
        for completion, score, model in beside
    ]


def _chats(
    row: Columns, chosen: object, rejected: object, prompt: list[Message] | None
) -> list[list[Message]]:
    """What ``chosen`` and ``rejected`` say: answers, or whole chats where the prompt is in them.

    Of plain texts without a prompt, the prompt is what both begin with, up to the last space: TRL's rule
    for implicit prompts.
    """
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return [read_answer(chosen, row.reading), read_answer(rejected, row.reading)]
    _note_json_chats(row, chosen, rejected)
    if prompt is None:
        return transcripts_of(chosen, rejected) or _split_texts(row, chosen, rejected)
    return _repeated(prompt, chosen, rejected) or [read_answer(chosen), read_answer(rejected)]


def _is_prompt_beside(asked: object, chosen: object) -> bool:
    """Whether ``input`` is what a text answers: transcripts have their prompt in them."""
    if not (isinstance(asked, str) and isinstance(chosen, str)):
        return False
    return bool(asked.strip()) and not looks_like_transcript(chosen)


def _repeated(prompt: list[Message], chosen: str, rejected: str) -> list[list[Message]] | None:
    """Two transcripts that say the prompt once more; None for other texts."""
    try:
        chats = transcripts_of(chosen, rejected)
        if chats is not None:
            agreed(prompt, split_common(chats)[0])
    except Malformed:
        return None
    return chats


def _split_texts(row: Columns, chosen: str, rejected: str) -> list[list[Message]]:
    shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected))
    )
    if any(may_hold_prompt(name, value) for name, value in row.others()):
        raise Malformed("prompt_column_not_known")
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        raise Malformed("no_prompt")
    prompt = {"role": "user", "content": chosen[:shared].rstrip()}
    if answer_is_due(chosen[:shared]):
        row.reading.notes["prompts_with_marks_of_a_chat"] += 1
    return [[prompt, {"role": "assistant", "content": text[shared:]}] for text in (chosen, rejected)]


def _note_json_chats(row: Columns, *texts: str) -> None:
    """Text stays text where a file has types, but texts that are chats in JSON are worth a note."""
    chats = [text for text in texts if turns_from_text(text) is not text]
    row.reading.notes.update("texts_that_are_json_chats" for _ in chats)


def _completion(row: Columns) -> list[Message]:
    """The one answer of a row, if it has one."""
    value = row.take("output", "completion", "response", "generated_solution")
    if isinstance(value, str):
        _note_json_chats(row, value)
    return read_answer(value, row.reading) if value is not None else []


def _pair_member(row: Columns, side: str, turns: list[Message]) -> Offline:
    names = ("score", "rating", "avg_rating", "reward")
    score = row.number(*(name for n in names for name in (f"{n}_{side}", f"{side}_{n}", f"{side}-{n}")))
    model = row.take(f"{side}_model", f"{side}-model")
    return Offline(messages=turns, label=side, score=score, model=name_of(model))


def _note_doubts(row: Columns, prompt: list[Message], chosen: Offline, rejected: Offline) -> None:
    """Note what a pair seldom means: scores against its labels, and answers that begin with the question."""
    if chosen.score is not None and rejected.score is not None and chosen.score < rejected.score:
        row.reading.notes["pairs_scored_against_their_labels"] += 1
    question = prompt[-1]["content"].strip()
    said = [offered.messages[0]["content"].lstrip() for offered in (chosen, rejected) if offered.messages]
    if question and all(text.startswith(question) and text.strip() != question for text in said):
        row.reading.notes["pairs_that_repeat_their_prompt"] += 1


def _labelled(row: Columns, turns: list[Message]) -> list[Offline]:
    """The one completion of a row, with its verdict (TRL's unpaired preference) and score."""
    if not turns:
        return []
    label = row.verdict("label", "kto_tag", "is_chosen", "desirable")
    score, model = row.number(*_SCORES), name_of(row.take("model"))
    return [Offline(messages=turns, label=label, score=score, model=model)]


def _ground_truth(row: Columns) -> list[str]:
    """What verifies an answer by that name, of its own or, in verl's files, in ``reward_model``, where it may
    be JSON text of a list.

    It may be what a program verifies by, such as numbers to count with: that is left, and noted.
    """
    rule = row.peek("reward_model")
    truths = {
        "ground_truth": row.peek("ground_truth"),
        "reward_model": rule.get("ground_truth") if isinstance(rule, Mapping) else None,
    }
    for name, truth in truths.items():
        with suppress(Malformed):
            if answers := answers_of(list_from_text(truth) if isinstance(truth, str) else truth):
                row.take(name)
                return answers
    return []


def _are_ranked(value: object) -> bool:
    """Whether ``answers`` are what was answered, with a rank or score each, not what verifies an answer."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(v, Mapping) and any(name in v for name in ("rank", *_SCORES)) for v in value)


def _listed_completion(row: Columns, item: object) -> Offline:
    if not isinstance(item, Mapping):
        return Offline(messages=read_answer(item, row.reading) if isinstance(item, str | list) else [])
    own = Columns(item, row.reading)
    answer = own.take("response", "text", "completion", "content", "messages", "answer")
    score, rank = own.number(*_SCORES), own.number("rank")
    offered = Offline(
        messages=read_answer(answer, row.reading) if answer is not None else [],
        label=own.verdict("label"),
        score=-rank if score is None and rank is not None else score,
        model=name_of(own.take("model")),
    )
    own.note_rest("completion_field")
    return offered


def _check_prompt(messages: list[Message]) -> None:
    if not messages or all(m["role"] == "system" for m in messages):
        raise Malformed("no_prompt")
    check_order(messages)
    if messages[-1]["role"] not in ("user", "tool"):
        raise Malformed("bad_role_order")
    if any(not _says_something(m) for m in messages if m["role"] != "tool"):
        raise Malformed("empty_turn")


def _screen(example: Example) -> None:
    """Keep the completions that can be scored and trained on, count the others.

    A completion is one assistant turn: of a longer one the policy would have written only a part,
    and tokens that a user or a tool wrote would be scored and trained on as the policy's own.
    """
    kept = []
    for completion in example.completions:
        problem = _problem(completion.messages)
        if problem is None:
            kept.append(completion)
        elif example.whole:
            raise Malformed(problem)
        else:
            example.refused[problem] += 1
    if example.refused and not kept:
        raise Malformed(next(iter(example.refused)))
    example.completions = kept


def _problem(messages: list[Message]) -> str | None:
    if not messages:
        return "empty_completion"
    if len(messages) > 1:
        return "completion_of_several_turns"
    if messages[0]["role"] != "assistant":
        return "bad_role_order"
    return None if _says_something(messages[0]) else "empty_completion"


def _says_something(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))
