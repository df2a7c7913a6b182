"""evaluate: held-out prompts, the same sampling and rewards for the reference and the aligned policy.

The reference side is what `sample` and `rewards` already made, and only the aligned policy is sampled. Of
prompts that have no samples yet, such as those of PPO, both sides are sampled and rewarded here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kubealign_components.config import SettingGroup, execution, require, require_choice, semantic_params
from kubealign_components.data.chat import ChatTemplate, DeferredTemplate, stored_settings
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.models import ModelFiles, find_model, require_policy, with_weights
from kubealign_components.data.null_runs import is_null_run
from kubealign_components.data.schemas import (
    EVALUATION,
    Completion,
    EvaluationRow,
    TokenizedRow,
    completion_id,
    new_completion,
)
from kubealign_components.data.stats import Stats
from kubealign_components.data.trained import trained_model
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
from kubealign_components.engines.rewards import (
    OVER_LENGTH,
    REWARD,
    Rewarder,
    RewardSpec,
    reward_inputs,
    reward_params,
    reward_words,
)
from kubealign_components.errors import GateError, Unanswered
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, Answers, ComparedPrompt
from kubealign_components.evaluate.audit import phrases_of
from kubealign_components.evaluate.by_source import gains_by_source
from kubealign_components.evaluate.comparable import (
    check_rewards,
    check_sampling,
    check_split,
    check_template,
    last_step,
)
from kubealign_components.evaluate.comparison import warnings
from kubealign_components.evaluate.ended import without_comparison
from kubealign_components.evaluate.gates import HELD_OUT, REQUIREMENTS, VARIED, unmet
from kubealign_components.evaluate.held_out import LEAST, held_out_rows, require_enough, too_few
from kubealign_components.evaluate.judged import WinRates, judged
from kubealign_components.evaluate.measures import measure
from kubealign_components.evaluate.report import report_html
from kubealign_components.evaluate.second_reward import (
    SETTING,
    check_parts,
    require_held_out,
    second_numbers,
    second_rewards,
)
from kubealign_components.progress import progress_bar
from kubealign_components.reports.html import REPORT, copy_report, write_report
from kubealign_components.reports.rounds import lines_of, shares_of_rounds
from kubealign_components.store import join

log = logging.getLogger(__name__)

VERSION = 9


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
            arguments={"judge": "judge"},
            options=("judge_options", "rank_options.judge", "options.judge"),
            keys=("judge",),
        ),
    }

    policy: str
    """Model directory, URI or hub id of the reference policy."""
    sampling: SamplingSpec
    """As `sample` had it."""
    reward: RewardSpec | None = None
    """As `rewards` had it; null for none: then lengths, KL, the judge and people's labels are compared."""
    held_out_reward: RewardSpec | None = None
    """A second reward, which nothing was trained on: whether the gain is more than what the first one likes.
    Functions and model as `rewards` takes them; null for none."""
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
    require: tuple[str, ...] = execution(())
    """Fail the run where one of these is not met, with the reason, after model and pages are published:
    ``gain`` and ``held_out_gain`` (the lower bound of that reward's gain is above 0), ``beyond_length``,
    ``beyond_repetition``, ``beyond_format`` and ``beyond_phrases`` (the lower bound of the gain at equal
    length and so on is above 0, and less than half of the gain goes with it), and ``varied_answers`` (no one
    answer to many prompts)."""
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
        if self.held_out_reward is not None:
            check_parts(self.held_out_reward, self.reward)
        self._check_required()

    def _check_required(self) -> None:
        for i, name in enumerate(self.require):
            require_choice(f"require[{i}]", name, REQUIREMENTS)
            needed = {HELD_OUT: (SETTING, self.held_out_reward), VARIED: ("", True)}
            setting, given = needed.get(name, ("reward", self.reward))
            require(bool(given), f"require[{i}]", name, f"none that asks for {setting}, which is not given")


