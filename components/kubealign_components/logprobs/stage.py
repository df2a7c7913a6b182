"""logprobs: the reference log-probability of every completion, once, so that training needs no reference.

Completions that the reference policy sampled carry its own log-probability already; ``source: sampler``
takes it and scores only the others, measuring on some rows how far sampler and scorer are apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

import pyarrow as pa

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.chat.same_tokens import require_tokens
from kubealign_components.data.chunks import Chunk, Part, open_chunk
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.models import ModelFiles, find_model, require_policy, with_weights
from kubealign_components.data.sampled import round_of_model
from kubealign_components.data.schemas import COMPLETIONS, REWARDED, SELECTION, Completion, TokenizedRow
from kubealign_components.data.seeds import seed_for
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing, pass_chunk_on, run_chunk
from kubealign_components.engines.dtypes import DTYPES, resolved_dtype
from kubealign_components.errors import DriftError, EngineError
from kubealign_components.training.config import SHARDED
from kubealign_components.training.regime import Regime, regime, weights_dtype

if TYPE_CHECKING:
    from kubealign_components.engines.scoring import Scorer

VERSION = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class LogprobsConfig:
    """Settings of ``logprobs``."""

    BORROWS: ClassVar[Mapping[str, tuple[str, ...]]] = {"train_options": ("dtype", "adapter", "strategy")}
    """It scores in the numbers that the training to come will compute in."""

    policy: str
    """Model directory, URI or hub id of the policy that the prompts were tokenised for."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    reference: str = ""
    """Model whose log-probabilities are wanted, where it is not the policy: rounds of alignment start at the
    last round's policy and stay near the first one. It must share tokenizer and template."""
    reference_revision: str | None = None
    """Branch, tag or commit of the reference, where that is a hub id."""
    source: str = "scorer"
    """scorer (every completion is scored as the trainer will), or sampler (completions of the reference
    policy keep the log-probability that their sampler gave them)."""
    dtype: str = "auto"
    """Of the scorer's products: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32); as in
    ``train``, whose policy is then equal to the reference to the last bit."""
    adapter: str = "none"
    """What will be trained, which says how weights are held: none (float32), lora (in ``dtype``) or qlora
    (in 4 bits, which need CUDA)."""
    strategy: str = "none"
    """How the training to come is sharded: none, fsdp2, zero1, zero2 or zero3. Full training that is holds
    the weights of its forward pass in ``dtype``."""
    max_drift: float = 0.05
    """With ``source: sampler``, the largest accepted mean difference of sampler and scorer on a measured
    prompt, in nats per token. vLLM and transformers differ by under 0.001 in fp32 and about 0.01 in
    bf16; beyond 0.05 template, weights or precision are not the same."""
    drift_share: float = 0.05
    """Share of rows, at least one a slice, on which the difference is measured."""
    token_budget: int = execution(4096)
    """Tokens in one forward pass."""
    slice_rows: int = execution(256)
    """Prompts committed together; at most this many are lost with the pod."""
    processes: int = execution(0)
    """Engine processes of a pod, each with its own GPUs and share of the rows; 0 for as many as there are
    GPUs for."""

    def __post_init__(self) -> None:
        require_choice("source", self.source, ("sampler", "scorer"))
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("adapter", self.adapter, ("none", "lora", "qlora"))
        require_choice("strategy", self.strategy, ("none", *SHARDED))
        require(
            self.source == "scorer" or not self.reference,
            "source",
            self.source,
            "scorer with a reference of its own: the sampler gave the policy's log-probabilities",
        )
        require(self.max_drift > 0, "max_drift", self.max_drift, "a positive number of nats per token")
        require(0 < self.drift_share <= 1, "drift_share", self.drift_share, "a share above 0, at most 1")
        require(self.token_budget > 0, "token_budget", self.token_budget, "a positive number of tokens")
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number of prompts")
        require(self.processes >= 0, "processes", self.processes, "0 or more")


