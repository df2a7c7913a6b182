"""rl_prompts: prompts for reinforcement learning, from many sources, with what the reward needs to know.

Every prompt's metadata says its ``question_type`` (general, reasoning or red-teaming), by which
principles are drawn for it, and its ``length_bonus``, by which a longer answer is rewarded or, below
0, penalised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kubealign_components.config import execution, gate, require, require_choice
from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import OutputRequest, once
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.principles import GENERAL, REASONING, RED_TEAMING, TAGS
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import Withdrawal, read_withdrawal
from kubealign_components.errors import ConfigError
from kubealign_components.json_types import JsonObject
from kubealign_components.rl_prompts.kinds import KINDS, Question
from kubealign_components.sources.example import Example
from kubealign_components.sources.external_sort import Entry, Spool
from kubealign_components.sources.messages import Reading
from kubealign_components.sources.prompt_rows import spooled, to_row
from kubealign_components.sources.prompt_writer import sample, write_prompts
from kubealign_components.sources.request import requested
from kubealign_components.sources.source import SourceReader, Unwanted, reading_bar, report_of
from kubealign_components.sources.source_settings import WeightedSource, named_sources, require_fraction
from kubealign_components.sources.values import Malformed, is_media
from kubealign_components.sources.withdrawn_rows import WithdrawnRows

if TYPE_CHECKING:
    from typing import NoReturn

    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

    from kubealign_components.data.schemas import PromptRow

VERSION = 10
LENGTH_BONUS: Mapping[str, float] = {GENERAL: 1.0, REASONING: -0.4, RED_TEAMING: 0.0}
"""The published bonuses; the release has one for red-teaming and never applies it."""

Row = JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class RlSource(WeightedSource):
    """One source of prompts."""

    kind: str
    """What rows look like: dolly, sharegpt, openorca, math, or any (a format of import_prompts)."""
    question_type: str = ""
    """general, reasoning or red-teaming; when empty, reasoning for openorca and math, else general."""
    length_bonus: float | None = None
    """That of its question type when left out."""
    max_per_bucket: int | None = None
    """Most prompts of each part of the source, a seeded sample; 0 for all. OpenOrca has the parts niv,
    flan, t0 and cot, other kinds one; when left out, 10,000 for openorca and all for the others."""

    def __post_init__(self) -> None:
        WeightedSource.__post_init__(self)
        require_choice("sources.kind", self.kind, KINDS)
        require_choice("sources.question_type", self.question_type, ("", *TAGS))
        bonus, most = self.length_bonus, self.max_per_bucket
        require(bonus is None or math.isfinite(bonus), "sources.length_bonus", bonus, "a finite number")
        require(most is None or most >= 0, "sources.max_per_bucket", most, "a number of prompts, 0 for all")

    @property
    def limit(self) -> int:
        """Most prompts of each bucket; 0 for all."""
        return KINDS[self.kind].max_per_bucket if self.max_per_bucket is None else self.max_per_bucket


@dataclass(frozen=True, kw_only=True, slots=True)
class RlPromptsConfig:
    """Settings of ``rl_prompts``."""

    policy: str
    """Model directory, URI or hub id of the policy, whose tokenizer counts."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    sources: tuple[RlSource, ...] = ()
    """Where prompts come from, beside a dataset of prompts; of a prompt that several have, the first one
    counts, and a dataset of prompts stands before all sources."""
    length_bonus: dict[str, float] = field(default_factory=lambda: dict(LENGTH_BONUS))
    """Length bonus by question type, for sources that do not say."""
    min_tokens: int = 2
    """Shorter prompts are dropped; tokens of the text, without the chat template."""
    max_tokens: int = 256
    """Longer prompts are dropped."""
    max_rows: int = 0
    """Most prompts of all sources together, a seeded sample; 0 for all."""
    max_bad_fraction: float = gate(0.01)
    """Largest fraction of malformed rows in a source; more of them fail the stage."""
    seed: int = 0
    """Decides which prompts the limits keep."""
    withdrawn: str = execution("")
    """Path or URI of a withdrawal, of which nothing is taken: `kubealign withdraw` writes one."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", named_sources(self.sources))
        require_fraction(self.max_bad_fraction)
        for name, bonus in self.length_bonus.items():
            require_choice("length_bonus", name, TAGS)
            require(math.isfinite(bonus), f"length_bonus.{name}", bonus, "a finite number")
        require(self.min_tokens >= 1, "min_tokens", self.min_tokens, "1 or more")
        require(
            self.max_tokens >= self.min_tokens,
            "max_tokens",
            self.max_tokens,
            f"at least min_tokens ({self.min_tokens})",
        )
        require(self.max_rows >= 0, "max_rows", self.max_rows, "a number of prompts, 0 for all")

    def facts(self, source: RlSource | None) -> JsonObject:
        """Question type and length bonus of a source, or of the dataset of prompts."""
        kind = GENERAL
        if source is not None:
            kind = source.question_type or KINDS[source.kind].question_type
        bonus = self.length_bonus.get(kind, LENGTH_BONUS[kind])
        if source is not None and source.length_bonus is not None:
            bonus = source.length_bonus
        return {"question_type": kind, "length_bonus": bonus}


def run(config: RlPromptsConfig, *, prompts: Dataset | None = None, output: str) -> Stats:
    """Write the prompts of all sources to ``output`` (``kubealign.prompts/v1``), without completions.

    Args:
        config: the settings.
        prompts: ``kubealign.prompts/v1``, such as those of ``clean_prompts``; general questions.
        output: URI of the dataset to make.

    Raises:
        ConfigError: nothing to read, or a source or withdrawal that is not there or is empty.
        DataError: a damaged file, or a source with more malformed rows than ``max_bad_fraction``.
        EngineError: the policy has no usable tokenizer.
        StoreError: a source that cannot be fetched, or no room for the rows.
    """
    if prompts is None and not config.sources:
        raise ConfigError("sources", config.sources, "at least one source, or a dataset of prompts")
    policy = find_model(config.policy, config.revision, weights=False)
    readers = [SourceReader(source) for source in config.sources]
    withdrawal = read_withdrawal(config.withdrawn)
    request = requested(
        "rl_prompts",
        VERSION,
        config,
        readers,
        output=output,
        prompts=prompts.manifest.fingerprint if prompts is not None else None,
        tokenizer=policy.tokenizer_digest(),
        **withdrawal.request(),
    )
    return once(request, lambda: _make(config, readers, prompts, policy, withdrawal, request))


def _make(
    config: RlPromptsConfig,
    readers: Sequence[SourceReader],
    prompts: Dataset | None,
    policy: ModelFiles,
    withdrawal: Withdrawal,
    request: OutputRequest,
) -> Stats:
    stats, dropped, limits = Stats(), WithdrawnRows(withdrawal), [0]
    with Spool() as spool:
        admission = _Gate(config, load_tokenizer(policy.path), dropped)
        if prompts is not None:
            spool.add(_dataset_entries(config, prompts, admission, stats))
        with reading_bar(readers, "rl_prompts") as bar:
            for source, reader in zip(config.sources, readers):
                spool.add(_entries(config, source, reader, len(limits), admission, stats, bar))
                reader.check(config.max_bad_fraction)
                limits += [source.limit] * len(KINDS[source.kind].buckets)
        spool.sort()
        write_prompts(
            spool,
            sample(spool, limits, config.max_rows, config.seed, "rl_prompts"),
            request.output,
            _provenance(config, readers, prompts, policy.tokenizer_digest(), dropped),
            stats,
            over="over_limit",
            extra=lambda: report_of(readers) | request.note,
        )
    return stats


class _Gate:
    """Lets prompts of the right length through that nobody took back."""

    def __init__(
        self, config: RlPromptsConfig, tokenizer: PreTrainedTokenizerBase, dropped: WithdrawnRows
    ) -> None:
        self._config, self._tokenizer, self._dropped = config, tokenizer, dropped

    def check(self, question: Question, row: PromptRow, number: int) -> None:
        """Raise :class:`Unwanted` for a prompt that is too short or too long, or was taken back.

        Args:
            question: what is asked.
            row: of it.
            number: of its source in the spool.
        """
        texts = [str(message["content"]) for message in question.messages]
        count = sum(len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        if count < self._config.min_tokens:
            raise Unwanted("too_few_tokens")
        if count > self._config.max_tokens:
            raise Unwanted("too_many_tokens")
        self._dropped.check(number, row["prompt_id"], row["source"])


def _entries(
    config: RlPromptsConfig,
    source: RlSource,
    reader: SourceReader,
    first: int,
    admission: _Gate,
    stats: Stats,
    bar: tqdm[NoReturn],
) -> Iterator[Entry]:
    """The usable prompts of one source, under the numbers of its buckets, which begin at ``first``."""
    kind, facts = KINDS[source.kind], config.facts(source)

    def read(raw: object) -> tuple[int, PromptRow]:
        if not isinstance(raw, Mapping):
            raise Malformed("not_an_object")
        if any(is_media(str(name), value) for name, value in raw.items()):
            raise Malformed("not_text")
        reading = Reading(roles=source.role_names)
        try:
            question = kind.read(raw, reading)
        finally:
            reader.note(reading.notes)
        # A text that cannot be stored cannot be tokenised either.
        row = _row(question, facts, source.name, source.weight)
        admission.check(question, row, first)
        return first + kind.buckets.index(question.bucket), row

    for position, (bucket, row) in reader.items(read, stats, bar, row_format=source.kind):
        name, body = spooled(row)
        yield name, bucket, position, body


def _dataset_entries(
    config: RlPromptsConfig, prompts: Dataset, admission: _Gate, stats: Stats
) -> Iterator[Entry]:
    columns = ["source", "source_weight", "messages", "tools", "answers", "metadata"]
    for number, prompt in enumerate(prompts.iter_rows(columns)):
        stats.rows_in += 1
        question = Question(
            messages=json.loads(prompt["messages"]),
            tools=json.loads(prompt["tools"]) if prompt["tools"] else None,
            answers=prompt["answers"] or [],
            metadata=json.loads(prompt["metadata"]) if prompt["metadata"] else {},
        )
        row = _row(question, config.facts(None), prompt["source"], prompt["source_weight"])
        try:
            admission.check(question, row, 0)
        except Unwanted as choice:
            stats.drop(choice.reason)
            continue
        name, body = spooled(row)
        yield name, 0, number, body


def _row(question: Question, facts: Row, source: str, weight: float) -> PromptRow:
    example = Example(
        messages=question.messages,
        tools=question.tools,
        answers=question.answers,
        metadata=question.metadata | facts,
    )
    return to_row(example, source, weight)


def _provenance(
    config: RlPromptsConfig,
    readers: Sequence[SourceReader],
    prompts: Dataset | None,
    tokenizer: str,
    dropped: WithdrawnRows,
) -> Provenance:
    limited = config.max_rows or any(source.limit for source in config.sources)
    params = {
        "sources": [
            reader.settings() | config.facts(source) | {"max_per_bucket": source.limit}
            for source, reader in zip(config.sources, readers)
        ],
        "prompts": config.facts(None) if prompts is not None else None,
        "min_tokens": config.min_tokens,
        "max_tokens": config.max_tokens,
        "max_rows": config.max_rows,
        "seed": config.seed if limited else None,
        **dropped.withdrawal.params(config.withdrawn),
    }
    return derive(
        "rl_prompts",
        VERSION,
        params,
        inputs={"prompts": prompts} if prompts is not None else {},
        models={"tokenizer": {"digest": tokenizer}},
        slug=[*(source.name for source in config.sources), f"maxlen{config.max_tokens}"],
    )