def run(
    config: EvaluateConfig,
    *,
    rewarded: Dataset,
    model: str,
    output: str,
    report: str | None = None,
    model_uri: str = "",
    rounds: Sequence[Mapping[str, float]] = (),
    selection: Dataset | None = None,
    sweep: bool = False,
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
        rounds: numbers of the evaluations of the rounds before, for the report.
        selection: of a further round, the ``kubealign.selection/v1`` that the model was trained on.
        sweep: whether it is of a variant of a sweep, which goes on without one that has no answers.

    Raises:
        ConfigError: sampling, rewards, policy or split are not those of the dataset and the model.
        DataError: fewer than two held-out prompts can be compared.
        GateError: the gain is below ``min_gain``, or not what ``require`` asks for; output and report
            are written before.
    """
    trained = trained_model(model, model_uri or model)
    if trained is not None and trained.ended_early:
        return without_comparison(trained, trained.ended_early, VERSION, output, report)
    rewarder = Rewarder(config.reward) if config.reward else None
    second = Rewarder(config.held_out_reward) if config.held_out_reward else None
    judge = PairJudge(config.judge, rewarded) if config.judge else None
    policy = find_model(config.policy, config.revision, weights=False)
    aligned = DeferredTemplate(find_model(model, weights=False), stored_settings(rewarded))
    require_policy(policy, rewarded)
    inputs = _Inputs(config, rewarded, policy, aligned, rewarder, second, judge)
    provenance = _provenance(inputs, trained)
    tokens = [aligned.model.tokenizer_digest(), list(aligned.end_ids)] if config.work else []
    request = output_request(config, provenance, output, REPORT, checked=tokens)
    try:
        stats = once(request, lambda: _make(inputs, provenance, output, rounds, selection))
    except Unanswered as error:
        if not sweep or trained is None:
            raise
        return without_comparison(trained, str(error), VERSION, output, report)
    finally:
        for one in (rewarder, second):
            if one is not None:
                one.close()
    copy_report(output, report)
    _check_gate(config, stats.numbers, output)
    return stats


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What an evaluation is made of."""

    config: EvaluateConfig
    rewarded: Dataset
    policy: ModelFiles
    aligned: DeferredTemplate
    """With the aligned model, which it is made of."""
    rewarder: Rewarder | None
    second: Rewarder | None
    """Of the held-out reward."""
    judge: PairJudge | None


def _make(
    inputs: _Inputs,
    provenance: Provenance,
    output: str,
    rounds: Sequence[Mapping[str, float]],
    selection: Dataset | None,
) -> Stats:
    config, rewarder = inputs.config, inputs.rewarder
    stats = Stats(rows_in=inputs.rewarded.rows)
    prompts, drop = _references(inputs, stats)
    compared = _answered(
        config, prompts, ALIGNED, inputs.aligned.loaded, rewarder, stats, drop_truncated=drop
    )
    stats.counts["reference_completions"] += sum(len(prompt.completions(REFERENCE)) for prompt in prompts)
    if rewarder is not None:
        rewarder.close()
    rewards = second_rewards(inputs.second, compared, stats) if inputs.second else []
    phrases = phrases_of([prompt.evaluation_row() for prompt in compared])
    numbers = measure(
        compared,
        inputs.policy,
        inputs.aligned.model,
        kl_prompts=0 if config.sampling.engine == "fake" else config.kl_prompts,
        dtype=resolved_dtype(config.sampling.dtype),
        seed=config.split_seed,
        phrases=phrases,
    )
    if is_null_run(provenance.recipe):
        numbers["null_run"] = 1.0
    numbers |= second_numbers(rewards, seed=config.split_seed)
    verdict = _verdict(config, inputs.judge, compared, stats)
    numbers |= verdict.numbers() if verdict else {}
    numbers |= shares_of_rounds(selection) if selection is not None else {}
    stats.numbers.update(numbers)
    rows = [prompt.evaluation_row() for prompt in compared]
    _write(rows, provenance, stats, output)
    collapses = warnings(numbers, dropped_truncated=drop)
    for text in collapses:
        log.warning(text)
    page = report_html(
        model=inputs.aligned.model.name,
        reference=inputs.policy.name,
        reward=reward_words(config.reward) if config.reward else (),
        numbers=numbers,
        verdict=verdict,
        warnings=collapses,
        rows=rows,
        phrases=phrases,
        seconds=rewards,
        held_out=reward_words(config.held_out_reward) if config.held_out_reward else (),
        sources=gains_by_source(compared, seed=config.split_seed),
        rounds=lines_of([*rounds, numbers]) if rounds else (),
    )
    write_report(page, output)
    return stats


def _references(inputs: _Inputs, stats: Stats) -> tuple[list[ComparedPrompt], bool]:
    """The held-out prompts with the answers of the reference policy, which are there or are sampled here; and
    whether truncated ones were dropped."""
    config, rewarded = inputs.config, inputs.rewarded
    rows = held_out_rows(
        rewarded,
        fraction=config.validation_fraction,
        seed=config.split_seed,
        most=config.max_prompts,
        stats=stats,
    )
    require_enough(len(rows), rewarded.uri, stats)
    template = ChatTemplate(inputs.policy, stored_settings(rewarded))
    ends, drop = list(template.end_ids), False
    answered = last_step(rewarded, "sample") is not None
    if answered:
        if inputs.rewarder is not None:
            check_rewards(inputs.rewarder, rewarded)
        sampled = check_sampling(config.sampling, rewarded)
        ends, drop = sampled.models["policy"]["end_tokens"], sampled.params["truncated"] == "drop"
    check_template(inputs.aligned.loaded, ends, rows[0])
    prompts = [ComparedPrompt(row) for row in rows]
    if answered:
        return _with_references(prompts, rewarded.uri, stats), drop
    return _answered(config, prompts, REFERENCE, template, inputs.rewarder, stats), drop


def _provenance(inputs: _Inputs, trained: Dataset | None) -> Provenance:
    """Where the evaluation comes from: the model's own story too, when KubeAlign has ``trained`` it."""
    config, rewarder, judge = inputs.config, inputs.rewarder, inputs.judge
    parents = {"rewarded": inputs.rewarded}
    if trained is not None:
        check_split(trained, config.validation_fraction, config.split_seed)
        parents = {"model": trained, **parents}
    if inputs.second:
        require_held_out(inputs.second, rewarder, list(parents.values()))
    params = {k: v for k, v in semantic_params(config).items() if k not in ("policy", "revision")}
    return derive(
        "evaluate",
        VERSION,
        params
        | {
            "sampling": recorded(config.sampling),
            "reward": reward_params(config.reward) if config.reward else None,
            SETTING: reward_params(config.held_out_reward) if config.held_out_reward else None,
            "judge": judge.params if judge else None,
        },
        inputs=parents,
        models={"aligned": inputs.aligned.model.identity()}
        | ({"reward": rewarder.identity} if rewarder else {})
        | ({SETTING: inputs.second.identity} if inputs.second else {})
        | (judge.models if judge else {}),
        slug=["evaluated"],
    )


def _with_references(prompts: Sequence[ComparedPrompt], where: str, stats: Stats) -> list[ComparedPrompt]:
    """The prompts with the reference policy's completions alone; those without any are dropped, counted."""
    for prompt in prompts:
        own = [c for c in prompt.row["completions"] if c["reference"]]
        dropped = prompt.row["dropped_completions"] or 0
        cut = sum(c["finish_reason"] == "length" for c in own)
        prompt.sides[REFERENCE] = Answers(own, sampled=len(own) + dropped, truncated=cut + dropped)
    kept = [prompt for prompt in prompts if prompt.completions(REFERENCE)]
    stats.drop("no_reference_completions", len(prompts) - len(kept))
    require_enough(len(kept), where, stats)
    return kept


def _answered(
    config: EvaluateConfig,
    prompts: Sequence[ComparedPrompt],
    side: str,
    template: ChatTemplate,
    rewarder: Rewarder | None,
    stats: Stats,
    *,
    drop_truncated: bool = False,
) -> list[ComparedPrompt]:
    """Each prompt with the completions that the template's model gives, rewarded where there is a reward,
    as those of ``side``; prompts without any are dropped, counted."""
    model = template.model
    for prompt, sampled in zip(prompts, _sample(config.sampling, prompts, template)):
        kept = [s for s in sampled if not (drop_truncated and s.finish_reason == "length")]
        prompt.sides[side] = Answers(
            [_completion(prompt.row, s, template, model.name, side) for s in kept],
            sampled=len(sampled),
            truncated=sum(s.finish_reason == "length" for s in sampled),
        )
    if rewarder is not None:
        _reward(rewarder, prompts, side, stats)
    answered = [prompt for prompt in prompts if prompt.completions(side)]
    if side == ALIGNED:
        stats.counts["aligned_completions"] += sum(len(prompt.completions(side)) for prompt in answered)
    stats.drop(f"no_{side}_completions", len(prompts) - len(answered))
    if side == ALIGNED and len(answered) < LEAST:
        raise Unanswered(too_few(len(answered), str(model.path), stats))
    require_enough(len(answered), str(model.path), stats)
    return answered


def _reward(rewarder: Rewarder, prompts: Sequence[ComparedPrompt], side: str, stats: Stats) -> None:
    """Give the completions of ``side`` their rewards; those that get none go, counted by the reason."""
    inputs = [i for p in prompts for i in reward_inputs(p.row, p.completions(side))]
    outcomes = iter(rewarder.outcomes(inputs))
    stats.counts[f"{side}_{OVER_LENGTH}"] += 0
    for answers in (prompt.sides[side] for prompt in prompts):
        scored = [(completion, next(outcomes)) for completion in answers.completions]
        for completion, outcome in scored:
            completion["reward"] = outcome.reward
        answers.completions = [c for c, outcome in scored if outcome.reward is not None]
        stats.counts.update(f"{side}_{outcome.refused}" for _, outcome in scored if outcome.refused)


def _sample(
    spec: SamplingSpec, prompts: Sequence[ComparedPrompt], template: ChatTemplate
) -> list[list[Sampled]]:
    rows = [prompt.row for prompt in prompts]
    sampled: dict[str, list[Sampled]] = {}
    with (
        open_engine(spec, with_weights(template.model).path, template.end_ids) as engine,
        progress_bar(len(rows), "prompts", "evaluate") as bar,
    ):
        asked = (Prompt(row["prompt_id"], row["prompt_token_ids"]) for row in rows)
        for prompt_id, completions in engine.generate(asked):
            sampled[prompt_id] = completions
            bar.update(1)
    return [sampled[row["prompt_id"]] for row in rows]


def _completion(
    row: TokenizedRow, sampled: Sampled, template: ChatTemplate, model: str, side: str
) -> Completion:
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
    config: EvaluateConfig, judge: PairJudge | None, prompts: Sequence[ComparedPrompt], stats: Stats
) -> WinRates | None:
    if judge is None:
        return None
    verdict = judged(judge, prompts, config.judged_completions, seed=config.split_seed, stats=stats)
    if verdict is None:
        log.warning("every question to the judge is over length: it has no verdict")
    return verdict


def _write(rows: Sequence[EvaluationRow], provenance: Provenance, stats: Stats, output: str) -> None:
    with DatasetWriter(output, EVALUATION, provenance) as writer:
        writer.write_rows(rows)
        stats.rows_out = writer.rows
        writer.commit(stats)


def _check_gate(config: EvaluateConfig, numbers: dict[str, float], output: str) -> None:
    if config.min_gain is not None and numbers["reward_gain_low"] < config.min_gain:
        raise GateError(
            f"the mean reward changed by {numbers['reward_gain']:+.4f} with a 95 % interval from "
            f"{numbers['reward_gain_low']:+.4f}, expected at least min_gain={config.min_gain:+.4f}; "
            f"the texts are in {join(output, REPORT)}"
        )
    if reasons := unmet(config.require, numbers):
        raise GateError(
            f"the gain does not meet what `require` asks for; the model is published, and the texts are in "
            f"{join(output, REPORT)}. {' '.join(reasons)}"
        )