def run(config: LogprobsConfig, *, chunk: Chunk) -> Part:
    """Fill in ``logprob`` of every completion of ``chunk`` and publish its part, of the same kind.

    Raises:
        ConfigError: the policy is not the one that the completions were tokenised for.
        EngineError: a log-probability that is positive or not finite.
        DriftError: sampler and scorer disagree by more than ``max_drift``.
    """
    dataset = open_chunk(chunk, COMPLETIONS, REWARDED, SELECTION)
    kind = dataset.manifest.schema
    if dataset.ended_early:
        return pass_chunk_on(chunk, dataset, stage="logprobs", version=VERSION, schema=kind)
    from kubealign_components.engines.dtypes import device_type

    policy = find_model(config.policy, config.revision, weights=False)
    models = {"policy": require_policy(policy, dataset)}
    model = policy
    if config.reference:
        model = find_model(config.reference, config.reference_revision, weights=False)
        models["reference"] = require_tokens(model, dataset, "reference")
    own = regime(config.adapter, resolved_dtype(config.dtype), device_type(), config.strategy)
    provenance = derive(
        "logprobs",
        VERSION,
        _params(config, own) | {"regime": own},
        inputs={"completions": dataset},
        models=models,
        identity={"reference": (models.get("reference") or models["policy"])["digest"]},
        slug=["logprobs" if config.source == "scorer" else "samplerlogprobs"],
    )
    stage = LogprobStage(config, model, own)
    try:
        return run_chunk(
            chunk,
            dataset,
            stage,
            schema=kind,
            provenance=provenance,
            slice_rows=config.slice_rows,
            engines=engines(
                run,
                config,
                chunk,
                processes=config.processes,
                fetch=lambda: with_weights(model),
                weights=_held(config) * model.weight_bytes(),
            ),
        )
    finally:
        stage.close()


def _held(config: LogprobsConfig) -> int:
    """Bytes in memory of a byte of weights as they are mostly saved, in 16 bits."""
    whole = config.adapter == "none" and config.strategy == "none"
    return 2 if whole or config.dtype == "float32" else 1


def _params(config: LogprobsConfig, own: Regime) -> dict[str, object]:
    """The settings that rows depend on, but for models and precision, which stand in the recipe resolved."""
    elsewhere = {"policy", "revision", "reference", "reference_revision", "dtype", "adapter"}
    if own["weights"] == weights_dtype(config.adapter, own["compute"]):
        elsewhere.add("strategy")  # as without sharding
    if config.source == "scorer":
        elsewhere |= {"max_drift", "drift_share"}
    return {name: value for name, value in semantic_params(config).items() if name not in elsewhere}


class LogprobResult(TypedDict):
    """What is measured of a completion, in nats."""

    logprob: float
    drift: float | None
    """What sampler and scorer differ by a token, where it is measured."""


