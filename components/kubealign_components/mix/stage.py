"""mix: the training dataset, from selections and the training datasets of earlier runs.

Which examples stay, where they stand and on which side of the split is decided by hashes of what
they are: never by position, so that the same examples give the same dataset however the inputs are
sharded, and data that grows changes as little as can be.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.config import execution, require, semantic_params
from kubealign_components.data.arrow_take import take
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import brings_nothing, pass_on
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.less_rows import output_less_rows, whole_work
from kubealign_components.data.prefetch import read_ahead
from kubealign_components.data.sampled import FACTS
from kubealign_components.data.schemas import SELECTION, TRAINING, TRAINING_ROW
from kubealign_components.data.seeds import Keys, id_keys, require_validation_fraction
from kubealign_components.data.segments import Bools
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import (
    WITHDRAWN,
    Withdrawal,
    may_hold,
    read_withdrawal,
)
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.json_types import JsonObject
from kubealign_components.mix.buckets import MAX_BUCKETS, Buckets
from kubealign_components.mix.examples import PAIR, from_selection, from_training, sizes, without_logprob
from kubealign_components.mix.quotas import quotas
from kubealign_components.progress import progress_bar

log = logging.getLogger(__name__)

VERSION = 2
PARQUET_DENSITY = 10
"""Most bytes in memory of a byte of Parquet; token ids have 2 to 4, repetitive texts more."""
PERHAPS_WITHDRAWN = "perhaps_withdrawn"
"""What examples are counted under whose completions may be of a source that was taken back."""
_TAKEN_ROWS = 4096
"""Examples that are put in order at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    """Settings of ``mix``."""

    weights: dict[str, float] = field(default_factory=dict)
    """Relative weight by source, 0 to leave a source out; a source that is not named has the weight it
    was imported with (1 in training datasets of earlier runs). Equal weights keep everything; a source
    with half the largest weight keeps half of its examples."""
    caps: dict[str, int] = field(default_factory=dict)
    """Most examples by source."""
    temperature: float = 1.0
    """Shares follow weight * size ** (1 / temperature): 1 for sizes as they are, higher to even sources
    out; with 100 the shares are those of the weights alone."""
    max_examples: int = 0
    """Most examples of the mix; 0 for no limit."""
    validation_fraction: float = 0.05
    """Share of prompts that are held out."""
    seed: int = 0
    """Decides what stays, the split and the order."""
    training_uris: tuple[str, ...] = execution(())
    """Training datasets of earlier runs to mix in; the recipe knows them by what they hold."""
    require_logprobs: bool = True
    """Refuse completions without a log-probability of the reference policy; off for objectives that need
    none, such as simpo."""
    withdrawn: str = execution("")
    """Path or URI of a withdrawal, of which no example is taken: `kubealign withdraw` writes one."""
    memory_bytes: int = execution(128 * 2**20)
    """Bytes of examples that are shuffled in memory; more are shuffled in parts, through temporary files."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            require(0 <= weight < math.inf, f"weights.{name}", weight, "0 (leave the source out) or more")
        for name, cap in self.caps.items():
            require(cap > 0, f"caps.{name}", cap, "a positive number of examples (weight 0 leaves it out)")
        require(0.1 <= self.temperature < math.inf, "temperature", self.temperature, "0.1 or more")
        require(self.max_examples >= 0, "max_examples", self.max_examples, "0 (no limit) or more")
        require(self.memory_bytes > 0, "memory_bytes", self.memory_bytes, "a positive number of bytes")
        require_validation_fraction(self.validation_fraction)

    def slug(self, datasets: int) -> list[str]:
        """Words of the dataset's slug: what departs from taking one selection whole."""
        weights = [f"{name}{weight:g}" for name, weight in sorted(self.weights.items())]
        caps = [f"{name}{cap}" for name, cap in sorted(self.caps.items())]
        return [
            *([f"plus{datasets - 1}"] if datasets > 1 else []),
            *(["_".join(["weights", *weights])] if weights else []),
            *(["_".join(["caps", *caps])] if caps else []),
            *([f"temp{self.temperature:g}"] if self.temperature != 1 else []),
            *([f"max{self.max_examples}"] if self.max_examples else []),
        ]


