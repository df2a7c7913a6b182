"""Token ids for a batch of rows: rendered one by one, encoded together, held to the lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kubealign_components.data.chat import ChatTemplate, TemplateMismatch
from kubealign_components.data.chat.policy import RenderedCompletion
from kubealign_components.data.row_counts import RowCounts
from kubealign_components.data.schemas import completion_id
from kubealign_components.data.stats import Stats
from kubealign_components.filter.lengths import Limits
from kubealign_components.json_types import JsonObject

Row = JsonObject

EXAMPLES = 3
"""Of what is dropped, by reason, that the manifest keeps."""
PROMPT_TOO_LONG = "prompt_too_long"
_EXAMPLE_CHARACTERS = 500


@dataclass(slots=True)
class Tokeniser:
    """Fills in the token columns of rows and counts what does not fit.

    Args:
        template: the policy's.
        limits: of lengths and numbers.
        stats: where to count.
    """

    template: ChatTemplate
    limits: Limits
    stats: Stats
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Some of what was dropped: why, of which prompt, and its text."""
    noted: RowCounts = field(default_factory=RowCounts)
    """All that was counted, by the numbers of the rows, but the completions that stay."""

    def __call__(self, rows: list[Row]) -> list[Row]:
        """The rows that stay, with token ids and the completions that stay."""
        for row in rows:
            row["number"] = self.stats.rows_in
            self.stats.rows_in += 1
        prompted = list(self._with_prompts(rows))
        for row in prompted:
            self._render_completions(row)
        rendered = [c["rendered"] for row in prompted for c in row["completions"]]
        encoded = iter(self.template.encode_completions(rendered))
        for row in prompted:
            pairs = [(c, next(encoded)) for c in row["completions"]]
            row["completions"] = self._fitting(row, pairs)
        kept = []
        for row in prompted:
            if len(row["completions"]) >= self.limits.min_completions:
                kept.append(row)
            else:
                self._drop("too_few_completions", row)
        if kept:
            self.stats.counts["completions"] += sum(len(row["completions"]) for row in kept)
        return kept

    def _with_prompts(self, rows: list[Row]) -> Iterator[Row]:
        """The rows whose prompts fit, with the ids, the text and the messages of their prompts."""
        rendered = [row for row in rows if self._render_prompt(row)]
        encoded = self.template.encode_prompts([row["prompt_text"] for row in rendered])
        for row, ids in zip(rendered, encoded, strict=True):
            if self.template.lacks_bos:
                self._count("prompts_without_bos", row)
            if len(ids) > self.limits.max_prompt_len:
                self._drop(PROMPT_TOO_LONG, row)
                continue
            if not self.template.says(ids, row["prompt_text"]):
                self._count("prompts_with_text_lost_in_tokens", row)
            row["prompt_token_ids"], row["prompt_tokens"] = ids, len(ids)
            yield row

    def _render_prompt(self, row: Row) -> bool:
        row["chat"] = json.loads(row["messages"])
        row["functions"] = json.loads(row["tools"]) if row["tools"] else None
        try:
            row["prompt_text"] = self.template.prompt_text(row["chat"], row["functions"])
        except TemplateMismatch as mismatch:
            self._drop(mismatch.reason, row)
            return False
        return True

    def _render_completions(self, row: Row) -> None:
        kept = []
        for completion in row["completions"]:
            try:
                completion["rendered"] = self._rendered(row, completion)
            except TemplateMismatch as mismatch:
                self._drop_completion(mismatch.reason, row, completion)
            else:
                kept.append(completion)
        row["completions"] = kept

    def _rendered(self, row: Row, completion: Row) -> RenderedCompletion:
        messages = json.loads(completion["messages"])
        return self.template.completion_text(row["prompt_text"], row["chat"], messages, row["functions"])

    def _fitting(self, row: Row, encoded: Sequence[tuple[Row, list[int] | TemplateMismatch]]) -> list[Row]:
        """The completions that fit into what the prompt leaves, with their ids."""
        room = self.limits.max_seq_len - row["prompt_tokens"]
        kept: list[Row] = []
        first: dict[tuple[int, ...], Row] = {}
        for completion, ids in encoded:
            del completion["rendered"]
            if isinstance(ids, TemplateMismatch):
                self._drop_completion(ids.reason, row, completion)
                continue
            if len(ids) > room:
                self._drop_completion("too_long", row, completion)
                continue
            fitting = completion | {
                "completion_id": completion_id(row["prompt_id"], ids),
                "token_ids": ids,
                "num_tokens": len(ids),
                "finish_reason": "offline",
            }
            said = first.setdefault(tuple(ids), fitting)
            if said["messages"] == fitting["messages"]:
                kept.append(fitting)
            else:
                self._drop_completion("same_tokens", row, completion)
                self._reconcile(row, said, completion)
        return kept

    def _reconcile(self, row: Row, kept: Row, dropped: Row) -> None:
        """Take the label from a completion of whose tokens another one was said."""
        labels = {kept["label"], dropped["label"]}
        if None not in labels and len(labels) > 1:
            kept["label"] = None
            self._count("completions_chosen_and_rejected", row)

    def _count(self, name: str, row: Row) -> None:
        self.stats.counts[name] += 1
        self.noted.note(name, row["number"])

    def _drop(self, reason: str, row: Row) -> None:
        self.stats.drop(reason)
        self.noted.note(reason, row["number"])
        self._keep_example(reason, row, row["messages"])

    def _drop_completion(self, reason: str, row: Row, completion: Row) -> None:
        self._count(f"completions_{reason}", row)
        self._keep_example(f"completions_{reason}", row, completion["messages"])

    def _keep_example(self, reason: str, row: Row, text: str) -> None:
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append({"prompt_id": row["prompt_id"], "text": text[:_EXAMPLE_CHARACTERS]})
