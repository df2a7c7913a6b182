"""The statistics of an evaluation against SciPy and against what must hold for any numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from kubealign_components.data.bootstrap import ONE_PROMPT, bootstrap_interval, mean_numbers
from kubealign_components.data.schemas import canonical_json, new_completion
from kubealign_components.engines.rewards import RewardWords
from kubealign_components.evaluate.comparison import (
    Floats,
    Side,
    compare,
    kl_estimate,
    mean_difference,
    preference_accuracy,
    warnings,
    win_rate,
)
from kubealign_components.evaluate.judged import WinRate, WinRates
from kubealign_components.evaluate.report import TEXTS, report_html
from support.pages import Page

rewards = st.lists(st.integers(-3, 3), min_size=1, max_size=6).map(lambda v: np.array(v, dtype=np.float64))


def side(values: Any, lengths: Any = None, truncated: int = 0, dropped: int = 0) -> Side:
    lengths = [10] * len(values) if lengths is None else lengths
    return Side(
        rewards=np.array(values, dtype=np.float64),
        lengths=np.array(lengths, dtype=np.float64),
        truncated=truncated + dropped,
        sampled=len(values) + dropped,
    )


@pytest.mark.parametrize("count", [5, 48, 256])
def test_the_interval_is_that_of_scipy(count: int) -> None:
    values = np.random.default_rng(count).gamma(2.0, size=count) - 1
    interval = bootstrap_interval(values, seed=1)
    oracle = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    # Both are Monte Carlo: quantiles of 10,000 draws are known to some 3 % of the standard error.
    noise = 0.1 * values.std() / np.sqrt(count)
    assert interval == pytest.approx((oracle.low, oracle.high), abs=noise)


def test_a_single_value_has_a_mean_and_no_interval() -> None:
    """Its resamples are all alike: an interval of no width would look like certainty."""
    assert bootstrap_interval(np.array([0.25]), seed=0) is None
    assert mean_numbers("gain", np.array([0.25]), seed=0) == {"gain": 0.25}
    assert mean_numbers("gain", np.array([0.0, 1.0]), seed=0) == {
        "gain": 0.5,
        "gain_low": 0.0,
        "gain_high": 1.0,
    }
    assert "kl_standard_error" not in kl_estimate([np.array([2.0, 4.0])], tokens=10)
    assert preference_accuracy([np.array([0.5])], seed=0).keys().isdisjoint({"preference_accuracy_low"})


def test_the_interval_is_seeded_and_the_same_for_any_block() -> None:
    values = np.random.default_rng(0).normal(size=2**19)  # a block holds eight resamples
    few = bootstrap_interval(values, seed=3, resamples=20)
    assert few == bootstrap_interval(values, seed=3, resamples=20)
    assert few != bootstrap_interval(values, seed=4, resamples=20)
    assert few is not None
    assert few[0] < values.mean() < few[1]


@given(rewards, rewards)
def test_win_rates_of_both_sides_add_to_one(one: Floats, other: Floats) -> None:
    assert win_rate(one, other) + win_rate(other, one) == pytest.approx(1)
    wins = [1.0 if a > r else 0.5 if a == r else 0.0 for a in one for r in other]
    assert win_rate(one, other) == pytest.approx(np.mean(wins))


def test_a_prompt_counts_once_however_many_completions_it_has() -> None:
    reference = [side([0.0, 0.0, 0.0, 0.0], truncated=1, dropped=2), side([1.0])]
    aligned = [side([1.0], [40]), side([2.0, 4.0], [20, 40])]
    numbers = compare(reference, aligned, seed=0)
    assert [mean_difference(r, a) for r, a in zip(reference, aligned)] == [1.0, 2.0]
    assert numbers["reward_reference"] == 0.5
    assert numbers["reward_aligned"] == 2.0
    assert numbers["reward_gain"] == 1.5
    assert (numbers["reward_gain_low"], numbers["reward_gain_high"]) == (1.0, 2.0)
    assert numbers["length_ratio"] == 3.5
    assert numbers["truncated_reference"] == 3 / 7
    assert numbers["truncated_aligned"] == 0.0


def test_kl_is_the_mean_log_ratio_of_the_prompts() -> None:
    numbers = kl_estimate([np.array([2.0, 4.0]), np.array([-1.0])], tokens=10)
    assert numbers["kl_per_completion"] == pytest.approx((3 - 1) / 2)
    assert numbers["kl_per_token"] == pytest.approx((2 + 4 - 1) / 10)
    assert numbers["kl_standard_error"] == pytest.approx(np.std([3, -1], ddof=1) / np.sqrt(2))


def test_kl_estimates_the_divergence_of_two_known_distributions() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    drawn = np.random.default_rng(0).choice(3, p=policy, size=(500, 20))
    ratio = np.log(policy / reference)
    numbers = kl_estimate(list(ratio[drawn]), tokens=drawn.size)
    exact = float(np.sum(policy * ratio))
    assert abs(numbers["kl_per_completion"] - exact) < 4 * numbers["kl_standard_error"]
    assert numbers["kl_standard_error"] < 0.02


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"length_ratio": 0.4}, "collapse to short answers", id="short"),
        pytest.param({"length_ratio": 3.0}, "padding and repetition", id="long"),
        pytest.param({"truncated_aligned": 0.9}, "may not end its turns", id="truncated"),
        pytest.param({"kl_per_token": 2.0, "kl_per_completion": 90.0}, "far behind", id="kl"),
    ],
)
def test_a_collapse_is_named(changed: dict[str, float], message: str) -> None:
    numbers = compare([side([0.0])] * 2, [side([1.0])] * 2, seed=0)
    assert warnings(numbers) == []
    [warning] = warnings(numbers | changed)
    assert message in warning


def test_dropping_truncated_completions_is_said_to_bias() -> None:
    numbers = compare([side([0.0], dropped=1)] * 2, [side([1.0])] * 2, seed=0)
    assert warnings(numbers) == []
    [warning] = warnings(numbers, dropped_truncated=True)
    assert warning.startswith("50% of the reference completions and 0% of the aligned")


def test_the_report_escapes_what_it_shows() -> None:
    def completion(text: str) -> dict[str, Any]:
        messages = canonical_json([{"role": "assistant", "content": text}])
        return new_completion(messages=messages, reward=0.25, num_tokens=7, finish_reason="stop")

    attack = "<script>alert('x')</script>"
    rows = [
        {
            "messages": canonical_json([{"role": "user", "content": f"prompt {i} {attack}"}]),
            "reference": [completion(f"before {attack}")],
            "aligned": [completion("" if i else f"after {attack} & more")],
            "reward_difference": 0.5,
        }
        for i in range(TEXTS + 2)
    ]
    rate = WinRate(rate=0.5, interval=(0.25, 0.75))
    page = report_html(
        model=f"new {attack}",
        reference="old",
        reward=[RewardWords("short texts", "brevity"), RewardWords(f"like {attack}", f"own.py:{attack}")],
        numbers=compare([side([0.0])] * 2, [side([1.0])] * 2, seed=0),
        verdict=WinRates(
            judge=attack, overall=rate, by_principle={attack: rate}, consistency=0.25, prompts=2
        ),
        warnings=[f"watch {attack}"],
        phrases=["thanks , friend !"],
        rows=rows,
    )
    assert attack not in page
    assert "after &lt;script&gt;" in page
    shown = Page(page)
    assert len(shown.scripts) == 2 and "alert" not in "".join(shown.scripts)
    assert f"after {attack} & more" in shown.text
    assert shown.tags.count("section") == TEXTS
    assert "<i>empty</i>" in page
    assert [attack, "50.0%", "25.0% to 75.0%"] in shown.rows
    assert "thanks, friend!" in shown.text
    assert "1 principle under which neither wins" in shown.text
    assert "changed by +1.0000 (95 % interval +1.0000 to +1.0000" in shown.text
    assert f"The reward: short texts; like {attack}. How it is computed brevity own.py:{attack}" in shown.text
    assert {"Rewards before and after", "Reward differences", "Lengths before and after"} <= set(shown.charts)
    assert shown.loaded == []


def test_a_report_on_one_prompt_says_why_there_is_no_interval() -> None:
    completion = new_completion(messages="[]", reward=0.25, num_tokens=7, finish_reason="stop")
    row = {"messages": "[]", "reference": [completion], "aligned": [completion], "reward_difference": 0.0}
    rate = WinRate(rate=1.0, interval=None)
    numbers = compare([side([0.0])] * 2, [side([1.0])] * 2, seed=0)
    page = report_html(
        model="new",
        reference="old",
        numbers=numbers
        | preference_accuracy([np.array([0.5])], seed=0)
        | kl_estimate([np.ones(2)], tokens=4),
        verdict=WinRates(judge="it", overall=rate, by_principle={"Kind": rate}, consistency=1.0, prompts=1),
        warnings=[],
        rows=[row],
    )
    shown = Page(page)
    assert ["Kind", "100.0%", ""] in shown.rows
    assert f"There is no interval: {ONE_PROMPT}." in shown.text
    assert f"in 100.0% ({ONE_PROMPT}; 50 % is" in shown.text
    assert "is 1.00 nats a completion" in shown.text