def run(
    config: MixConfig,
    *,
    selections: Sequence[Dataset],
    training: Sequence[Dataset] = (),
    output: str,
    sweep: bool = False,
) -> Stats:
    """Write the training dataset to ``output`` (``kubealign.training/v1``).

    Rows are counted in examples. One that several inputs hold is kept once, as it stands in the
    first of them. ``extra`` of the manifest holds ``pairwise``, ``num_train``, ``num_validation``
    and for each source its examples ``before`` and ``after`` and its ``weight``.

    Args:
        config: the settings.
        selections: ``kubealign.selection/v1``, usually one.
        training: ``kubealign.training/v1`` of earlier runs.
        output: URI of the dataset to make.
        sweep: whether it is of a variant of a sweep, which goes on without one of which nothing was selected:
            then ``output`` says why there are no examples.

    Raises:
        ConfigError: no input, a training dataset that was never made, or a weight or cap for a source that
            the inputs do not have.
        DataError: inputs of different policies, tokenizers or templates, pairwise and pointwise
            examples together, completions without log-probability, or a source whose weight is
            ambiguous.
    """
    require(bool(selections or training), "selections", [], "at least one selection or training dataset")
    for one in training:
        expected = f"a training dataset that was made; this one ended early: {one.ended_early}"
        require(not one.ended_early, "training_uris", one.uri, expected)
    if ended := next((one for one in selections if brings_nothing(one, sweep=sweep)), None):
        own = semantic_params(config) if sweep else {}
        return pass_on(
            "selection", ended, stage="mix", version=VERSION, schema=TRAINING, output=output, params=own
        )
    inputs = {f"selection_{i}": dataset for i, dataset in enumerate(selections)}
    inputs |= {f"training_{i}": dataset for i, dataset in enumerate(training)}
    _check_identities(list(inputs.values()))
    asked = read_withdrawal(config.withdrawn)
    withdrawal = _withdrawal_among(asked, inputs.values())
    params = semantic_params(config) | withdrawal.params(config.withdrawn)
    provenance = derive("mix", VERSION, params, inputs=inputs, slug=config.slug(len(inputs)))
    request = output_request(config, provenance, output)

    def less() -> Stats | None:
        if withdrawal:
            return whole_work(request, "the inputs hold rows that its own withdrawal takes back")
        deleted = _Deleted(config, inputs.values())
        always = ("prompts_in", "train", "validation")
        return output_less_rows(config, request, inputs, deleted.count, deleted.extra, always)

    make = partial(_make, config, inputs, withdrawal, asked.sources, provenance, output)
    return once(request, make, less)


def _withdrawal_among(withdrawal: Withdrawal, inputs: Iterable[Dataset]) -> Withdrawal:
    """The part of ``withdrawal`` that rows of the inputs are of; where there is none, nothing changes."""
    prompt_ids: set[str] = set()
    sources: set[str] = set()
    for dataset in inputs if withdrawal else ():
        beside = withdrawal.beside(dataset.manifest.recipe, dataset.manifest.fingerprint)
        columns = ["prompt_id", "source", *(FACTS if beside else [])]
        for batch in dataset.batches(columns, batch_rows=None):
            if beside:
                may = pc.unique(batch.column("source").filter(may_hold(beside, batch)))
                sources.update(*(beside[name] for name in may.to_pylist()))
            rows = batch.filter(withdrawal.mask(batch))
            prompt_ids.update(rows.column("prompt_id").to_pylist())
            sources.update(rows.column("source").to_pylist())
    return withdrawal.among(prompt_ids, sources)


def _make(
    config: MixConfig,
    inputs: Mapping[str, Dataset],
    withdrawal: Withdrawal,
    gone: Iterable[str],
    provenance: Provenance,
    output: str,
) -> Stats:
    stats = Stats()
    with (
        Buckets(_buckets(config, inputs.values()), TRAINING_ROW, memory_bytes=config.memory_bytes) as buckets,
        DatasetWriter(output, TRAINING, provenance) as writer,
    ):
        intake = _Intake(config, buckets, withdrawal, gone)
        for dataset in inputs.values():
            intake.take(dataset)
        intake.check()
        buckets.finish()
        plan = _plan(config, buckets, intake.weights(), stats)
        stats.rows_in += intake.withdrawn + intake.perhaps_withdrawn
        stats.drop(WITHDRAWN, intake.withdrawn)
        stats.drop(PERHAPS_WITHDRAWN, intake.perhaps_withdrawn)
        sides = _write(config, buckets, plan, writer)
        stats.rows_out = writer.rows
        stats.counts.update(prompts_in=intake.prompts, train=sides["train"], validation=sides["validation"])
        sources = {name: source.to_json() for name, source in sorted(plan.items())}
        extra = {"pairwise": intake.sizes == {PAIR}, "sources": sources}
        writer.commit(stats, extra | {"num_train": sides["train"], "num_validation": sides["validation"]})
    return stats


