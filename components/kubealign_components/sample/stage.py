"""sample: completions of the reference policy, with their tokens and raw log-probabilities.

They are what reference rewards are made of, so what is left out matters: completions that were cut at
``max_new_tokens`` are kept, or dropped and counted per prompt, by choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar, TypedDict

import pyarrow as pa

from kubealign_components.config import SettingGroup, execution, require, require_choice
from kubealign_components.data.asked import AskedPrompts, round_of
from kubealign_components.data.chat import ChatTemplate, TemplateSettings, stored_settings
from kubealign_components.data.chat.ends import embedding_rows
from kubealign_components.data.chat.tokenizer import check_column
from kubealign_components.data.chunks import Chunk, Part, open_chunk
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive, digest
from kubealign_components.data.models import ModelFiles, find_model, require_policy, with_weights
from kubealign_components.data.schemas import (
    COMPLETIONS,
    TOKEN_IDS,
    TOKENIZED,
    Completion,
    TokenizedRow,
    completion_id,
    new_completion,
)
from kubealign_components.data.seeds import seed_for
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing, pass_chunk_on, run_chunk
from kubealign_components.engines.generation import (
    SAMPLING,
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    check_room,
    context_limit,
    end_token_ids,
    open_engine,
    recorded,
    versions_of,
)

VERSION = 2
_SHARED = ("share", "validation_fraction", "split_seed")
"""Settings that say which prompts are sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Settings of ``sample``."""

    GROUPS: ClassVar[Mapping[str, SettingGroup]] = {
        "sampling": SettingGroup(arguments={name: name for name in SAMPLING}, options=("options.sampling",))
    }

    policy: str
    """Model directory, URI or hub id of the reference policy, the one that ``filter`` tokenised for."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    """How completions are sampled, and by which engine."""
    truncated: str = "keep"
    """``keep`` completions that were cut at ``max_new_tokens``, or ``drop`` them. Dropping biases the
    reference rewards towards short completions; the number dropped is kept with each prompt."""
    share: float = 1.0
    """Share of the prompts that are sampled, by hash; of several rounds each takes others before one is taken
    again. Those that are held out are sampled in any case: all rounds are compared by them."""
    validation_fraction: float = 0.05
    """Share of the prompts that is held out, as mix has it; with a share alone."""
    split_seed: int = 0
    """Seed of the split, as mix has it; with a share alone."""
    slice_rows: int = execution(256)
    """Prompts committed together; at most this many are lost with the pod."""
    processes: int = execution(0)
    """Engine processes of a pod, each with its own GPUs and share of the rows; 0 for as many as there are
    GPUs for."""

    def __post_init__(self) -> None:
        require_choice("truncated", self.truncated, ("keep", "drop"))
        require(0 < self.share <= 1, "share", self.share, "a share above 0, at most 1")
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number of prompts")
        require(self.processes >= 0, "processes", self.processes, "0 or more")


def run(config: SampleConfig, *, chunk: Chunk) -> Part:
    """Sample ``n`` completions for each prompt of ``chunk`` (``kubealign.tokenized/v1``) and publish
    its part of a ``kubealign.completions/v1`` dataset. Each round of alignment has seeds of its own.

    Raises:
        ConfigError: the policy is not the model that the prompts were tokenised for.
        DataError: a prompt leaves no room for ``max_new_tokens``; raised before anything is sampled.
        EngineError: the engine cannot be started, or fails.
    """
    dataset = open_chunk(chunk, TOKENIZED)
    if dataset.ended_early:
        return pass_chunk_on(chunk, dataset, stage="sample", version=VERSION, schema=COMPLETIONS)
    model = find_model(config.policy, config.revision, weights=False)
    settings = stored_settings(dataset)
    provenance = _provenance(config, dataset, model, settings)
    limit = context_limit(config.sampling, model.path)
    rows = embedding_rows(model.path)
    columns = ["prompt_id", "prompt_tokens", "prompt_token_ids"]
    for batch in dataset.batches(columns, spans=chunk.spans):
        check_column(batch["prompt_token_ids"], rows, model.name)
        for row in batch.select(columns[:2]).to_pylist():
            check_room(row["prompt_id"], row["prompt_tokens"], config.sampling.max_new_tokens, limit)
    number = round_of(dataset)
    seeded = replace(config, sampling=_of_round(config.sampling, number))
    with closing(SampleStage(seeded, model, settings, number=number)) as stage:
        return run_chunk(
            chunk,
            dataset,
            stage,
            schema=COMPLETIONS,
            provenance=provenance,
            slice_rows=config.slice_rows,
            engines=engines(
                run,
                config,
                chunk,
                processes=config.processes,
                fetch=lambda: with_weights(model),
                each=config.sampling.gpus,
            ),
        )


class SampleResult(TypedDict):
    """One completion, as the engine gave it."""

    token_ids: list[int]
    text: str
    """Its tokens as text."""
    finish_reason: str
    logprob: float
    """Nats, sum over ``token_ids``, raw."""


class SampleStage:
    """Samples rows under the chunk protocol; the engine starts with the first row that needs one."""

    result_schema = pa.schema(
        [
            ("token_ids", TOKEN_IDS),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("logprob", pa.float64()),  # nats, sum over token_ids, raw
        ]
    )
    unread: ClassVar[Sequence[str]] = ("sampling.n", "truncated", *_SHARED)

    def __init__(
        self,
        config: SampleConfig,
        model: ModelFiles,
        settings: TemplateSettings | None = None,
        *,
        number: int = 1,
    ) -> None:
        self._config = config
        self._asked = AskedPrompts(
            share=config.share,
            number=number,
            validation_fraction=config.validation_fraction,
            split_seed=config.split_seed,
        )
        self._model = model
        self._settings = settings
        self._started: tuple[GenerationEngine, ChatTemplate] | None = None

    def keys(self, row: TokenizedRow) -> list[str]:
        """For each of ``n`` completions a hash of the prompt's id, which seeds it, and its tokens, with the
        completion's number; none where the round does not ask the prompt."""
        if row["prompt_id"] not in self._asked:
            return []
        prompt = digest([row["prompt_id"], row["prompt_token_ids"]])
        return [f"{prompt}-{number}" for number in range(self._config.sampling.n)]

    def compute(
        self, slices: Iterator[list[Missing[TokenizedRow]]]
    ) -> Iterator[tuple[Missing[TokenizedRow], list[SampleResult]]]:
        """The completions that each row misses: tokens, text as it was written, how it ended."""
        first = next(slices, None)
        if first is None:
            return
        engine, template = self._start()
        waiting: dict[str, Missing[TokenizedRow]] = {}

        def prompts() -> Iterator[Prompt]:
            for one in chain(first, chain.from_iterable(slices)):
                waiting[one.row["prompt_id"]] = one
                yield Prompt(one.row["prompt_id"], one.row["prompt_token_ids"], one.positions)

        for prompt_id, sampled in engine.generate(prompts()):
            yield waiting.pop(prompt_id), [_result(s, template) for s in sampled]

    def apply(self, row: TokenizedRow, results: Sequence[SampleResult]) -> TokenizedRow:
        """The row with its offline completions, then the sampled ones that are kept."""
        drop = self._config.truncated == "drop"
        kept = [s for s in results if not (drop and s["finish_reason"] == "length")]
        return {
            **row,
            "completions": [*row["completions"], *(self._completion(row, s) for s in kept)],
            "dropped_completions": len(results) - len(kept),
        }

    def summarise(self, rows: Sequence[TokenizedRow], stats: Stats) -> None:
        """Count completions and tokens, what was cut, and prompts that are left without a sample."""
        asked = [row for row in rows if row["prompt_id"] in self._asked]
        sampled = [c for row in rows for c in row["completions"] if c["reference"]]
        stats.counts["sampled_completions"] += len(sampled)
        stats.counts["sampled_tokens"] += sum(c["num_tokens"] for c in sampled)
        stats.counts["truncated_kept"] += sum(c["finish_reason"] == "length" for c in sampled)
        stats.counts["truncated_dropped"] += sum(row["dropped_completions"] or 0 for row in rows)
        stats.counts["prompts_without_samples"] += sum(
            not any(c["reference"] for c in row["completions"]) for row in asked
        )
        if self._config.share < 1:
            stats.counts["prompts_not_asked"] += len(rows) - len(asked)
        stats.observe("completion_tokens", [c["num_tokens"] for c in sampled])

    def counted_columns(self, _: Stats) -> Sequence[str]:
        """What samples are counted by."""
        columns = completion_columns("reference", "num_tokens", "finish_reason")
        return ("prompt_id", "dropped_completions", *columns)

    def close(self) -> None:
        """Stop the engine, if one was started."""
        if self._started is not None:
            self._started[0].close()

    def _start(self) -> tuple[GenerationEngine, ChatTemplate]:
        if self._started is None:
            template = ChatTemplate(self._model, self._settings)
            engine = open_engine(self._config.sampling, with_weights(self._model).path, template.end_ids)
            self._started = (engine, template)
        return self._started

    def _completion(self, row: TokenizedRow, sampled: SampleResult) -> Completion:
        return new_completion(
            completion_id=completion_id(row["prompt_id"], sampled["token_ids"]),
            reference=True,
            model=self._model.name,
            messages=canonical_json([{"role": "assistant", "content": sampled["text"]}]),
            token_ids=sampled["token_ids"],
            num_tokens=len(sampled["token_ids"]),
            finish_reason=sampled["finish_reason"],
            sampler_logprob=sampled["logprob"],
        )


