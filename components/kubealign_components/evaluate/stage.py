"""evaluate: held-out prompts, the same sampling and rewards for the reference and the aligned policy.

The reference side is what `sample` and `rewards` already made, and only the aligned policy is sampled. Of
prompts that have no samples yet, such as those of PPO, both sides are sampled and rewarded here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kubealign_components.config import SettingGroup, execution, require, semantic_params
from kubealign_components.data.chat import ChatTemplate, stored_settings
from kubealign_components.data.chunks import Row
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.models import ModelFiles, find_model, require_policy
from kubealign_components.data.schemas import (
    EVALUATION,
    MODEL,
    Completion,
    completion_id,
    new_completion,
)
from kubealign_components.data.stats import Stats
from kubealign_components.engines.dtypes import resolved_dtype
from kubealign_components.engines.generation import (
    SAMPLING,
    Prompt,
    Sampled,
    SamplingSpec,
    open_engine,
    recorded,
)
from kubealign_components.engines.judge import JudgeSpec, PairJudge
from kubealign_components.engines.rewards import REWARD, Rewarder, RewardSpec, reward_inputs, reward_params
from kubealign_components.errors import DataError, GateError, NotFound
from kubealign_components.evaluate.comparable import (
    check_rewards,
    check_sampling,
    check_split,
    check_tokens,
    last_step,
)
from kubealign_components.evaluate.comparison import warnings
from kubealign_components.evaluate.held_out import held_out
from kubealign_components.evaluate.judged import WinRates, judged
from kubealign_components.evaluate.measures import ALIGNED, REFERENCE, measure
from kubealign_components.evaluate.report import report_html
from kubealign_components.progress import progress_bar
from kubealign_components.reports.html import REPORT, copy_report, write_report
from kubealign_components.store import join

log = logging.getLogger(__name__)

VERSION = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Settings of ``evaluate``."""

    GROUPS: ClassVar[Mapping[str, SettingGroup]] = {
        "sampling": SettingGroup(
            arguments={name: name for name in SAMPLING},
            options=("sample_options.sampling", "options.sampling"),
            of="sample",
        ),
        "reward": SettingGroup(
            arguments=REWARD,
            options=("rewards_options.reward", "options.reward"),
            keys=tuple(REWARD.values()),
            of="rewards",
        ),
        "judge": SettingGroup(
            arguments={"judge": "judge"}, options=("judge_options", "options.judge"), keys=("judge",)
        ),
    }

    policy: str
    """Model directory, URI or hub id of the reference policy."""
    sampling: SamplingSpec
    """As `sample` had it."""
    reward: RewardSpec | None = None
    """As `rewards` had it; null for none: then lengths, KL, the judge and people's labels are compared."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    validation_fraction: float = 0.05
    """As `mix` had it: the share of prompts that was held out, by hash of the prompt."""
    split_seed: int = 0
    """As `mix` had it."""
    max_prompts: int = 256
    """Most held-out prompts; the same first ones, by hash, whatever the dataset grows to."""
    kl_prompts: int = 64
    """Prompts on which KL(aligned || reference) is estimated, at one forward pass of the reference for each
    completion; 0 for none. The fake engine, whose log-probabilities mean nothing, estimates none."""
    judge: JudgeSpec | None = None
    """A policy that compares aligned with reference completions by principles, in both orders; null for
    none."""
    judged_completions: int = 1
    """Pairs of completions of a prompt that it compares: the first aligned with the first reference one, …"""
    min_gain: float | None = execution(None)
    """Fail the run when the lower bound of the gain's 95 % interval is below; null to only report."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(
            0 < self.validation_fraction < 1,
            "validation_fraction",
            self.validation_fraction,
            "a share above 0 and below 1",
        )
        require(self.max_prompts > 1, "max_prompts", self.max_prompts, "2 or more")
        require(self.kl_prompts >= 0, "kl_prompts", self.kl_prompts, "0 or more")
        require(
            self.min_gain is None or self.reward is not None,
            "min_gain",
            self.min_gain,
            "null without a reward: what is gained is a reward",
        )
        require(self.judged_completions > 0, "judged_completions", self.judged_completions, "1 or more")