def _buckets(config: MixConfig, inputs: Iterable[Dataset]) -> int:
    """Buckets of which two, one of them read ahead, fit into ``memory_bytes``."""
    size = sum(shard.size for dataset in inputs for shard in dataset.manifest.shards)
    return min(MAX_BUCKETS, 2 * PARQUET_DENSITY * size // config.memory_bytes + 1)


class _Intake:
    """Turns the inputs into examples and notes what must hold for all of them.

    Args:
        config: the settings.
        buckets: where the examples go.
        withdrawal: of which none is taken.
        gone: names of sources that were taken back, whether the inputs have them or not.
    """

    def __init__(
        self, config: MixConfig, buckets: Buckets, withdrawal: Withdrawal, gone: Iterable[str]
    ) -> None:
        self.config, self.buckets, self.withdrawal = config, buckets, withdrawal
        self._optional_sources = set(gone)
        """Sources that the settings may name, beside those that examples are left of."""
        self.prompts = 0
        self.withdrawn = 0
        """Examples that were taken back."""
        self.perhaps_withdrawn = 0
        """Other examples whose completions may be of a source that was taken back."""
        self.sizes: set[int] = set()
        self._row_weights: dict[str, set[float]] = {}
        self._missing: Counter[str] = Counter()
        self._completions = 0

    def take(self, dataset: Dataset) -> None:
        """Add the examples of ``dataset``."""
        config = self.config
        manifest, perhaps = dataset.manifest, self.perhaps_withdrawn
        beside = self.withdrawal.beside(manifest.recipe, manifest.fingerprint)
        convert = from_selection if dataset.manifest.schema == SELECTION else from_training
        with progress_bar(dataset.rows, "rows", "mix: read") as bar:
            for batch in read_ahead(dataset.batches(batch_rows=None)):
                self.prompts += batch.num_rows
                bar.update(batch.num_rows)
                examples = convert(batch, validation_fraction=config.validation_fraction, seed=config.seed)
                if self.withdrawal:
                    batch, examples = self._without_withdrawn(batch, examples, beside)
                self._note(batch, examples, dataset.uri)
                self.buckets.add(examples, id_keys(examples.column("example_id"), config.seed, "order"))
        if self.perhaps_withdrawn > perhaps:
            log.warning(
                "%s: %d examples of %s are left out: their completions may be of %s, which was taken back "
                "and imported together with them; to have those that are not, import and select again, with "
                "the withdrawal for import_withdrawn",
                dataset.uri,
                self.perhaps_withdrawn - perhaps,
                ", ".join(sorted(beside)),
                ", ".join(sorted(frozenset[str]().union(*beside.values()))),
            )

    def _without_withdrawn(
        self, batch: pa.RecordBatch, examples: pa.RecordBatch, beside: Iterable[str]
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Rows and their examples without those that were taken back, or of sources ``beside`` them may have
        been; counts these examples."""
        columns = [name for name in ("prompt_id", "source", "source_weight") if name in batch.schema.names]
        rows = batch.select(columns)
        kept, left = (one.filter(pc.invert(self.withdrawal.mask(one))) for one in (rows, examples))
        stay = left.filter(pc.invert(may_hold(beside, left)))
        kept = kept.filter(pc.is_in(kept.column("prompt_id"), value_set=pc.unique(stay.column("prompt_id"))))
        self.withdrawn += examples.num_rows - left.num_rows
        self.perhaps_withdrawn += left.num_rows - stay.num_rows
        self._optional_sources.update(pc.unique(rows.column("source")).to_pylist())
        return kept, stay

    def check(self) -> None:
        """Raise :class:`DataError` when the examples cannot be trained on together."""
        missing = sum(self._missing.values())
        if missing and self.config.require_logprobs:
            counts = ", ".join(f"{n} in {uri}" for uri, n in self._missing.items())
            raise DataError(
                f"{missing} of {self._completions} completions have no log-probability ({counts}); run "
                "logprobs before mix, or set require_logprobs to false for an objective that needs none"
            )

    def weights(self) -> dict[str, float]:
        """The weight of every source.

        Raises:
            ConfigError: a setting for a source that the inputs do not have.
            DataError: rows of one source carry different weights and the settings name none.
        """
        config = self.config
        sources = sorted(self._row_weights)
        for setting, names in (("weights", config.weights), ("caps", config.caps)):
            for name in names:
                if name not in sources and name not in self._optional_sources:
                    raise ConfigError(
                        f"{setting}.{name}", names[name], f"a source of the data: one of {', '.join(sources)}"
                    )
        return {name: self._weight(name) for name in sources}

    def _weight(self, name: str) -> float:
        if name in self.config.weights:
            return self.config.weights[name]
        weights = sorted(self._row_weights[name])
        if len(weights) > 1:
            raise DataError(
                f"source {name!r} carries the weights {', '.join(map(str, weights))} in different rows; "
                f"name the one to use in weights.{name}"
            )
        return weights[0] if weights else 1.0

    def _note(self, batch: pa.RecordBatch, examples: pa.RecordBatch, uri: str) -> None:
        self.sizes |= sizes(examples)
        if len(self.sizes) > 1:
            raise DataError(
                f"{uri}: pairwise and pointwise examples cannot be mixed; select all inputs with pairs, or "
                "all of them with strategy all"
            )
        missing, total = without_logprob(examples)
        self._missing.update({uri: missing} if missing else {})
        self._completions += total
        columns = [name for name in ("source", "source_weight") if name in batch.schema.names]
        groups = pa.Table.from_batches([batch.select(columns)]).group_by(columns).aggregate([])
        for row in groups.to_pylist():
            weights = self._row_weights.setdefault(row["source"], set())
            if row.get("source_weight") is not None:
                weights.add(row["source_weight"])


class _Deleted:
    """Examples of rows that are deleted in the inputs, and what the mix is without them."""

    def __init__(self, config: MixConfig, inputs: Collection[Dataset]) -> None:
        self._config, self._inputs = config, inputs
        self._by_source: Counter[str] = Counter()
        self._without_weights = any(one.manifest.schema != SELECTION for one in inputs)

    def count(self, mixed: Dataset, marked: Sequence[Bools]) -> Stats:
        """What was counted for them, where all of them stayed in the mix and are ``marked`` there."""
        stats = Stats()
        for batch in mixed.marked_batches(["split", "source"], marked):
            stats.rows_in += batch.num_rows
            stats.counts.update(batch.column("split").to_pylist())
            self._by_source.update(batch.column("source").to_pylist())
        stats.counts["prompts_in"] = sum(
            int(flags.sum()) for one in self._inputs for flags in one.deletions()
        )
        stats.rows_out = stats.rows_in
        return stats

    def extra(self, mixed: Dataset, left: Stats, _: Collection[str]) -> JsonObject | None:
        """What the manifest says; None where what is left of a source depends on the size of others, where
        examples were dropped, or where nothing is left of a source."""
        sources = mixed.manifest.extra["sources"]
        weights = {name: source["weight"] for name, source in sources.items()}
        before = {name: source["before"] - self._by_source[name] for name, source in sources.items()}
        config = self._config
        if self._without_weights and any(
            w != 1 and name not in config.weights for name, w in weights.items()
        ):
            return None  # by rows that may be gone, while others of the source have none
        kept = quotas(before, weights, config.caps, config.temperature, config.max_examples)
        if left.dropped or kept != before or not all(before.values()):
            return None
        counts = {name: {"weight": weights[name], "before": n, "after": n} for name, n in before.items()}
        sides = {f"num_{side}": left.counts[side] for side in ("train", "validation")}
        return {"pairwise": mixed.manifest.extra["pairwise"], "sources": counts, **sides}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What the mix takes of one source."""

    weight: float
    before: int
    """Different examples that came in."""
    after: int
    last_key: int
    """Examples whose sampling key is at most this one stay."""

    def to_json(self) -> dict[str, object]:
        """The form that the manifest keeps."""
        return {"weight": self.weight, "before": self.before, "after": self.after}


def _plan(config: MixConfig, buckets: Buckets, weights: dict[str, float], stats: Stats) -> dict[str, _Source]:
    """Count the sources' examples and decide what stays of each; notes the drops in ``stats``."""
    keys: dict[str, list[Keys]] = {name: [] for name in weights}
    for number in range(buckets.count):
        examples = buckets.read(number, ["example_id", "source"])
        examples = take(examples, _first_of_each(examples))
        for name, key in _by_source(examples, config.seed):
            keys[name].append(key)
    cut_keys = {
        name: np.concatenate(parts) if parts else np.empty(0, np.uint64) for name, parts in keys.items()
    }
    before = {name: len(values) for name, values in cut_keys.items()}
    after = quotas(before, weights, config.caps, config.temperature, config.max_examples)
    stats.rows_in = buckets.rows
    stats.drop("duplicate", buckets.rows - sum(before.values()))
    over_cap = sum(max(0, before.get(name, 0) - cap) for name, cap in config.caps.items())
    stats.drop("over_cap", over_cap)
    stats.drop("over_share", sum(before.values()) - over_cap - sum(after.values()))
    return {
        name: _Source(
            weight=weights[name],
            before=before[name],
            after=after[name],
            last_key=int(np.partition(cut_keys[name], after[name] - 1)[after[name] - 1])
            if after[name]
            else -1,
        )
        for name in weights
    }


def _write(
    config: MixConfig, buckets: Buckets, plan: dict[str, _Source], writer: DatasetWriter
) -> Counter[str]:
    """Write what stays, shuffled; gives the examples of each split."""
    sides: Counter[str] = Counter()
    with progress_bar(buckets.rows, "examples", "mix: shuffle") as bar:
        for examples in read_ahead(buckets.read(number) for number in range(buckets.count)):
            different = _first_of_each(examples)
            ids = take(examples.column("example_id"), different)
            source = take(examples.column("source"), different).dictionary_encode()
            last = np.array([plan[name].last_key for name in source.dictionary.to_pylist()], dtype=object)
            stay = _at_most(id_keys(ids, config.seed, "sample"), last, source.indices.to_numpy())
            order = np.argsort(id_keys(ids, config.seed, "order")[stay], kind="stable")
            chosen = different[stay][order]
            # Taken a little at a time: a second copy of the bucket would be as large as the first.
            for start in range(0, len(chosen), _TAKEN_ROWS):
                rows = take(examples, chosen[start : start + _TAKEN_ROWS])
                for side in pc.value_counts(rows.column("split")).to_pylist():
                    sides[side["values"]] += side["counts"]
                writer.write(rows)
            bar.update(examples.num_rows)
    return sides


def _by_source(examples: pa.RecordBatch, seed: int) -> Iterator[tuple[str, Keys]]:
    """The sampling keys of the examples of each source."""
    source = examples.column("source").dictionary_encode()
    code = source.indices.to_numpy()
    keys = id_keys(examples.column("example_id"), seed, "sample")
    for i, name in enumerate(source.dictionary.to_pylist()):
        yield name, keys[code == i]


def _at_most(keys: Keys, last: NDArray[Any], code: NDArray[Any]) -> NDArray[np.bool_]:
    stay = np.zeros(len(keys), dtype=np.bool_)
    for i, limit in enumerate(last.tolist()):
        if limit >= 0:
            stay |= (code == i) & (keys <= np.uint64(limit))
    return stay


def _first_of_each(examples: pa.RecordBatch) -> NDArray[np.int64]:
    """Positions of the examples that do not stand there before, in order."""
    code = examples.column("example_id").dictionary_encode().indices.to_numpy()
    _, first = np.unique(code, return_index=True)
    return np.sort(first)


def _check_identities(datasets: Sequence[Dataset]) -> None:
    """Raise :class:`DataError` when token ids of two inputs belong to different things; names both."""
    first: dict[str, Dataset] = {}
    for dataset in datasets:
        for name, value in dataset.manifest.identity.items():
            other = first.setdefault(name, dataset)
            theirs = other.manifest.identity[name]
            if theirs != value:
                raise DataError(
                    f"{dataset.uri} and {other.uri} cannot be mixed: {name} {value[:12]} against "
                    f"{theirs[:12]}; log-probabilities and token ids belong to one policy, tokenizer and "
                    "template"
                )
