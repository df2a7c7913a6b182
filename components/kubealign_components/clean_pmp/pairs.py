"""What a row of a human preference dataset says: a prompt, two completions and which one was preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kubealign_components.data.schemas import pair_id
from kubealign_components.json_types import JsonObject
from kubealign_components.sources.example import Columns, Example, Offline
from kubealign_components.sources.messages import ROLES
from kubealign_components.sources.prompt_rows import to_row
from kubealign_components.sources.row_formats import FORMATS, WANTED, looks_like, parse
from kubealign_components.sources.scales import Scales
from kubealign_components.sources.source import Unwanted
from kubealign_components.sources.values import Malformed, number_of

Row = JsonObject

SHP = "shp"
PAIR_FORMATS: dict[str, str] = {SHP: "history, human_ref_A and human_ref_B", **WANTED}
"""The formats, and the columns that each is known by."""
_SHP_COLUMNS = ("history", "human_ref_A", "human_ref_B")
# Sound rows that are no comparison of two single answers; Anthropic's data has some of each.
_NOT_COMPARABLE = ("completion_of_several_turns", "empty_completion")


def looks_like_pair(row: object) -> str | None:
    """The format that ``row`` looks like: that of SHP, or one that ``import_prompts`` reads."""
    if isinstance(row, Mapping) and all(row.get(column) is not None for column in _SHP_COLUMNS):
        return SHP
    return looks_like(row)


def read_pair(
    raw: object,
    form: str,
    source: str,
    min_score_ratio: float,
    *,
    roles: Mapping[str, str] = ROLES,
    note: Callable[[Mapping[str, int]], None] | None = None,
    scales: Scales | None = None,
) -> Row:
    """The pair of one row, completions in the order of their ids.

    In texts with ``Human:`` and ``Assistant:`` turns (Anthropic's), the prompt is the longest common
    beginning, walked back to the last mark of an assistant's turn.

    Args:
        raw: the row.
        form: one of :data:`PAIR_FORMATS`.
        source: name of the source.
        min_score_ratio: SHP rows need a larger ratio.
        roles: meaning of the role names.
        note: is told what the row holds and the pair does not.
        scales: is told what values the columns of verdicts have.

    Returns:
        The prompt's columns, both completions, ``preferred`` (0 or 1), ``margin`` and ``contradicted``
        (the source's scores say the opposite of its label).

    Raises:
        Malformed: the row cannot be read, or has no preferred completion.
        Unwanted: low_score_ratio, identical_completions, tie, or no comparison of two answers.
    """
    example = _example(raw, form, roles, min_score_ratio, scales)
    if note is not None:
        note(example.notes)
    if example.notes["comparisons_that_are_ties"]:
        raise Unwanted("tie")
    if sorted(str(c.label) for c in example.completions) != ["chosen", "rejected"]:
        raise Malformed("no_pair")
    row = to_row(example, source, 1.0)
    completions = sorted(row["completions"], key=lambda completion: str(completion["completion_id"]))
    ids = [completion["completion_id"] for completion in completions]
    if ids[0] == ids[1]:
        raise Unwanted("identical_completions")
    preferred = [completion["label"] for completion in completions].index("chosen")
    chosen, rejected = completions[preferred]["score"], completions[1 - preferred]["score"]
    difference = None if chosen is None or rejected is None else chosen - rejected
    return {
        **{name: row[name] for name in ("prompt_id", "source", "messages", "tools", "metadata")},
        "pair_id": pair_id(row["prompt_id"], ids),
        "completions": completions,
        "preferred": preferred,
        "margin": difference if difference is not None and difference >= 0 else None,
        "contradicted": difference is not None and difference < 0,
    }


def _example(
    raw: object, form: str, roles: Mapping[str, str], min_score_ratio: float, scales: Scales | None
) -> Example:
    if form == SHP:
        return _shp(raw, min_score_ratio)
    try:
        return parse(raw, FORMATS[form], roles, scales)
    except Malformed as problem:
        if problem.reason in _NOT_COMPARABLE:
            raise Unwanted(problem.reason) from None
        raise


def _shp(raw: object, min_score_ratio: float) -> Example:
    """A row of the Stanford Human Preferences dataset: two answers to a post, scored by readers."""
    if not isinstance(raw, Mapping):
        raise Malformed("not_an_object")
    row = Columns(raw)
    history, *answers = (row.take(name) for name in _SHP_COLUMNS)
    if not isinstance(history, str) or not history.strip():
        raise Malformed("no_prompt")
    if not all(isinstance(answer, str) for answer in answers):
        raise Malformed("no_pair")
    if not all(answer.strip() for answer in answers):
        raise Unwanted("empty_completion")
    label = number_of(row.take("labels", "label"))
    if label not in (0, 1):
        raise Malformed("bad_label")
    scores = [row.number(f"score_{side}") for side in "AB"]
    if _ratio(row, scores) <= min_score_ratio:
        raise Unwanted("low_score_ratio")
    verdicts = ("chosen", "rejected") if label == 1 else ("rejected", "chosen")
    offered = [
        Offline(messages=[{"role": "assistant", "content": answer}], label=verdict, score=score)
        for answer, verdict, score in zip(answers, verdicts, scores)
    ]
    prompt = [{"role": "user", "content": history.strip()}]
    return Example(
        messages=prompt, completions=offered, whole=True, metadata=row.rest(), notes=row.reading.notes
    )


def _ratio(row: Columns, scores: list[float | None]) -> float:
    ratio = number_of(row.take("score_ratio"))
    given = [score for score in scores if score is not None]
    if ratio is None and len(given) == 2 and min(given) > 0:
        ratio = max(given) / min(given)
    if ratio is None:
        raise Malformed("no_score_ratio")
    return ratio
