"""filter: tokenise under the policy's chat template and drop what is too long.

A truncated completion has a wrong log-probability and a wrong reward, so nothing is cut: what does
not fit goes, counted by reason. Rows that were tokenised before, for the same policy, are held to
the settings by the token ids that they have, whole record batches at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kubealign_components.config import execution, require, semantic_params
from kubealign_components.data.chat import (
    ChatTemplate,
    DeferredTemplate,
    TemplateConfig,
    TemplateSettings,
    stored_settings,
)
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.less_rows import output_less_rows
from kubealign_components.data.models import find_model, require_policy
from kubealign_components.data.prefetch import read_ahead
from kubealign_components.data.row_counts import counts_among
from kubealign_components.data.schemas import PROMPT_ROW, PROMPTS, TOKENIZED
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.filter.lengths import Limits, fitting
from kubealign_components.filter.tokens import PROMPT_TOO_LONG, Tokeniser
from kubealign_components.json_types import JsonObject
from kubealign_components.progress import progress_bar

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools

log = logging.getLogger(__name__)

VERSION = 7

Examples = dict[str, list[dict[str, str]]]
"""Of what was dropped, by reason: the prompt's id, and its text."""
_COMPLETIONS = "completions"


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig(TemplateConfig):
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
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        self.check_template()
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
        ConfigError: the prompts were tokenised for another model or with other settings of the template, or
            the template has no such variable.
        EngineError: the policy has no usable tokenizer or template.
        DataError: tokenised prompts with a row that has no token ids.
    """
    model = find_model(config.policy, config.revision, weights=False)
    params = {k: v for k, v in semantic_params(config).items() if k not in ("policy", "revision")}
    fit: Callable[[Iterable[pa.RecordBatch], Stats, JsonObject], Iterator[pa.RecordBatch]]
    whole_groups = prompts.manifest.schema != PROMPTS
    if not whole_groups:
        settings = config.template_settings()
        template = DeferredTemplate(model, settings)
        schema, identity = TOKENIZED, template.identity
        fit = partial(_tokenised, template, config.limits)
    else:
        require_policy(model, prompts)
        settings = _settings_of(config, prompts)
        schema, identity = prompts.manifest.schema, prompts.manifest.identity
        fit = partial(_fitting, config.limits)
    provenance = derive(
        "filter",
        VERSION,
        params | settings.params(),
        inputs={"prompts": prompts},
        models={"policy": model.identity() | identity},
        identity=identity,
        slug=[model.name, f"maxlen{config.max_seq_len}"],
    )

    def make() -> Stats:
        stats = Stats()
        extra: JsonObject = {}
        rows = read_ahead(prompts.batches(batch_rows=None)) if whole_groups else prompts.batches()
        with (
            DatasetWriter(output, schema, provenance) as writer,
            progress_bar(prompts.rows, "prompts", "filter") as bar,
        ):
            for kept in fit(rows, stats, extra):
                stats.rows_out += kept.num_rows
                writer.write(kept)
                bar.update(stats.rows_in - bar.n)
            dropped = extra.get("dropped_examples", {}).keys()
            if dropped - {PROMPT_TOO_LONG} and not stats.counts[_COMPLETIONS]:
                _warn_of_nothing_left(stats)
            writer.commit(stats, extra)
        return stats

    def count(filtered: Dataset, marked: Sequence[Bools]) -> Stats | None:
        if not whole_groups:
            return _counted(prompts, filtered, marked)
        stats = Stats()
        for kept in fit(prompts.deleted_batches(), stats, {}):
            stats.rows_out += kept.num_rows
        return stats

    request = output_request(config, provenance, output)
    inputs = {"prompts": prompts}
    less = partial(output_less_rows, config, request, inputs, count, _examples_left, always=(_COMPLETIONS,))
    return once(request, make, less)


def _counted(prompts: Dataset, filtered: Dataset, marked: Sequence[Bools]) -> Stats | None:
    """What was counted of the rows that are deleted in ``prompts``, as ``filtered`` tells, in which those
    that stayed are ``marked``; None where it does not tell. No tokenizer is loaded, which takes seconds."""
    before, deleted = Stats.from_json(filtered.manifest.stats), np.concatenate(prompts.deletions())
    dropped = counts_among(filtered.manifest.extra, before.dropped, deleted)
    others = {name: count for name, count in before.counts.items() if count and name != _COMPLETIONS}
    counts = counts_among(filtered.manifest.extra, others, deleted)
    if dropped is None or counts is None:
        return None
    lists = filtered.marked_batches(completion_columns("reference"), marked)
    counts[_COMPLETIONS] = sum(len(batch.column("completions").flatten()) for batch in lists)
    rows = int(deleted.sum())
    return Stats(rows_in=rows, rows_out=rows - dropped.total(), dropped=dropped, counts=counts)


def _examples_left(filtered: Dataset, _: Stats, gone: Collection[str]) -> JsonObject:
    """What the manifest of ``filtered`` says of what was dropped, without the prompts that are ``gone``."""
    examples: Examples = filtered.manifest.extra.get("dropped_examples", {})
    left = {why: [one for one in some if one["prompt_id"] not in gone] for why, some in examples.items()}
    left = {why: some for why, some in left.items() if some}
    return {"dropped_examples": left} if left else {}


def _fitting(
    limits: Limits, rows: Iterable[pa.RecordBatch], stats: Stats, _: JsonObject
) -> Iterator[pa.RecordBatch]:
    """The rows that were tokenised before, as far as they fit."""
    for batch in rows:
        yield fitting(batch, limits, stats)


def _tokenised(
    template: DeferredTemplate,
    limits: Limits,
    rows: Iterable[pa.RecordBatch],
    stats: Stats,
    extra: JsonObject,
) -> Iterator[pa.RecordBatch]:
    """The prompts with their tokens; what was dropped is counted, and ``extra`` tells of which rows."""
    chat = template.loaded
    _warn_of_unnamed_ends(chat)
    if lost := chat.lost_bos:
        log.warning(lost)
    tokeniser = Tokeniser(chat, limits, stats)
    for batch in rows:
        yield pa.RecordBatch.from_pylist(tokeniser(batch.to_pylist()), schema=PROMPT_ROW)
    examples = {"dropped_examples": tokeniser.examples} if tokeniser.examples else {}
    extra.update(examples | tokeniser.noted.to_json())


def _warn_of_unnamed_ends(template: ChatTemplate) -> None:
    if names := template.unnamed_ends:
        log.warning(
            "turns of %s end with %s, which its files do not call an end: what serves the model will not "
            "stop there; add the token to eos_token_id in its generation_config.json",
            template.model.name,
            ", ".join(names),
        )


def _warn_of_nothing_left(stats: Stats) -> None:
    reasons = ", ".join(f"{n} {name}" for name, n in (stats.dropped + stats.counts).items())
    log.warning(
        "no offline completion is left (%s); the manifest has examples. Other chat_template_kwargs, or a "
        "template of your own as chat_template, may keep them",
        reasons,
    )


def _settings_of(config: FilterConfig, tokenised: Dataset) -> TemplateSettings:
    """The settings that rows were tokenised with, which those of ``config`` must not contradict."""
    made, asked = stored_settings(tokenised), config.template_settings()
    stored, default = made.params(), TemplateSettings().params()
    for name, value in asked.params().items():
        expected = f"{stored[name]!r}, which {tokenised.uri} was tokenised with; filter the prompts anew"
        require(value in (stored[name], default[name]), name, value, expected)
    return made
