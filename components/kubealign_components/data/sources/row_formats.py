"""What the rows of known datasets mean: one parser a format, and which format a row looks like."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubealign_components.data.sources import swissai
from kubealign_components.data.sources.example import (
    Columns,
    Example,
    Offline,
    answers_of,
    name_of,
    number_of,
)
from kubealign_components.data.sources.messages import (
    Malformed,
    Message,
    check_order,
    first_of,
    from_json_text,
    read_answer,
    read_tools,
    read_turns,
    split_common,
    split_last,
    text_of,
    turns_from_text,
)

PROMPT_COLUMNS = (
    "prompt",
    "conversations",
    "messages",
    "instruction",
    "question",
    "problem",
    "query",
    "input_text",
)
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def preference(row: Columns) -> Example:
    """``chosen`` and ``rejected``; the prompt is explicit or what both begin with."""
    chosen, rejected = row.take("chosen"), row.take("rejected")
    if chosen is None or rejected is None:
        raise Malformed("no_pair")
    prompt = _explicit_prompt(row)
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        prompt, both = split_common(_transcripts(chosen, rejected))
    else:
        both = [read_answer(chosen), read_answer(rejected)]
    if both[0][0]["role"] != "assistant" or both[1][0]["role"] != "assistant":
        prompt, both = split_common(both)
    if prompt is None:
        raise Malformed("no_prompt")
    return Example(
        messages=prompt,
        whole=True,
        completions=[_pair_member(row, side, turns) for side, turns in zip(("chosen", "rejected"), both)],
    )


def conversation(row: Columns) -> Example:
    """``messages`` or ShareGPT ``conversations``: a last assistant turn is an offline completion."""
    if row.has("chosen") or row.has("rejected"):
        return preference(row)
    turns = row.take("conversations", "messages")
    if turns is None:
        raise Malformed("no_messages")
    prompt, completion = split_last(_with_system(row, read_turns(turns)))
    return Example(messages=prompt, completions=_labelled(row, completion), whole=True)


def instruction(row: Columns) -> Example:
    """A prompt of its own column, with at most one completion (or a pair)."""
    if row.has("chosen") or row.has("rejected"):
        return preference(row)
    prompt = _explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    completion = row.take("output", "completion", "response")
    turns = read_answer(completion) if completion is not None else []
    return Example(messages=prompt, completions=_labelled(row, turns), whole=True)


def completions(row: Columns) -> Example:
    """UltraFeedback and its like: a prompt and a list of completions, scored or not."""
    listed = from_json_text(row.take("completions", "responses"))
    if not isinstance(listed, list):
        raise Malformed("bad_completions")
    prompt = _explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    return Example(messages=prompt, completions=[_listed_completion(item) for item in listed])


def candidates(row: Columns) -> Example:
    """``candidate_0``, ``candidate_1`` and the index of the better one in ``choice``."""
    both = [read_answer(row.take("candidate_0")), read_answer(row.take("candidate_1"))]
    choice = row.take("choice")
    if isinstance(choice, bool) or choice not in (0, 1, "0", "1", "candidate_0", "candidate_1"):
        raise Malformed("bad_choice")
    prompt = _explicit_prompt(row)
    if prompt is None:
        raise Malformed("no_prompt")
    better = int(str(choice)[-1]) if isinstance(choice, str) else int(choice)
    labels = ("chosen", "rejected") if better == 0 else ("rejected", "chosen")
    offered = [Offline(messages=m, label=label) for m, label in zip(both, labels)]
    return Example(messages=prompt, completions=offered, whole=True)


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
        Offline(messages=turns, score=number_of(branch.get("reward")), model=r.model)
        for (branch, r), turns in zip(going_on, ends)
    ]
    found = [answer for r in read for answer in r.answers]
    return Example(messages=prompt, completions=offered, answers=answers_of(found))


Parser = Callable[[Columns], Example]

FORMATS: dict[str, Parser] = {
    "swissai": swissai_row,
    "candidates": candidates,
    "sharegpt": conversation,
    "preference": preference,
    "completions": completions,
    "messages": conversation,
    "instruction": instruction,
    "prompt": instruction,
}
_SIGNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "swissai": (("initial_prompt",), ("conversation_branches",)),
    "candidates": (("candidate_0", "candidate_1"),),
    "sharegpt": (("conversations",),),
    "preference": (("chosen", "rejected"),),
    "completions": (("completions",), ("responses",)),
    "messages": (("messages",),),
    "instruction": (("instruction",),),
    "prompt": (("prompt",), ("question",), ("problem",), ("query",), ("input_text",)),
}


def detect(rows: Iterable[object]) -> str | None:
    """The format that most of ``rows`` look like by their columns; None when none looks like any."""
    seen = Counter(name for row in rows if isinstance(row, Mapping) and (name := _looks_like(row)))
    return max(seen, key=lambda name: seen[name]) if seen else None


def parse(row: object, parser: Parser) -> Example:
    """Read one row.

    Raises:
        Malformed: the row cannot be used; names the reason.
    """
    if not isinstance(row, Mapping):
        raise Malformed("not_an_object")
    try:
        return _parse(Columns(row), parser)
    except RecursionError:
        raise Malformed("too_deep") from None


def _parse(row: Columns, parser: Parser) -> Example:
    example = parser(row)
    example.tools = read_tools(row.take("tools", "functions", "available_functions"))
    example.answers = example.answers or answers_of(row.take("answers", "answer", "solution"))
    example.metadata = row.rest()
    _check_prompt(example.messages)
    _screen(example)
    return example


def _looks_like(row: Mapping[Any, Any]) -> str | None:
    there = {name for name, value in row.items() if value is not None}
    for name, signs in _SIGNS.items():
        if any(there.issuperset(sign) for sign in signs):
            return name
    return None


def _explicit_prompt(row: Columns) -> list[Message] | None:
    name = next((n for n in PROMPT_COLUMNS if row.has(n)), None)
    if name is None:
        return None
    value = turns_from_text(row.take(name))
    if not isinstance(value, str):
        return _with_system(row, read_turns(value))
    if name == "instruction":
        value = "\n".join(filter(None, [value, text_of(row.take("input"))]))
    if name == "question":
        value = "\n".join(filter(None, [text_of(row.take("passage", "context")), value]))
    if not value.strip():
        raise Malformed("no_prompt")
    return _with_system(row, [*_history(row), {"role": "user", "content": value}])


def _with_system(row: Columns, turns: list[Message]) -> list[Message]:
    """``turns`` after the row's own system prompt, unless they have one."""
    system = row.take("system", "system_prompt")
    if not isinstance(system, str) or not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _history(row: Columns) -> list[Message]:
    """Earlier turns of an instruction row: ``history`` is a list of (question, answer)."""
    turns: list[Message] = []
    rounds = row.take("history")
    for pair in rounds if isinstance(rounds, list) else []:
        if not isinstance(pair, list) or not all(isinstance(text, str) for text in pair) or len(pair) != 2:
            raise Malformed("bad_message")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _transcripts(chosen: str, rejected: str) -> list[list[Message]]:
    """Two chats from two texts that begin alike.

    Texts with ``Human:`` and ``Assistant:`` turns (Anthropic's) are read as such. Of other texts the
    prompt is what both begin with, up to the last space: TRL's rule for implicit prompts.
    """
    if _SPEAKER.match(chosen) and _SPEAKER.match(rejected):
        return [_transcript(chosen), _transcript(rejected)]
    shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected))
    )
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    if not chosen[:shared].strip():
        raise Malformed("no_prompt")
    prompt = {"role": "user", "content": chosen[:shared].rstrip()}
    return [[prompt, {"role": "assistant", "content": text[shared:]}] for text in (chosen, rejected)]


