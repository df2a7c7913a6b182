"""What is told of a judge: its two orders, its liking for a position, and whether its principles agree."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.opinions import Survey, overall, survey
from kubealign_components.data.schemas import COMPLETIONS, JUDGED, JUDGED_ROW, JudgementRow, new_completion
from kubealign_components.reports.judgements import judgements_page
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row

ATTACK = "<script>alert(1)</script>"
LOGITS = st.floats(-9, 9, width=32)
OPINION = st.tuples(st.integers(0, 2), st.sampled_from("abc"), LOGITS, LOGITS)


def judgement(pair: int, principle: str, s12: float, s21: float) -> JudgementRow:
    """Of the pair of that number among three completions."""
    first, second = list(combinations(range(3), 2))[pair]
    score = (s12 + s21) / 2
    whose = {"principle": principle, "s12": s12, "s21": s21, "score": score, "consistent": s12 * s21 > 0}
    return {"first": first, "second": second, **whose}  # type: ignore[typeddict-item]


def judged_rows(rows: list[list[JudgementRow]]) -> list[dict[str, object]]:
    texts = [json.dumps([{"role": "assistant", "content": f"answer {i} {ATTACK}"}]) for i in range(3)]
    written = [
        new_completion(completion_id=f"c{i}", messages=text, reference=True) for i, text in enumerate(texts)
    ]
    return [
        prompt_row(f"prompt {i} {ATTACK}", []) | {"completions": written, "judgements": judgements}
        for i, judgements in enumerate(rows)
    ]


def dataset_of(make_dataset: MakeDataset, rows: list[list[JudgementRow]]) -> Dataset:
    return make_dataset(judged_rows(rows), JUDGED, stage="judge", shards=2)


@given(rows=st.lists(st.lists(OPINION, unique_by=lambda one: one[:2], max_size=9), min_size=1, max_size=4))
def test_counts_are_those_of_going_through_the_judgements_one_by_one(
    rows: list[list[tuple[int, str, float, float]]],
) -> None:
    import pyarrow as pa

    seen = Survey()
    lists = [[judgement(*one) for one in row] for row in rows]
    for begin in range(0, len(lists), 2):  # batches, of which not every one has every principle
        seen.add(pa.array(lists[begin : begin + 2], JUDGED_ROW.field("judgements").type))
    each = [one for row in lists for one in row]
    assert seen.pairs == sum(len({(one["first"], one["second"]) for one in row}) for row in lists)
    for name, opinions in seen.opinions.items():
        own = [one for one in each if one["principle"] == name]
        assert opinions.count == len(own)
        assert opinions.consistent == sum(one["consistent"] for one in own)
        liking = [(one["s12"] - one["s21"]) / 2 for one in own]
        assert opinions.prefers_first_shown == pytest.approx(np.mean(liking), nan_ok=True, abs=1e-5)
    for one, other in combinations(seen.opinions, 2):
        same = [
            (a["score"] > 0) == (b["score"] > 0)
            for row in lists
            for a in row
            for b in row
            if (a["principle"], b["principle"]) == (one, other) and a["score"] and b["score"]
            if (a["first"], a["second"]) == (b["first"], b["second"])
        ]
        expected = np.mean(same) if same else np.nan
        assert seen.agreement(one, other) == pytest.approx(expected, nan_ok=True)


def test_the_page_tells_consistency_liking_for_a_position_and_who_agrees(make_dataset: MakeDataset) -> None:
    rows = [
        [
            judgement(0, "sure", 2.0, 1.0),
            judgement(0, "contrary", -2.0, -1.0),
            judgement(0, f"blind {ATTACK}", 3.0, -2.0),
        ]
        for _ in range(8)
    ]
    page = Page(judgements_page(dataset_of(make_dataset, [*rows, []])))
    assert "24 judgements of 8 pairs of 9 prompts, under 3 principles" in page.text
    assert "in 66.7% of them" in page.text and "tells little" not in page.text
    assert {"Debiased scores", "Liking for a position"} < set(page.charts)
    assert ["sure", "8", "100.0%", "+0.500"] in page.rows
    assert [f"blind {ATTACK}", "8", "0.0%", "+2.500"] in page.rows
    assert "1 principle under which the judge has no opinion" in page.text
    assert ["1 sure", "", "0%", "100%"] in page.rows and ["2 contrary", "0%", "", "0%"] in page.rows
    assert ["sure", "completion 1", "+1.50", "+2.00", "+1.00"] in page.rows
    assert ["contrary", "completion 2", "-1.50", "-2.00", "-1.00"] in page.rows
    assert [f"blind {ATTACK}", "depends on the order", "+0.50", "+3.00", "-2.00"] in page.rows
    assert f"answer 1 {ATTACK}" in page.text and page.loaded == [] and page.scripts == []


@pytest.mark.parametrize("rows", [[[]], [[judgement(0, "a", 1.0, -1.0)]]])
def test_a_judge_that_says_nothing_or_sees_the_position_alone_is_called_so(
    rows: list[list[JudgementRow]], make_dataset: MakeDataset
) -> None:
    dataset = dataset_of(make_dataset, rows)
    page, rate = Page(judgements_page(dataset)), overall(survey(dataset).opinions, ["a"])
    assert ("tells little" in page.text) == (rate == 0)
    assert ("There is no judgement" in page.text) == bool(np.isnan(rate)) == (not page.charts)
    assert "Agreement between principles" not in page.text


def test_the_page_of_a_merge_is_that_of_what_was_merged(make_dataset: MakeDataset) -> None:
    from kubealign_components.artifacts import _page_of

    judged = dataset_of(make_dataset, [[judgement(0, "sure", 2.0, 1.0)]])
    assert "Liking for a position" in Page(_page_of(judged)).charts
    sampled = [{n: v for n, v in row.items() if n != "judgements"} for row in judged_rows([[]])]
    assert "Liking for a position" not in Page(_page_of(make_dataset(sampled, COMPLETIONS))).charts
