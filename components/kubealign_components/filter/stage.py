"""filter: tokenise under the policy's chat template and drop what is too long.

A truncated completion has a wrong log-probability and a wrong reward, so nothing is cut: what does
not fit goes, counted by reason. Rows that were tokenised before, for the same policy, are held to
the settings by the token ids that they have, whole record batches at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kubealign_components.config import require, semantic_params
from kubealign_components.data.chat import ChatTemplate, TemplateMismatch
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model, require_policy
from kubealign_components.data.prefetch import read_ahead
from kubealign_components.data.schemas import PROMPT_ROW, PROMPTS, TOKENIZED, completion_id
from kubealign_components.data.stats import Stats
from kubealign_components.filter.lengths import Limits, fitting
from kubealign_components.progress import progress_bar

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Settings of ``filter``."""

    policy: str
    """Model directory, URI or hub id of the policy to align."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    max_seq_len: int = 4096
    """Most tokens of prompt and completion together; longer completions are dropped."""
    max_prompt_len: int = 2048
    """Most tokens of a prompt with its generation prompt; longer prompts are dropped."""
    min_completions: int = 0
    """Prompts with fewer offline completions left are dropped; 0 to sample from prompts alone."""

    def __post_init__(self) -> None:
        require(self.max_seq_len > 0, "max_seq_len", self.max_seq_len, "a positive number of tokens")
        require(
            0 < self.max_prompt_len < self.max_seq_len,
            "max_prompt_len",
            self.max_prompt_len,
            f"a positive number of tokens below max_seq_len ({self.max_seq_len})",
        )
        require(self.min_completions >= 0, "min_completions", self.min_completions, "0 or more")

    @property
    def limits(self) -> Limits:
        """What rows are held to."""
        return Limits(**{name: getattr(self, name) for name in Limits.__slots__})


def run(config: FilterConfig, *, prompts: Dataset, output: str) -> Stats:
    """Write the tokenised prompts and completions that fit to ``output``.

    Args:
        config: the settings.
        prompts: ``kubealign.prompts/v1``, which become ``kubealign.tokenized/v1``, or prompts that
            were tokenised for the policy, which stay of the kind they are.
        output: URI of the dataset to make.

    Raises:
        ConfigError: the prompts were tokenised for another model.
        EngineError: the policy has no usable tokenizer or template.
        DataError: tokenised prompts with a row that has no token ids.
    """
    model = find_model(config.policy, config.revision)
    params = {k: v for k, v in semantic_params(config).items() if k not in ("policy", "revision")}
    stats = Stats()
    if prompts.manifest.schema == PROMPTS:
        template = ChatTemplate(model)
        schema, identity = TOKENIZED, template.identity
        batches = _tokenised(prompts, config, template, stats)
    else:
        require_policy(model, prompts)
        schema, identity = prompts.manifest.schema, prompts.manifest.identity
        batches = (
            fitting(batch, config.limits, stats) for batch in read_ahead(prompts.batches(batch_rows=None))
        )
    provenance = derive(
        "filter",
        VERSION,
        params,
        inputs={"prompts": prompts},
        models={"policy": model.identity() | identity},
        identity=identity,
        slug=[model.name, f"maxlen{config.max_seq_len}"],
    )
    with (
        DatasetWriter(output, schema, provenance) as writer,
        progress_bar(prompts.rows, "prompts", "filter") as bar,
    ):
        for kept in batches:
            stats.rows_out += kept.num_rows
            writer.write(kept)
            bar.update(stats.rows_in - bar.n)
        writer.commit(stats)
    return stats


def _tokenised(
    prompts: Dataset, config: FilterConfig, template: ChatTemplate, stats: Stats
) -> Iterator[pa.RecordBatch]:
    for batch in prompts.batches():
        rows = batch.to_pylist()
        stats.rows_in += len(rows)
        kept = [row for row in rows if _tokenise(row, config, template, stats)]
        yield pa.RecordBatch.from_pylist(kept, schema=PROMPT_ROW)


def _tokenise(row: dict[str, Any], config: FilterConfig, template: ChatTemplate, stats: Stats) -> bool:
    """Fill in the token columns of ``row``; False, counted, when the row is dropped."""
    messages = json.loads(row["messages"])
    tools = json.loads(row["tools"]) if row["tools"] else None
    try:
        prompt = template.prompt_ids(messages, tools)
    except TemplateMismatch:
        stats.drop("template_refused")
        return False
    if len(prompt) > config.max_prompt_len:
        stats.drop("prompt_too_long")
        return False
    row["prompt_token_ids"], row["prompt_tokens"] = prompt, len(prompt)
    room = config.max_seq_len - len(prompt)
    completions = [_completion(row, c, messages, tools, room, template, stats) for c in row["completions"]]
    row["completions"] = [c for c in completions if c is not None]
    if len(row["completions"]) < config.min_completions:
        stats.drop("too_few_completions")
        return False
    stats.counts["completions"] += len(row["completions"])
    return True


def _completion(
    row: dict[str, Any],
    completion: dict[str, Any],
    messages: list[dict[str, Any]],
    tools: Any,
    room: int,
    template: ChatTemplate,
    stats: Stats,
) -> dict[str, Any] | None:
    try:
        ids = template.completion_ids(messages, json.loads(completion["messages"]), tools)
    except TemplateMismatch:
        stats.counts["completions_template_mismatch"] += 1
        return None
    if not ids:
        stats.counts["completions_empty"] += 1
        return None
    if len(ids) > room:
        stats.counts["completions_too_long"] += 1
        return None
    return completion | {
        "completion_id": completion_id(row["prompt_id"], ids),
        "token_ids": ids,
        "num_tokens": len(ids),
        "finish_reason": "offline",
    }