def _transcript(text: str) -> list[Message]:
    _, *pieces = _SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _pair_member(row: Columns, side: str, turns: list[Message]) -> Offline:
    score = row.take(f"score_{side}", f"{side}_score", f"{side}_rating", f"{side}-rating")
    model = row.take(f"{side}_model", f"{side}-model")
    return Offline(messages=turns, label=side, score=number_of(score), model=name_of(model))


def _labelled(row: Columns, turns: list[Message]) -> list[Offline]:
    """The one completion of a row, with its verdict (TRL's unpaired preference) and score."""
    if not turns:
        return []
    verdicts = {True: "chosen", False: "rejected", "true": "chosen", "false": "rejected"}
    verdicts |= {"chosen": "chosen", "rejected": "rejected"}
    label = row.peek("label")
    known = label.lower() if isinstance(label, str) else label
    verdict = verdicts.get(known) if isinstance(known, bool | str) else None
    if verdict:
        row.take("label")
    score, model = number_of(row.take("score")), name_of(row.take("model"))
    return [Offline(messages=turns, label=verdict, score=score, model=model)]


def _listed_completion(item: object) -> Offline:
    if not isinstance(item, Mapping):
        return Offline(messages=read_answer(item) if isinstance(item, str | list) else [])
    answer = first_of(item, "response", "text", "completion", "content", "messages")
    score = first_of(item, "overall_score", "score", "rating")
    return Offline(
        messages=read_answer(answer) if answer is not None else [],
        score=number_of(score),
        model=name_of(item.get("model")),
    )


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
