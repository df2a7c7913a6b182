"""What a report shows of held-out pairs: texts with their scores under principles and their opposites."""

from __future__ import annotations

import json
from itertools import pairwise

from kubealign_components.data.principles import parse_principles
from kubealign_components.train_reward_model.held_out import ScoredPair, steered_pairs
from kubealign_components.train_reward_model.pairs import COLUMNS
from support.preference_data import PRINCIPLES, is_loud, preference_rows, principle_set

ROWS = [{name: row[name] for name in (*COLUMNS, "metadata")} for row in preference_rows(40, seed=3)]
SCORED = [ScoredPair(row, (2.0 + i, 1.0), (-2.0, 3.0 + i)) for i, row in enumerate(ROWS)]


def test_the_preferred_text_comes_first_with_both_of_its_scores() -> None:
    shown = list(steered_pairs(SCORED, principle_set(), 5))
    assert [pair["prompt"] for pair in shown] == [json.loads(r["messages"])[0]["content"] for r in ROWS[:5]]
    for i, (pair, row) in enumerate(zip(shown, ROWS)):
        preferred, other = pair["completions"]
        assert is_loud(preferred["text"]) == ("loud" in pair["principles"])
        assert is_loud(other["text"]) == ("loud" in pair["opposites"])
        assert (preferred["score"], preferred["opposite"]) == (2.0 + i, -2.0)
        assert (other["score"], other["opposite"]) == (1.0, 3.0 + i)
        turned = {"loud": "soft", "soft": "loud", "tidy": "open", "open": "tidy"}
        assert [turned[text] for text in pair["principles"]] == pair["opposites"]
        assert len(pair["principles"]) == len(row["principles"])


def test_a_prompt_is_shown_once_and_a_pair_without_opposites_never() -> None:
    doubled = [pair for pair in SCORED for _ in range(3)]
    shown = list(steered_pairs(doubled, principle_set(), 100))
    assert len(shown) == len(ROWS)
    assert all(one["prompt"] != next_one["prompt"] for one, next_one in pairwise(shown))
    without = [ScoredPair(row, (1.0, 0.0), None) for row in ROWS]
    assert list(steered_pairs(without, principle_set(), 100)) == []
    loud = {"name": "Loud", "positive": "loud"}
    one_sided = json.dumps({**PRINCIPLES, "principles": [loud]}).encode()
    assert list(steered_pairs(SCORED, parse_principles(one_sided, "one"), 100)) == []
    assert list(steered_pairs(SCORED, None, 100)) == []