def run(
    config: EvaluateConfig,
    *,
    rewarded: Dataset,
    model: str,
    output: str,
    report: str | None = None,
    model_uri: str = "",
) -> Stats:
    """Compare the policy at ``model`` with its reference; write ``kubealign.evaluation/v1`` to ``output``.

    Args:
        config: the settings.
        rewarded: ``kubealign.rewarded/v1`` with the reference policy's completions, without a reward also
            ``kubealign.completions/v1``; or prompts that the reference policy answers here, such as
            ``kubealign.tokenized/v1``. Where they have labelled pairs, what people preferred is compared too.
        model: directory or URI of the aligned model.
        output: URI of the dataset to make; the report lies beside its rows.
        report: path of a second copy of the report, for the Kubeflow UI.
        model_uri: what the manifest says of the model's place, where ``model`` is a copy of it.

    Raises:
        ConfigError: sampling, rewards, policy or split are not those of the dataset and the model.
        DataError: fewer than two held-out prompts can be compared.
        GateError: the gain is below ``min_gain``; output and report are written before.
    """
    rewarder = Rewarder(config.reward) if config.reward else None
    judge = PairJudge(config.judge, rewarded) if config.judge else None
    policy = find_model(config.policy, config.revision)
    aligned = find_model(model)
    require_policy(policy, rewarded)
    provenance = _provenance(config, rewarded, (model, model_uri or model), aligned, rewarder, judge)
    tokens = [aligned.tokenizer_digest(), _ends(aligned, rewarded)] if config.work else []
    request = output_request(config, provenance, output, REPORT, checked=tokens)
    try:
        stats = once(
            request, lambda: _make(config, rewarded, policy, aligned, rewarder, judge, provenance, output)
        )
    finally:
        if rewarder is not None:
            rewarder.close()
    copy_report(output, report)
    _check_gate(config, stats.numbers, output)
    return stats


def _ends(model: ModelFiles, dataset: Dataset) -> list[int]:
    """The tokens that end the model's turns."""
    return list(ChatTemplate(model, stored_settings(dataset)).end_ids)


def _make(
    config: EvaluateConfig,
    rewarded: Dataset,
    policy: ModelFiles,
    aligned: ModelFiles,
    rewarder: Rewarder | None,
    judge: PairJudge | None,
    provenance: Provenance,
    output: str,
) -> Stats:
    stats = Stats(rows_in=rewarded.rows)
    prompts = held_out(
        rewarded,
        fraction=config.validation_fraction,
        seed=config.split_seed,
        most=config.max_prompts,
        stats=stats,
    )
    _require_enough(len(prompts), rewarded.uri, stats)
    settings = stored_settings(rewarded)
    template = ChatTemplate(policy, settings)
    ends, drop = list(template.end_ids), False
    answered = last_step(rewarded, "sample") is not None
    if answered:
        if rewarder is not None:
            check_rewards(rewarder, rewarded)
        sampled = check_sampling(config.sampling, rewarded)
        ends, drop = sampled.models["policy"]["end_tokens"], sampled.params["truncated"] == "drop"
    check_tokens(aligned, ends, prompts[0], settings)
    if answered:
        prompts = _with_references(prompts, rewarded.uri, stats)
    else:
        prompts = _answered(config, prompts, REFERENCE, template, rewarder, stats)
    template = ChatTemplate(aligned, settings)
    rows = _answered(config, prompts, ALIGNED, template, rewarder, stats, drop_truncated=drop)
    stats.counts["reference_completions"] += sum(len(row[REFERENCE]) for row in prompts)
    if rewarder is not None:
        rewarder.close()
    numbers = measure(
        rows,
        policy,
        aligned,
        kl_prompts=0 if config.sampling.engine == "fake" else config.kl_prompts,
        dtype=resolved_dtype(config.sampling.dtype),
        seed=config.split_seed,
    )
    verdict = _verdict(config, judge, rows, stats)
    numbers |= verdict.numbers() if verdict else {}
    stats.numbers.update(numbers)
    _write(rows, provenance, stats, output)
    texts = warnings(numbers, dropped_truncated=drop)
    for text in texts:
        log.warning(text)
    page = report_html(
        model=aligned.name,
        reference=policy.name,
        numbers=numbers,
        verdict=verdict,
        warnings=texts,
        rows=rows,
    )
    write_report(page, output)
    return stats


def _provenance(
    config: EvaluateConfig,
    rewarded: Dataset,
    model_paths: tuple[str, str],
    aligned: ModelFiles,
    rewarder: Rewarder | None,
    judge: PairJudge | None,
) -> Provenance:
    """Where the evaluation comes from: the model's own story too, when KubeAlign trained it."""
    inputs = {"rewarded": rewarded}
    model, uri = model_paths
    try:
        trained = Dataset.open(model, MODEL, allow_empty=True)
    except NotFound:
        log.warning("%s has no manifest: its training data is not known", model)
    else:
        trained = Dataset(uri, trained.manifest)
        check_split(trained, config.validation_fraction, config.split_seed)
        inputs = {"model": trained, **inputs}
    params = {k: v for k, v in semantic_params(config).items() if k not in ("policy", "revision")}
    return derive(
        "evaluate",
        VERSION,
        params
        | {
            "sampling": recorded(config.sampling),
            "reward": reward_params(config.reward) if config.reward else None,
            "judge": judge.params if judge else None,
        },
        inputs=inputs,
        models={"aligned": aligned.identity()}
        | ({"reward": rewarder.identity} if rewarder else {})
        | ({"judge": judge.identity} if judge else {}),
        slug=["evaluated"],
    )