class LogprobStage:
    """Scores rows under the chunk protocol; the model is loaded when the first row needs it."""

    result_schema = pa.schema([("logprob", pa.float64()), ("drift", pa.float64())])
    unread: ClassVar[Sequence[str]] = ()

    def __init__(self, config: LogprobsConfig, model: ModelFiles, regime: Regime) -> None:
        self._config = config
        self._model = model
        self._regime = regime
        self._scorer: Scorer | None = None
        self._drift: list[float] = []

    def close(self) -> None:
        """Free the scorer if one was loaded."""
        if self._scorer is not None:
            self._scorer.close()

    def keys(self, row: TokenizedRow) -> list[str]:
        """For each completion a hash of what is read: tokens of the prompt and its own, and what the sampler
        said. Not its id, which may be a text's."""
        prompt = digest(row["prompt_token_ids"])
        return [
            digest([prompt, c["token_ids"], repr(c["sampler_logprob"]) if self._is_taken(c) else ""])
            for c in row["completions"]
        ]

    def compute(
        self, slices: Iterator[list[Missing[TokenizedRow]]]
    ) -> Iterator[tuple[Missing[TokenizedRow], list[LogprobResult]]]:
        """The log-probabilities that are missing."""
        for missing in slices:
            rows: list[TokenizedRow] = [
                {**one.row, "completions": [one.row["completions"][i] for i in one.positions]}
                for one in missing
            ]
            yield from zip(missing, self._results(rows), strict=True)

    def _is_taken(self, completion: Completion) -> bool:
        """Whether the sampler's log-probability stands: not that of another policy, which in a further round
        may have been the first to be asked a prompt."""
        own = completion["reference"] and round_of_model(completion["model"]) == 1
        return self._config.source == "sampler" and own

    def _results(self, rows: Sequence[TokenizedRow]) -> list[list[LogprobResult]]:
        measured = self._drift_rows(rows) if self._config.source == "sampler" else set()
        scored = self._score(rows, [self._to_score(row, row["prompt_id"] in measured) for row in rows])
        return [self._of_row(row, sums, row["prompt_id"] in measured) for row, sums in zip(rows, scored)]

    def apply(self, row: TokenizedRow, results: Sequence[LogprobResult]) -> TokenizedRow:
        """The row with its log-probabilities."""
        drifts = [result["drift"] for result in results if result["drift"] is not None]
        if drifts:
            self._drift.append(sum(drifts) / len(drifts))
        values = zip(row["completions"], (result["logprob"] for result in results), strict=True)
        return {**row, "completions": [{**c, "logprob": value} for c, value in values]}

    def summarise(self, rows: Sequence[TokenizedRow], stats: Stats) -> None:
        """Count completions and tokens; add up the log-probability per token and the drift."""
        completions = [c for row in rows for c in row["completions"]]
        stats.counts["completions"] += len(completions)
        stats.counts["completion_tokens"] += sum(c["num_tokens"] for c in completions)
        stats.observe(
            "logprob_per_token",
            [c["logprob"] / c["num_tokens"] for c in completions if c["logprob"] is not None],
        )
        stats.observe("drift_per_token", self._drift)
        self._drift = []

    def counted_columns(self, stats: Stats) -> Sequence[str]:
        """What log-probabilities are counted by; none where drift was measured."""
        return () if "drift_per_token" in stats.sums else completion_columns("num_tokens", "logprob")

    def _to_score(self, row: TokenizedRow, measure: bool) -> dict[str, list[int]]:
        """Token ids by completion id of what the scorer has to look at, identical ones once."""
        return {
            c["completion_id"]: c["token_ids"] for c in row["completions"] if measure or not self._is_taken(c)
        }

    def _score(
        self, rows: Sequence[TokenizedRow], tokens: Sequence[dict[str, list[int]]]
    ) -> list[dict[str, float]]:
        """Log-probabilities of ``tokens``, for each row its completions by id."""
        from kubealign_components.engines.packing import Group
        from kubealign_components.engines.scoring import Scorer

        present = [number for number, completions in enumerate(tokens) if completions]
        sums: list[dict[str, float]] = [{} for _ in rows]
        if not present:
            return sums
        if self._scorer is None:
            self._scorer = Scorer(
                with_weights(self._model).path,
                dtype=self._regime["compute"],
                weights=self._regime["weights"],
                token_budget=self._config.token_budget,
            )
        groups = [
            Group(rows[n]["prompt_token_ids"], list(tokens[n].values()), rows[n]["prompt_id"])
            for n in present
        ]
        for number, values in zip(present, self._scorer.score(groups)):
            sums[number] = dict(zip(tokens[number], values))
        return sums

    def _of_row(self, row: TokenizedRow, sums: dict[str, float], measured: bool) -> list[LogprobResult]:
        values = [self._logprob(row, c, sums) for c in row["completions"]]
        drifts = self._measure(row, sums) if measured else [None] * len(values)
        return [{"logprob": value, "drift": drift} for value, drift in zip(values, drifts, strict=True)]

    def _logprob(self, row: TokenizedRow, completion: Completion, sums: dict[str, float]) -> float:
        if not self._is_taken(completion):
            return sums[completion["completion_id"]]
        value = completion["sampler_logprob"]
        if value is None or not math.isfinite(value) or value > 0:
            raise EngineError(
                f"prompt {row['prompt_id']}: the sampler gave completion {completion['completion_id']} "
                f"log-probability {value!r}; expected a finite number of at most 0, use source: scorer"
            )
        return float(value)

    def _drift_rows(self, rows: Sequence[TokenizedRow]) -> set[str]:
        """Ids of the rows to measure: those whose hash is lowest, so that cutting does not choose them."""
        seeds = {row["prompt_id"]: seed_for(0, "drift", row["prompt_id"]) for row in rows}
        below = {name for name, seed in seeds.items() if seed < self._config.drift_share * 2**62}
        return below or {min(seeds, key=seeds.__getitem__)}

    def _measure(self, row: TokenizedRow, sums: dict[str, float]) -> list[float | None]:
        """|sampler − scorer| of each reference completion of the row, nats per token; None of the others."""
        drifts = [
            abs(self._logprob(row, c, sums) - sums[c["completion_id"]]) / c["num_tokens"]
            if self._is_taken(c)
            else None
            for c in row["completions"]
        ]
        sampled = [c for c in row["completions"] if self._is_taken(c)]
        apart = [drift for drift in drifts if drift is not None]
        drift = sum(apart) / len(apart) if apart else 0.0
        if drift > self._config.max_drift:
            worst = sampled[max(range(len(apart)), key=apart.__getitem__)]
            raise DriftError(
                f"prompt {row['prompt_id']}: sampler and scorer differ by {drift:.4f} nats per token, more "
                f"than max_drift={self._config.max_drift}; completion {worst['completion_id']} has "
                f"{worst['sampler_logprob']:.3f} from the sampler and {sums[worst['completion_id']]:.3f} "
                "from the scorer. Compare their dtype and weights, or use source: scorer"
            )
        return drifts
