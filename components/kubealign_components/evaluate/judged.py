"""The judge's verdict on two policies: how often it prefers the aligned completion, by principle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.bootstrap import Interval, bootstrap_interval, interval_numbers
from kubealign_components.data.fingerprint import slug_word
from kubealign_components.data.schemas import Completion
from kubealign_components.data.stats import Stats
from kubealign_components.engines.judge import Judgement, Pair, PairJudge
from kubealign_components.engines.rewards import flatten_text, reward_inputs
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, ComparedPrompt
from kubealign_components.evaluate.audit import CHANCE, WIN_RATE
from kubealign_components.progress import progress_bar

_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """Share of prompts where the aligned completion wins, ties half."""

    rate: float
    interval: Interval | None
    """Bootstrapped over prompts, 95 %; None where a single prompt does not say how sure the rate is."""

    @property
    def says_nothing(self) -> bool:
        """Whether the interval holds one half, so that neither policy wins."""
        return self.interval is not None and self.interval[0] <= CHANCE <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRates:
    """What the judge thinks of both policies."""

    judge: str
    """Its name."""
    overall: WinRate
    """Over all principles, which count alike."""
    by_principle: Mapping[str, WinRate]
    consistency: float
    """Share of judgements whose two orders agree, identical completions and ties in both orders left out; NaN
    without any."""
    prompts: int
    """How many were judged."""

    def numbers(self) -> dict[str, float]:
        """Flat numbers for the stats."""
        rates = {WIN_RATE: self.overall}
        rates |= {f"{WIN_RATE}_{slug_word(name)}": rate for name, rate in self.by_principle.items()}
        numbers = {"judge_prompts": float(self.prompts)}
        if self.consistency == self.consistency:
            numbers["judge_consistency"] = self.consistency
        for name, rate in rates.items():
            numbers |= {name: rate.rate} | interval_numbers(name, rate.interval)
        return numbers


def judged(
    judge: PairJudge, prompts: Sequence[ComparedPrompt], most: int, *, seed: int, stats: Stats
) -> WinRates | None:
    """Let ``judge`` compare aligned and reference completions, which are samples of equal standing: the first
    with the first, the second with the second, …

    A completion wins under a principle when both orders prefer it; when they disagree, or the texts are the
    same, it is a tie, which counts half. Pairs with a question over length are left out and counted.

    Args:
        judge: open; it is closed here.
        prompts: with both sides' completions.
        most: pairs of a prompt.
        seed: of the bootstrap.
        stats: where pairs are counted.

    Returns:
        The verdict; None when every pair was left out.
    """
    outcomes: list[np.ndarray] = []
    consistent: list[bool] = []
    with progress_bar(len(prompts), "prompts", "evaluate judge") as bar:
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
            for pairs in _judge(judge, prompts[start : start + _PROMPTS_AT_ONCE], most):
                stats.counts["judged_pairs"] += len(pairs) - pairs.count(None)
                stats.counts[f"judged_pairs_{judge.spec.why_none}"] += pairs.count(None)
                # A function that rewards both alike says so in either order: there is nothing to agree on.
                consistent += [j.consistent for pair in pairs for j in pair or () if j.s12 or j.s21]
                outcomes_of_prompt = [_outcome(pair, judge) for pair in pairs if pair is not None]
                if outcomes_of_prompt:
                    outcomes.append(np.mean(outcomes_of_prompt, axis=0))
                bar.update(1)
    judge.close()
    if not outcomes:
        return None
    wins = np.stack(outcomes)  # of shape (prompts, principles)
    return WinRates(
        judge=judge.name,
        overall=_win_rate(wins.mean(axis=1), seed),
        by_principle={
            name: _win_rate(won, seed) for name, won in zip(judge.principles.names, wins.T, strict=True)
        },
        consistency=float(np.mean(consistent)) if consistent else float("nan"),
        prompts=len(outcomes),
    )


def _judge(
    judge: PairJudge, prompts: Sequence[ComparedPrompt], most: int
) -> list[list[list[Judgement] | None]]:
    """By prompt the judgements of its pairs, None for a pair over length; those of equal texts are empty."""
    pairs = [_pairs(prompt, most) for prompt in prompts]
    different = [pair for of_prompt in pairs for pair in of_prompt if pair.first != pair.second]
    judgements = iter(judge.judge(different))
    return [[next(judgements) if pair.first != pair.second else [] for pair in own] for own in pairs]


def _pairs(prompt: ComparedPrompt, most: int) -> list[Pair]:
    messages = json.loads(prompt.row["messages"])
    sides = list(zip(prompt.completions(ALIGNED), prompt.completions(REFERENCE)))[:most]
    pairs = []
    for aligned, reference in sides:
        first, second = reward_inputs(prompt.row, [aligned, reference])
        pairs.append(Pair(messages, _text(aligned), _text(reference), (first, second)))
    return pairs


def _outcome(pair: Sequence[Judgement], judge: PairJudge) -> list[float]:
    """By principle 1 where the aligned completion wins, 0 where the reference does, 0.5 for a tie."""
    if not pair:
        return [0.5] * len(judge.principles)
    return [float(one.score > 0) if one.consistent else 0.5 for one in pair]


def _win_rate(wins: NDArray[np.float64], seed: int) -> WinRate:
    return WinRate(rate=float(wins.mean()), interval=bootstrap_interval(wins, seed=seed))


def _text(completion: Completion) -> str:
    return flatten_text(json.loads(completion["messages"]))