def _of_round(spec: SamplingSpec, number: int) -> SamplingSpec:
    """``spec`` with the seed of a round. With one seed in all of them, a policy that has moved little would
    give many of the same completions again, of which a further round learns nothing."""
    return spec if number == 1 else replace(spec, seed=seed_for(spec.seed, "round", number))


def _result(sampled: Sampled, template: ChatTemplate) -> SampleResult:
    return {
        "token_ids": sampled.token_ids,
        "text": template.decode(sampled.token_ids),
        "finish_reason": sampled.finish_reason,
        "logprob": sampled.logprob,
    }


def _provenance(
    config: SampleConfig, dataset: Dataset, model: ModelFiles, settings: TemplateSettings
) -> Provenance:
    policy = require_policy(model, dataset)
    params: dict[str, object] = {
        "sampling": recorded(config.sampling),
        "engine_versions": versions_of(config.sampling.engine),
        "truncated": config.truncated,
        **{name: getattr(config, name) for name in _SHARED if config.share < 1},
    }
    if (number := round_of(dataset)) > 1:  # of its completions no other round's are taken
        params["round"] = number
    return derive(
        "sample",
        VERSION,
        params,
        inputs={"prompts": dataset},
        models={
            # Which tokens end a turn is no part of the weights, yet decides where completions end.
            "policy": policy
            | {"tokenizer": model.tokenizer_digest(), "end_tokens": end_token_ids(model.path, settings)}
        },
        identity={"tokenizer": model.tokenizer_digest()},
        slug=config.sampling.slug,
    )
