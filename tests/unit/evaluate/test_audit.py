"""A gain that is length, repetition or one answer to everything is told; one that is none of them is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.schemas import new_completion
from kubealign_components.evaluate.audit import audit, decided_numbers, findings
from kubealign_components.evaluate.surface import GRAM, repeated_share
from kubealign_components.reports.sides import SIDES, SidesRow

Completions = list[tuple[list[int], float | None]]


def row(reference: Completions, aligned: Completions) -> SidesRow:
    before, after = (
        [
            new_completion(
                messages="[]", token_ids=ids, num_tokens=len(ids), reward=reward, finish_reason="stop"
            )
            for ids, reward in own
        ]
        for own in (reference, aligned)
    )
    given = [c["reward"] for c in (*before, *after)]
    return {"reference": before, "aligned": after, "reward_difference": None if None in given else 0.0}


def varied(length: int, start: int = 0) -> list[int]:
    """Tokens of which none comes twice."""
    return list(range(start, start + length))


def rows_with(slope: float, noise: float, shift: int, extra: float = 0.0) -> list[SidesRow]:
    """Prompts of quite different lengths whose rewards go with length by ``slope``; the aligned completions
    are ``shift`` tokens longer and get ``extra`` beside."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(40):
        level, lengths = random.normal(), random.integers(20, 60, 8) + 10 * (i % 5)
        side = [(n + shift * (k > 3), k > 3) for k, n in enumerate(lengths)]
        made: Completions = [
            (
                varied(int(n), 10_000 * i + 1000 * k),
                float(level + slope * n + noise * random.normal() + extra * ours),
            )
            for k, (n, ours) in enumerate(side)
        ]
        rows.append(row(made[:4], made[4:]))
    return rows


def numbers_of(rows: list[SidesRow]) -> dict[str, float]:
    means = {side: np.array([np.mean([c["reward"] for c in row[side]]) for row in rows]) for side in SIDES}
    gain = means["aligned"] - means["reference"]
    lengths = {
        f"length_{side}": float(np.mean([c["num_tokens"] for row in rows for c in row[side]]))
        for side in SIDES
    }
    told = {"reward_gain": float(gain.mean()), "reward_gain_low": float(gain.mean() - 0.1)}
    return audit(rows, ()) | lengths | told


@pytest.mark.parametrize(("slope", "shift"), [(0.05, 30), (-0.05, -15)])
def test_a_gain_of_length_alone_is_told_with_its_share(slope: float, shift: int) -> None:
    numbers = numbers_of(rows_with(slope, noise=0.05, shift=shift))
    assert numbers["gain_by_length"] == pytest.approx(numbers["reward_gain"], rel=0.1)
    [text] = findings(numbers)
    assert "one of length" in text


def test_a_gain_beside_length_is_none_of_length() -> None:
    longer = numbers_of(rows_with(slope=0.0, noise=0.05, shift=30, extra=1.0))
    assert abs(longer["gain_by_length"]) < 0.1 and findings(longer) == []
    against = numbers_of(rows_with(slope=-0.02, noise=0.05, shift=30, extra=2.0))
    assert against["gain_by_length"] == pytest.approx(-0.6, rel=0.1) and findings(against) == []
    assert findings(numbers_of(rows_with(slope=0.05, noise=0.05, shift=0)) | {"reward_gain_low": -1}) == []


def test_without_rewards_or_lengths_that_differ_nothing_is_said_of_length() -> None:
    same = [row([(varied(9), 0.0), (varied(9, 50), 1.0)], [(varied(20, 100), 1.0)])]
    assert "gain_by_length" not in audit(same, ())
    assert "gain_by_length" not in audit([row([(varied(9), None)], [(varied(3), None)])], ())


def test_loops_are_told() -> None:
    rows = [row([(varied(40, 100 * i), 0.0)], [([*varied(4, 100 * i)] * 10, 1.0)]) for i in range(5)]
    numbers = audit(rows, ())
    assert numbers["repetition_reference"] == 0.0 and numbers["repetition_aligned"] > 0.8
    [text] = findings(numbers)
    assert "loops" in text


def test_one_answer_to_every_prompt_is_told() -> None:
    rows = [
        row([(varied(9, 20 * i), 0.0)] * 2, [(varied(9), 1.0), (varied(9, 20 * i), 1.0)]) for i in range(1, 6)
    ]
    numbers = audit(rows, ())
    assert (numbers["same_answer_reference"], numbers["same_answer_aligned"]) == (0.0, 0.5)
    [text] = findings(numbers)
    assert "word for word" in text


@pytest.mark.parametrize(("tokens", "share"), [(2, 0.0), (4, 0.0), (5, 1.0)])
def test_a_letter_is_an_honest_answer_to_many_questions(tokens: int, share: float) -> None:
    rows = [row([(varied(9, 20 * i), 0.0)], [(varied(tokens), 1.0)]) for i in range(1, 6)]
    assert audit(rows, ())["same_answer_aligned"] == share


def test_a_judge_that_sees_positions_alone_is_told_and_its_win_rates_are_folded() -> None:
    numbers = {"judge_consistency": 0.0, "judge_win_rate": 0.5, "judge_win_rate_low": 0.5}
    numbers |= {"judge_win_rate_high": 0.5, "reward_gain_low": 0.4, "reward_gain_high": 0.6}
    numbers |= {f"judge_win_rate_kind{end}": 0.5 for end in ("", "_low", "_high")}
    numbers |= {
        "judge_win_rate_brief": 0.8,
        "judge_win_rate_brief_low": 0.6,
        "judge_win_rate_brief_high": 0.9,
    }
    [text] = findings(numbers)
    assert "0.0%" in text and "stronger judge" in text
    assert findings({"judge_consistency": 0.7}) == []
    kept = decided_numbers(numbers)
    assert set(numbers) - set(kept) == {f"judge_win_rate_kind{end}" for end in ("", "_low", "_high")}
    assert kept["judge_undecided_principles"] == 1
    assert decided_numbers({"reward_gain_low": 0.4}) == {"reward_gain_low": 0.4}


@given(st.lists(st.integers(0, 3), max_size=40))
def test_the_repeated_share_is_that_of_a_plain_count(ids: list[int]) -> None:
    seen, again = set[tuple[int, ...]](), 0
    runs = [tuple(ids[i : i + GRAM]) for i in range(max(0, len(ids) - GRAM + 1))]
    for run in runs:
        again += run in seen
        seen.add(run)
    assert repeated_share(ids) == pytest.approx(again / len(runs) if runs else 0.0)
