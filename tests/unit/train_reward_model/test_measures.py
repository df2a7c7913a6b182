"""What is measured on held-out pairs, against hand-computed values."""

from __future__ import annotations

import math

import pytest

from kubealign_components.train_reward_model.measures import (
    HeldOutPair,
    by_principle,
    calibration,
    held_out_numbers,
)


def pair(margin: float, **fields: object) -> HeldOutPair:
    return HeldOutPair(margin=margin, **fields)  # type: ignore[arg-type]


def log_odds(confidence: float) -> float:
    return math.log(confidence / (1 - confidence))


def test_accuracy_counts_ties_half_and_goes_by_the_deciding_principle() -> None:
    short, ethical = ("Concise", False), ("Ethical", True)
    pairs = [
        pair(2.0, principles=(short,)),
        pair(-1.0, principles=(ethical,)),
        pair(0.0, principles=(ethical, short), deciding="Concise"),
        pair(3.0, principles=(ethical, short), deciding="Ethical"),
        pair(1.0, principles=(ethical, short)),  # of either kind, and nothing says which one decides
        pair(-1.0),
    ]
    numbers = held_out_numbers(pairs)
    assert numbers["held_out_accuracy"] == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert numbers["held_out_accuracy_positive"] == pytest.approx((1 + 0.5) / 2)
    assert numbers["held_out_accuracy_negated"] == pytest.approx((0 + 1) / 2)
    assert numbers["swap_sensitivity"] == pytest.approx(1 / 6)
    assert "principle_sensitivity" not in numbers
    assert by_principle(pairs) == [
        {"name": "Concise", "negated": False, "pairs": 3, "accuracy": pytest.approx(2.5 / 3)},
        {"name": "Ethical", "negated": True, "pairs": 3, "accuracy": pytest.approx(2 / 3)},
    ]


def test_principle_sensitivity_is_how_often_the_opposite_turns_the_decision() -> None:
    margins = [(1.0, -2.0), (1.0, 0.5), (-1.0, 3.0), (-1.0, -1.0), (2.0, 0.0)]
    pairs = [pair(own, opposite_margin=other) for own, other in margins]
    assert held_out_numbers([*pairs, pair(1.0)])["principle_sensitivity"] == pytest.approx(2 / 5)


def test_calibration_compares_confidence_with_accuracy() -> None:
    """Three decisions at 0.8, two of them right; two at 0.6, both right: ECE = (3·0.8−2 + 2−2·0.6) / 5."""
    pairs = [pair(log_odds(0.8)), pair(log_odds(0.8)), pair(-log_odds(0.8)), *[pair(log_odds(0.6))] * 2]
    low, high = calibration(pairs)
    assert low == pytest.approx((0.6, 1.0, 2))
    assert high == pytest.approx((0.8, 2 / 3, 3))
    assert held_out_numbers(pairs)["calibration_error"] == pytest.approx((0.4 + 0.8) / 5)
    assert held_out_numbers([pair(0.0)])["calibration_error"] == pytest.approx(0)
    assert calibration([pair(1000.0)]) == [(1.0, 1.0, 1)]


def test_nothing_is_measured_without_pairs() -> None:
    assert held_out_numbers([]) == {}
    assert calibration([]) == by_principle([]) == []
