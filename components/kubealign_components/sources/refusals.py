"""Rows that say something which no format here reads: how they are known, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_components.sources.values import text_of

TREE = "tree_of_messages"
RECORD = "annotation_record"
SUMMARIES = "summaries_to_compare"
CHOICES = "choices_beside_the_question"

ADVICE: dict[str, str] = {
    TREE: "messages of trees, as OpenAssistant's, are read for their prompts by clean_prompts; for pairs, "
    "write a row for every two replies to one message: prompt (the turns up to it), chosen (the reply of the "
    "lower rank) and rejected",
    RECORD: "records of Argilla have texts in fields and verdicts in responses: write a row for each, such "
    "as prompt, chosen and rejected, or prompt, completion and label",
    SUMMARIES: "write info's text, with what is asked of it, as prompt, the summary of the number in choice "
    "as chosen, and the other one as rejected",
    CHOICES: "write the choices into the question, and what the answer shall be, such as its letter, into "
    "answer; or, where the question needs none of them, columns: {choices: metadata}, whatever their column "
    "is called",
    "completion_of_several_turns": "chats that part before their last answer compare more than one answer: "
    "cut them after the first answer in which they differ, if that is what was judged, or leave them out",
    "prompt_column_not_known": "the column that seems to hold what was asked is named in columns: "
    "{its name: prompt}, or {its name: metadata} if it does not",
    "no_prompt": "the column that holds what was asked is named in columns: {its name: prompt}",
    "bad_message": "a turn is an object with a role, such as user or assistant, and a content; of several "
    "questions of a user, write the one that was answered, after the turns before it",
    "bad_choice": "a verdict is the column, the number or letter at its end, or the model of the better "
    "answer, or tie",
}
"""What to do about rows that are malformed for a reason, where more than the row has to be said."""

_SHAPES = {
    TREE: ({"message_id", "parent_id", "text", "role"}, {"message_tree_id", "prompt"}),
    RECORD: ({"fields", "responses"}, {"fields", "suggestions"}),
    SUMMARIES: ({"info", "summaries", "choice"},),
}


def shape_of(row: Mapping[str, object]) -> str | None:
    """The reason of :data:`ADVICE` why no format reads ``row``; None for others."""
    there = {name for name, value in row.items() if value is not None or name == "parent_id"}
    for reason, shapes in _SHAPES.items():
        if any(map(there.issuperset, shapes)):
            return None if reason == TREE and isinstance(row.get("prompt"), str | list) else reason
    return CHOICES if _needs_choices(row) else None


def _needs_choices(row: Mapping[str, object]) -> bool:
    """Whether a question has choices in columns of their own, and not in its text."""
    question = row.get("question")
    if not isinstance(question, str):
        return False
    letters = [row.get(letter) for letter in "ABC"]
    listed = next((row[name] for name in ("choices", "options") if row.get(name)), None)
    if isinstance(listed, Mapping):
        listed = listed.get("text") or list(listed.values())
    if listed is None and all(isinstance(text, str) for text in letters):
        listed = letters
    if not isinstance(listed, list) or len(listed) < 2:
        return False
    return not all(text_of(text) in question for text in listed if isinstance(text, str))