def _with_references(prompts: Sequence[Row], where: str, stats: Stats) -> list[Row]:
    """The prompts with the reference policy's completions alone; those without any are dropped, counted."""
    for row in prompts:
        row[REFERENCE] = [c for c in row["completions"] if c["reference"]]
        dropped = row["dropped_completions"] or 0
        cut = sum(c["finish_reason"] == "length" for c in row[REFERENCE])
        row[f"{REFERENCE}_sampled"], row[f"{REFERENCE}_truncated"] = (
            len(row[REFERENCE]) + dropped,
            cut + dropped,
        )
    kept = [row for row in prompts if row[REFERENCE]]
    stats.drop("no_reference_completions", len(prompts) - len(kept))
    _require_enough(len(kept), where, stats)
    return kept


def _answered(
    config: EvaluateConfig,
    prompts: Sequence[Row],
    side: str,
    template: ChatTemplate,
    rewarder: Rewarder | None,
    stats: Stats,
    *,
    drop_truncated: bool = False,
) -> list[Row]:
    """Each prompt with the completions that the template's model gives, rewarded where there is a reward,
    under the name ``side``; prompts without any are dropped, counted."""
    model = template.model
    for row, sampled in zip(prompts, _sample(config.sampling, prompts, template)):
        kept = [s for s in sampled if not (drop_truncated and s.finish_reason == "length")]
        row[side] = [_completion(row, s, template, model.name, side) for s in kept]
        row[f"{side}_truncated"] = sum(s.finish_reason == "length" for s in sampled)
        row[f"{side}_sampled"] = len(sampled)
    if rewarder is not None:
        _reward(rewarder, prompts, side, stats)
    rows = [row for row in prompts if row[side]]
    stats.counts["aligned_completions"] += sum(len(row[side]) for row in rows) if side == ALIGNED else 0
    stats.drop(f"no_{side}_completions", len(prompts) - len(rows))
    _require_enough(len(rows), str(model.path), stats)
    return rows


def _reward(rewarder: Rewarder, prompts: Sequence[Row], side: str, stats: Stats) -> None:
    """Give the completions of ``side`` their rewards; those over length go, counted."""
    rewards = iter(rewarder.score([i for row in prompts for i in reward_inputs(row, row[side])]))
    for row in prompts:
        scored = [c | {"reward": next(rewards)} for c in row[side]]
        row[side] = [c for c in scored if c["reward"] is not None]
        stats.counts[f"{side}_over_length"] += len(scored) - len(row[side])


def _sample(spec: SamplingSpec, prompts: Sequence[Row], template: ChatTemplate) -> list[list[Sampled]]:
    sampled: dict[str, list[Sampled]] = {}
    with (
        open_engine(spec, template.model.path, template.end_ids) as engine,
        progress_bar(len(prompts), "prompts", "evaluate") as bar,
    ):
        asked = (Prompt(row["prompt_id"], row["prompt_token_ids"]) for row in prompts)
        for prompt_id, completions in engine.generate(asked):
            sampled[prompt_id] = completions
            bar.update(1)
    return [sampled[row["prompt_id"]] for row in prompts]


def _completion(row: Row, sampled: Sampled, template: ChatTemplate, model: str, side: str) -> Completion:
    return new_completion(
        completion_id=completion_id(row["prompt_id"], sampled.token_ids),
        reference=side == REFERENCE,
        model=model,
        messages=canonical_json([{"role": "assistant", "content": template.decode(sampled.token_ids)}]),
        token_ids=sampled.token_ids,
        num_tokens=len(sampled.token_ids),
        finish_reason=sampled.finish_reason,
        sampler_logprob=sampled.logprob,
    )


def _verdict(
    config: EvaluateConfig, judge: PairJudge | None, rows: Sequence[Row], stats: Stats
) -> WinRates | None:
    if judge is None:
        return None
    verdict = judged(judge, rows, config.judged_completions, seed=config.split_seed, stats=stats)
    if verdict is None:
        log.warning("every question to the judge is over length: it has no verdict")
    return verdict


def _write(rows: Sequence[Row], provenance: Provenance, stats: Stats, output: str) -> None:
    columns = ("prompt_id", "messages", REFERENCE, ALIGNED, "reward_difference")
    with DatasetWriter(output, EVALUATION, provenance) as writer:
        writer.write_rows([{name: row[name] for name in columns} for row in rows])
        stats.rows_out = writer.rows
        writer.commit(stats)


def _check_gate(config: EvaluateConfig, numbers: dict[str, float], output: str) -> None:
    if config.min_gain is not None and numbers["reward_gain_low"] < config.min_gain:
        raise GateError(
            f"the mean reward changed by {numbers['reward_gain']:+.4f} with a 95 % interval from "
            f"{numbers['reward_gain_low']:+.4f}, expected at least min_gain={config.min_gain:+.4f}; "
            f"the texts are in {join(output, REPORT)}"
        )


def _require_enough(rows: int, where: str, stats: Stats) -> None:
    if rows < 2:
        reasons = ", ".join(f"{n} {reason}" for reason, n in stats.dropped.items())
        raise DataError(
            f"{where}: {rows} held-out prompts to compare, expected 2 or more ({reasons}); raise "
            "validation_fraction here and in `mix`, or import more prompts"
        )
