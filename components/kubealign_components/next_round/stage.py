"""next_round: the prompts for a further round of alignment, which samples from the policy of the one before.

Prompts and token ids stay what they are. What changes is whose they are: the dataset belongs to the policy
that the round before has trained, which reads the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from kubealign_components.config import execution, require, semantic_params
from kubealign_components.data.chat.same_tokens import require_tokens
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import end_early
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import COMPLETION, MODEL, PROMPT_ROW, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.next_round.stopping import why_stop
from kubealign_components.progress import progress_bar
from kubealign_components.reports.rounds import shown_of

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class NextRoundConfig:
    """Settings of ``next_round``."""

    number: int = 2
    """Of the round that begins; the first one needs no such stage."""
    rounds: int = execution(0)
    """How many there are at most: the round does nothing where the one before is not shown to be better than
    the one before it, by bounds that hold for all of them; 0 for a round that is there in any case."""
    seed: int = execution(0)
    """Of the bootstrap that those bounds are from."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(self.number >= 2, "number", self.number, "2 or more, the round that begins")
        fits = self.rounds == 0 or self.rounds >= self.number
        require(fits, "rounds", self.rounds, f"{self.number} or more, the round that begins, or 0")


def run(
    config: NextRoundConfig,
    *,
    prompts: Dataset,
    evaluation: Dataset,
    earlier: Dataset | None = None,
    output: str,
) -> Stats:
    """Write the prompts, without completions, as those of the policy that the round before has trained to
    ``output``, of the kind that they are; none where that round, or one before it, ended the rounds.

    Args:
        config: the settings.
        prompts: ``kubealign.tokenized/v1`` of the first policy.
        evaluation: ``kubealign.evaluation/v1`` of that policy, which says where it lies.
        earlier: that of the round before it, where there was one and rounds may end.
        output: URI of the dataset to make.

    Raises:
        ConfigError: the model has another tokenizer or template than the prompts were tokenised with.
        DataError: the evaluation does not say where a model with a manifest lay, or shares fewer than two
            prompts with the one before.
    """
    ended = partial(end_early, stage="next_round", version=VERSION, schema=TOKENIZED, output=output)
    if evaluation.ended_early:
        number = {"number": config.number}
        return ended(evaluation.ended_early, inputs={"evaluation": evaluation}, params=number)
    if config.rounds and (reason := _why_stop(config, evaluation, earlier)):
        compared = {"evaluation": evaluation, **({"earlier": earlier} if earlier is not None else {})}
        looked = {name: getattr(config, name) for name in ("number", "rounds", "seed")}
        return ended(reason, inputs=compared, params=looked)
    model = trained_policy(evaluation)
    policy = find_model(model.copy, weights=False)
    trained = require_tokens(policy, prompts, "model")
    kept = {name: prompts.manifest.identity[name] for name in ("tokenizer", "template")}
    provenance = derive(
        "next_round",
        VERSION,
        semantic_params(config),
        inputs={"prompts": prompts, "model": model},
        models={"policy": trained},
        identity=kept | {"policy": trained["digest"]},
        settled=("policy", "reference"),
        slug=[f"round{config.number}"],
    )

    def make() -> Stats:
        stats = Stats(rows_in=prompts.rows)
        with (
            DatasetWriter(output, TOKENIZED, provenance) as writer,
            progress_bar(prompts.rows, "prompts", "next_round") as bar,
        ):
            for batch in prompts.batches(batch_rows=None):
                writer.write(_unanswered(batch))
                bar.update(batch.num_rows)
            stats.rows_out = writer.rows
            writer.commit(stats)
        return stats

    return once(output_request(config, provenance, output), make)


def _why_stop(config: NextRoundConfig, evaluation: Dataset, earlier: Dataset | None) -> str:
    number = config.number - 1
    return why_stop(evaluation, earlier, number=number, rounds=config.rounds, seed=config.seed)


def trained_policy(evaluation: Dataset) -> Dataset:
    """The model that ``evaluation`` is of; nothing but its manifest is read.

    Raises:
        DataError: the evaluation does not say where a model with a manifest lay.
    """
    for parent in evaluation.manifest.parents:
        if parent["schema"] == MODEL:
            return Dataset.open(parent["uri"], MODEL, allow_empty=True)
    raise DataError(f"{evaluation.uri} is the evaluation of a model that KubeAlign has not trained")


def shown_by(evaluation: Dataset) -> dict[str, float]:
    """What the report of a later round tells of ``evaluation``."""
    numbers: Mapping[str, float] = evaluation.manifest.stats["numbers"]
    return shown_of(numbers)


def _unanswered(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The prompts of ``batch`` without completions: those of a source are with the first round's."""
    none = pa.ListArray.from_arrays(
        pa.array([0] * (batch.num_rows + 1), pa.int32()), pa.array([], COMPLETION)
    )
    empty = {"completions": none, "dropped_completions": pa.nulls(batch.num_rows, pa.int32())}
    columns = [empty.get(name, batch.column(name)) for name in PROMPT_ROW.names]
    return pa.RecordBatch.from_arrays(columns, schema=PROMPT_ROW)
