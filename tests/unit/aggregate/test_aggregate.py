"""aggregate: the published distribution and rules by value, and what must hold whatever the data."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from kubealign_components.aggregate.component import aggregate
from kubealign_components.aggregate.draws import Odds, draw, truncated_geometric
from kubealign_components.aggregate.labels import POLICIES
from kubealign_components.aggregate.rules import RuleInput, RuleSpec, Verdict, language_mismatch
from kubealign_components.aggregate.scales import Moments
from kubealign_components.aggregate.stage import AggregateConfig, run
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.language import identify_language
from kubealign_components.data.opinions import Opinions
from kubealign_components.data.principles import load_principles
from kubealign_components.data.schemas import JUDGED, PREFERENCES, pair_id
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, EmptyDataset, GateError
from kubealign_components.reports.html import REPORT
from support.pages import Page
from support.tiny import prompt_row

Row = dict[str, Any]
Scores = Sequence[tuple[float, float]]

NAMES = load_principles("judging").of_stage("reward_model").names
PLAIN: dict[str, Any] = {"rules": (), "label_noise": 0.0, "scale": "none", "validation_fraction": 0.0}


def judged_row(name: object, scores: Scores, texts: Sequence[str] = ("Yes.", "No."), **columns: Any) -> Row:
    """A judged prompt of one pair; ``scores`` are (s12, s21) by principle of the reward model."""
    row = prompt_row(f"prompt {name}", texts)
    row["judgements"] = [judgement(0, 1, n, *pair) for n, pair in zip(NAMES, scores)]
    return row | columns


def judgement(first: int, second: int, name: str, s12: float, s21: float) -> Row:
    return {
        "first": first,
        "second": second,
        "principle": name,
        "s12": s12,
        "s21": s21,
        "score": (s12 + s21) / 2,
        "consistent": s12 * s21 > 0,
    }


def swapped(row: Row) -> Row:
    """The same judged prompt, with its completions called in the other order."""
    return row | {
        "completions": row["completions"][::-1],
        "judgements": [
            judgement(j["second"], j["first"], j["principle"], j["s12"], j["s21"])
            | {"first": 1 - j["first"], "second": 1 - j["second"]}
            for j in row["judgements"]
        ],
    }


def called_second_first(row: Row) -> Row:
    """The same judgements, written from the other completion's side."""
    judgements = [
        judgement(j["second"], j["first"], j["principle"], -j["s21"], -j["s12"]) for j in row["judgements"]
    ]
    return row | {"judgements": judgements}


@pytest.fixture
def aggregated(tmp_path: Path) -> Callable[..., tuple[list[Row], Stats, Dataset]]:
    """``aggregated(rows, shard=…, **settings)``: rows out, counts, dataset."""
    made = 0

    def make(rows: Sequence[Row], *, shard: int = 1000, **given: Any) -> tuple[list[Row], Stats, Dataset]:
        nonlocal made
        made += 1
        folder = tmp_path / str(made)
        with DatasetWriter(str(folder / "in"), JUDGED, derive("test", 1, {})) as writer:
            for start in range(0, len(rows), shard):
                writer.write_rows(rows[start : start + shard])
                writer.close_shard()
            judged = writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))
        stats = run(AggregateConfig(**given), judged=judged, output=str(folder / "out"))
        dataset = Dataset.open(str(folder / "out"), PREFERENCES, allow_empty=True)
        out = list(dataset.iter_rows())
        return [row | {"metadata": json.loads(row["metadata"])} for row in out], stats, dataset

    return make


Aggregated = Callable[..., tuple[list[Row], Stats, Dataset]]


def by_id(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["pair_id"]: row for row in rows}


def preferred_text(row: Row) -> str:
    completion = row["completions"][row["preferred"]]
    return str(json.loads(completion["messages"])[0]["content"])


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        judged_row(i, [(rng.gauss(0.5, 1), rng.gauss(-0.2, 1)) for _ in NAMES], [f"Yes {i}.", f"No {i}."])
        for i in range(count)
    ]


# --- how many principles, and which --------------------------------------------------------------


def test_the_number_of_principles_has_the_published_distribution() -> None:
    probabilities = truncated_geometric(0.2, 8)
    published = [0.240, 0.192, 0.154, 0.123, 0.098, 0.079, 0.063, 0.050]
    assert probabilities == pytest.approx(published, abs=6e-4)
    assert float(np.arange(1, 9) @ probabilities) == pytest.approx(3.39, abs=5e-3)


def test_truncating_is_drawing_again_until_it_fits() -> None:
    drawn = np.random.default_rng(0).geometric(0.35, 200_000)
    seen = np.bincount(drawn[drawn <= 5], minlength=6)[1:] / (drawn <= 5).sum()
    assert truncated_geometric(0.35, 5) == pytest.approx(seen, abs=4e-3)


def test_draws_follow_the_distribution_and_use_every_principle_alike() -> None:
    odds = Odds(principles=8, p=0.2, most=8, negation=0.5)
    draws = [draw(odds, 1, 7, f"pair {i}") for i in range(20_000)]
    lengths = np.bincount([len(d.principles) for d in draws], minlength=9)[1:] / len(draws)
    assert lengths == pytest.approx(truncated_geometric(0.2, 8), abs=0.012)
    first = np.bincount([d.principles[0] for d in draws]) / len(draws)
    assert first == pytest.approx([1 / 8] * 8, abs=0.012)
    assert np.mean([n for d in draws for n in d.negated]) == pytest.approx(0.5, abs=0.01)
    assert np.mean([d.swapped for d in draws]) == pytest.approx(0.5, abs=0.012)
    assert all(len(set(d.principles)) == len(d.principles) for d in draws)


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(0, 5), st.integers(0, 100))
def test_another_rule_leaves_every_other_choice_as_it_is(p: float, most: int, rules: int, seed: int) -> None:
    odds = Odds(principles=12, p=p, most=most, negation=0.3)
    fewer, more = (draw(odds, n, seed, "pair") for n in (rules, rules + 1))
    assert more.rules[:rules] == fewer.rules
    assert (more.principles, more.negated, more.flip, more.tie, more.swapped) == (
        fewer.principles,
        fewer.negated,
        fewer.flip,
        fewer.tie,
        fewer.swapped,
    )
    assert 1 <= len(more.principles) <= most


def test_negation_zero_and_one_are_never_and_always() -> None:
    for negation, expected in ((0.0, False), (1.0, True)):
        odds = Odds(principles=8, p=0.2, most=8, negation=negation)
        drawn = [n for i in range(200) for n in draw(odds, 0, 0, i).negated]
        assert set(drawn) == {expected}


# --- scores, scales, labels ----------------------------------------------------------------------

FINITE = st.floats(-1e4, 1e4, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=8), st.sampled_from(sorted(POLICIES)))
def test_negating_every_score_negates_the_support(scores: list[float], policy: str) -> None:
    assert POLICIES[policy]([-s for s in scores]) == -POLICIES[policy](scores)


@pytest.mark.parametrize(
    ("policy", "support"), [("dominant", -3.0), ("sum", 1.5), ("vote", pytest.approx(1 / 3))]
)
def test_the_policies_by_value(policy: str, support: float) -> None:
    assert POLICIES[policy]([2.5, -3.0, 2.0]) == support


@given(st.lists(FINITE, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_moments_do_not_depend_on_the_order(values: list[float], rng: random.Random) -> None:
    shuffled = rng.sample(values, len(values))
    one, other = Moments(), Moments()
    one.add(values)
    for value in shuffled:
        other.add([value])
    assert one.variance() == other.variance()
    assert one.variance() == pytest.approx(np.var(values), rel=1e-6, abs=1e-6)


def test_scales_by_value() -> None:
    moments = Moments()
    moments.add([1.0, 3.0, 5.0, 7.0])
    assert [moments.scale(kind) for kind in ("variance", "std", "none")] == [5.0, 5.0**0.5, 1.0]
    flat = Moments()
    flat.add([2.0, 2.0])
    assert flat.scale("variance") == 1.0


def test_the_scale_is_the_variance_of_both_orders_over_the_dataset(aggregated: Aggregated) -> None:
    rows = random_rows(30)
    _, _, dataset = aggregated(rows, rules=())
    scores: list[float] = []
    for row in rows:
        ids = [c["completion_id"] for c in row["completions"]]
        sign = 1 if ids[0] < ids[1] else -1
        scores += [sign * row["judgements"][0][order] for order in ("s12", "s21")]
    (first, *_) = dataset.manifest.extra["principles"]
    assert first["name"] == "Concise"
    assert first["scale"] == pytest.approx(np.var(scores), rel=1e-9)


def test_one_row_by_hand(aggregated: Aggregated) -> None:
    # One principle, never negated, no noise: (3 + 1) / 2 for the first completion.
    row = judged_row("a", [(3.0, 1.0)])
    (made,), stats, _ = aggregated([row], **PLAIN, names=("Concise",), negation=0.0, passes=1)
    assert preferred_text(made) == "Yes."
    assert made["margin"] == 2.0
    assert made["principles"] == [
        {"name": "Concise", "negated": False, "text": load_principles("judging").get("Concise").positive}
    ]
    shown = 2.0 if preferred_text(made | {"preferred": 0}) == "Yes." else -2.0
    assert made["metadata"] == {
        "dominant": "Concise",
        "flipped": False,
        "pass": 0,
        "rule": None,
        "scores": [shown],
        "swapped": made["metadata"]["swapped"],
    }
    assert made["split"] == "train"
    assert made["pair_id"] == pair_id(row["prompt_id"], [c["completion_id"] for c in row["completions"]], 0)
    assert stats.metrics()["dominant_concise"] == 1


def test_scores_of_which_the_orders_disagree_count_nothing(aggregated: Aggregated) -> None:
    scores = [(3.0, -9.0), (0.5, 0.25), *[(1.0, -1.0)] * 6]
    rows, _, _ = aggregated([judged_row("a", scores)], **PLAIN, negation=0.0, passes=40)
    assert rows
    assert {row["metadata"]["dominant"] for row in rows} == {"Honest and Accurate"}
    assert {preferred_text(row) for row in rows} == {"Yes."}
    assert {row["margin"] for row in rows} == {0.375}


def test_of_inconsistent_judgements_the_mean_can_count(aggregated: Aggregated) -> None:
    scores = [(3.0, -9.0), *[(1.0, -1.0)] * 7]
    rows, _, _ = aggregated([judged_row("a", scores)], **PLAIN, negation=0.0, passes=40, inconsistent="mean")
    assert rows
    assert {preferred_text(row) for row in rows} == {"No."}
    assert {row["margin"] for row in rows} == {3.0}


def test_ties_are_dropped_or_labelled_by_a_coin(aggregated: Aggregated) -> None:
    rows = [judged_row(i, [(1.0, -1.0)] * 8) for i in range(300)]
    none, stats, _ = aggregated(rows, **PLAIN)
    assert (none, stats.dropped) == ([], Counter(tie=1200))
    kept, stats, _ = aggregated(rows, **PLAIN, ties="coin")
    assert len(kept) == 1200
    assert {(row["margin"], row["metadata"]["dominant"]) for row in kept} == {(0.0, None)}
    assert Counter(map(preferred_text, kept))["Yes."] == pytest.approx(600, abs=80)


def test_a_negated_principle_has_its_negative_text_and_the_other_label(aggregated: Aggregated) -> None:
    rows = random_rows(40)
    plain, _, _ = aggregated(rows, **PLAIN, negation=0.0)
    negated, _, _ = aggregated(rows, **PLAIN, negation=1.0)
    assert by_id(plain).keys() == by_id(negated).keys()
    judging = load_principles("judging")
    for name, row in by_id(plain).items():
        other = by_id(negated)[name]
        assert other["preferred"] == 1 - row["preferred"]
        assert other["margin"] == row["margin"]
        assert other["metadata"]["scores"] == [-s for s in row["metadata"]["scores"]]
        assert [p["text"] for p in other["principles"]] == [
            judging.get(p["name"]).negative for p in row["principles"]
        ]


# --- what must not matter ------------------------------------------------------------------------


@settings(max_examples=16)
@given(
    seed=st.integers(0, 1000),
    order=st.randoms(use_true_random=False),
    shard=st.integers(1, 9),
    scale=st.sampled_from(["variance", "none"]),
)
def test_neither_the_order_of_rows_nor_chunks_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: random.Random, shard: int, scale: str
) -> None:
    rows = random_rows(9, seed)
    shuffled = [order.choice([dict, swapped, called_second_first])(row) for row in order.sample(rows, 9)]
    made = []
    for number, (given_rows, size) in enumerate([(rows, 9), (shuffled, shard)]):
        folder = tmp_path_factory.mktemp(f"run{number}")
        with DatasetWriter(str(folder / "in"), JUDGED, derive("test", 1, {})) as writer:
            for start in range(0, 9, size):
                writer.write_rows(given_rows[start : start + size])
                writer.close_shard()
            judged = writer.commit(Stats(rows_in=9, rows_out=9))
        config = AggregateConfig(scale=scale, rules=(), seed=seed)
        run(config, judged=judged, output=str(folder / "out"))
        made.append(by_id(list(Dataset.open(str(folder / "out"), allow_empty=True).iter_rows())))
    assert made[0] == made[1]


def test_the_order_coin_flips_the_position_and_nothing_else(aggregated: Aggregated) -> None:
    rows, stats, _ = aggregated(random_rows(100), **PLAIN, names=("Concise",), negation=0.0, passes=2)
    sides = Counter()
    for row in rows:
        (score,) = row["metadata"]["scores"]
        assert row["preferred"] == int(score < 0)
        ids = [c["completion_id"] for c in row["completions"]]
        assert row["metadata"]["swapped"] == (ids[0] > ids[1])
        sides[row["preferred"]] += 1
    assert stats.counts["swapped"] == pytest.approx(len(rows) / 2, abs=30)
    assert sides[0] == pytest.approx(len(rows) / 2, abs=30)


def test_more_passes_add_rows_and_change_none(aggregated: Aggregated) -> None:
    rows = random_rows(20)
    few, _, _ = aggregated(rows, passes=2)
    many, _, _ = aggregated(rows, passes=5)
    assert by_id(few).items() <= by_id(many).items()
    assert {row["metadata"]["pass"] for row in many} == set(range(5))


def test_the_seed_decides(aggregated: Aggregated) -> None:
    rows = random_rows(20)
    one, again, other = (aggregated(rows, seed=seed) for seed in (1, 1, 2))
    assert one[0] == again[0]
    assert one[0] != other[0]
    assert one[2].manifest.fingerprint == again[2].manifest.fingerprint != other[2].manifest.fingerprint


def test_all_draws_of_a_prompt_are_on_one_side_of_the_split(aggregated: Aggregated) -> None:
    rows, _, _ = aggregated(random_rows(60), validation_fraction=0.4)
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["prompt_id"], set()).add(row["split"])
    assert {len(side) for side in sides.values()} == {1}
    assert {side for both in sides.values() for side in both} == {"train", "validation"}


# --- noise and rules -----------------------------------------------------------------------------


def test_label_noise_flips_the_published_share(aggregated: Aggregated) -> None:
    rows = random_rows(300)
    clean, _, _ = aggregated(rows, **PLAIN)
    noisy, stats, _ = aggregated(rows, **PLAIN | {"label_noise": 0.1})
    flipped = [
        name for name, row in by_id(clean).items() if by_id(noisy)[name]["preferred"] != row["preferred"]
    ]
    assert set(flipped) == {name for name, row in by_id(noisy).items() if row["metadata"]["flipped"]}
    assert len(flipped) == stats.counts["flipped"] == pytest.approx(0.1 * len(clean), rel=0.3)


REFUSAL = "As an AI language model, I have no opinion."


def test_a_refusal_phrase_loses_where_the_rule_is_asked(aggregated: Aggregated) -> None:
    rows = [judged_row(i, [(2.0, 2.0)] * 8, [REFUSAL, "No."]) for i in range(200)]
    rule = RuleSpec(function="refusal_phrase", probability=0.5, flip_rate=0.0)
    made, stats, _ = aggregated(rows, **PLAIN | {"rules": (rule,)}, negation=0.0)
    decided = [row for row in made if row["metadata"]["rule"] == "refusal_phrase"]
    assert {preferred_text(row) for row in decided} == {"No."}
    assert {row["margin"] for row in decided} == {None}
    others = [row for row in made if row["metadata"]["rule"] is None]
    assert {preferred_text(row) for row in others} == {REFUSAL}
    assert len(decided) == stats.counts["decided_by_refusal_phrase"] == pytest.approx(400, abs=60)


def test_rows_that_a_rule_decides_have_its_own_flip_rate(aggregated: Aggregated) -> None:
    rows = [judged_row(i, [(2.0, 2.0)] * 8, [REFUSAL, "No."]) for i in range(20)]
    rule = RuleSpec(function="refusal_phrase", flip_rate=1.0)
    made, _, _ = aggregated(rows, **PLAIN | {"rules": (rule,)}, negation=0.0)
    assert {preferred_text(row) for row in made} == {REFUSAL}
    assert {row["metadata"]["flipped"] for row in made} == {True}


ENGLISH = "The museum is open every day of the week except on Mondays."
FRENCH = "Le musée est ouvert tous les jours de la semaine sauf le lundi."
GERMAN = "Das Museum ist jeden Tag der Woche außer montags geöffnet."


@pytest.mark.parametrize(
    ("completions", "verdict"),
    [
        ((FRENCH, ENGLISH), Verdict(preferred=1)),
        ((ENGLISH, FRENCH), Verdict(preferred=0)),
        ((ENGLISH, ENGLISH + " Come early."), Verdict()),
        ((FRENCH, GERMAN), Verdict(drop=True)),
        ((FRENCH, "42"), Verdict()),
        (("Ok", "42"), Verdict()),
    ],
)
def test_the_language_rule(completions: tuple[str, str], verdict: Verdict) -> None:
    question = "When can I visit the museum, and on which days is it closed?"
    messages = [{"role": "user", "content": question}]
    asked = RuleInput(messages=messages, prompt=question, completions=completions)
    assert language_mismatch(asked) == verdict


def test_the_language_identifier_knows_what_it_does_not_know() -> None:
    assert [identify_language(text) for text in (ENGLISH, FRENCH, GERMAN)] == ["en", "fr", "de"]
    assert [identify_language(text) for text in ("42", "Ok", "", "x = y")] == [None] * 4


def test_the_language_rule_overrules_the_refusal_rule_and_drops(aggregated: Aggregated) -> None:
    question = prompt_row("When can I visit the museum, and on which days is it closed?")["messages"]
    both = {"messages": question}
    rows = [
        judged_row("a", [(-1.0, -1.0)] * 8, [f"{REFUSAL} {ENGLISH}", FRENCH], **both),
        judged_row("b", [(1.0, 1.0)] * 8, [GERMAN, FRENCH], **both),
    ]
    rules = tuple(RuleSpec(function=f, flip_rate=0.0) for f in ("refusal_phrase", "language_mismatch"))
    made, stats, _ = aggregated(rows, **PLAIN | {"rules": rules})
    assert [preferred_text(row) for row in made] == [f"{REFUSAL} {ENGLISH}"] * 4
    assert {row["metadata"]["rule"] for row in made} == {"language_mismatch"}
    assert stats.dropped == Counter(rule_language_mismatch=4)


def prefer_shorter(pair: RuleInput, by: int = 0) -> Verdict:
    """A user's own rule."""
    short, long = sorted((0, 1), key=lambda i: len(pair.completions[i]))
    far = len(pair.completions[long]) - len(pair.completions[short]) > by
    return Verdict(preferred=short if far else None)


def opinionated(pair: RuleInput) -> int:
    return 1


def test_a_users_own_rule_needs_only_to_be_importable(aggregated: Aggregated) -> None:
    rows = [judged_row(i, [(1.0, 1.0)] * 8, ["A longer answer.", "Short."]) for i in range(10)]
    own = RuleSpec(function=f"{__name__}:prefer_shorter", flip_rate=0.0, settings={"by": 2.0})
    made, _, _ = aggregated(rows, **PLAIN | {"rules": (own,)}, negation=0.0)
    assert {preferred_text(row) for row in made} == {"Short."}
    assert own.settings == {"by": 2}
    with pytest.raises(DataError, match="opinionated returned 1, expected a Verdict"):
        aggregated(rows, rules=(RuleSpec(function=f"{__name__}:opinionated"),))


# --- counts, settings, bad input -----------------------------------------------------------------


def test_every_draw_is_a_row_or_counted(aggregated: Aggregated) -> None:
    whole = judged_row("whole", [(1.0, 2.0)] * 8)
    partly = judged_row("partly", [(1.0, 2.0)] * 7)
    same = judged_row("same", [(1.0, 2.0)] * 8, ["Same.", "Same."])
    none = judged_row("none", [])
    made, stats, dataset = aggregated([whole, partly, same, none], **PLAIN, passes=3)
    assert (stats.rows_in, stats.rows_out, len(made)) == (9, 3, 3)
    assert stats.dropped == Counter(missing_principle=3, identical_completions=3)
    assert (stats.counts["prompts"], stats.counts["pairs"]) == (4, 3)
    extra = dataset.manifest.extra
    assert sum(extra["principles_per_draw"]) == sum(p["dominant"] for p in extra["principles"]) == 3


def test_every_pair_of_a_prompt_counts(aggregated: Aggregated) -> None:
    row = prompt_row("prompt", ["A.", "B.", "C."])
    row["judgements"] = [
        judgement(first, second, name, 1.0, 1.0)
        for name in NAMES
        for first, second in ((0, 1), (0, 2), (1, 2))
    ]
    made, stats, _ = aggregated([row], **PLAIN, negation=0.0, passes=1)
    assert (stats.counts["pairs"], len(by_id(made))) == (3, 3)
    assert Counter(map(preferred_text, made)) == Counter({"A.": 2, "B.": 1})


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        pytest.param([judgement(0, 1, "Concise", float("nan"), 1.0)], "'Concise' is nan", id="nan"),
        pytest.param([judgement(0, 1, "Concise", 1.0, 1.0) | {"s21": None}], "is None", id="null"),
        pytest.param([judgement(0, 2, "Concise", 1.0, 1.0)], "completions 0 and 2", id="position"),
        pytest.param([judgement(1, 1, "Concise", 1.0, 1.0)], "completions 1 and 1", id="itself"),
        pytest.param(
            [judgement(0, 1, "Concise", 1.0, 1.0), judgement(1, 0, "Concise", 1.0, 1.0)],
            "judged twice by 'Concise'",
            id="twice",
        ),
    ],
)
def test_contradictory_judgements_are_refused(
    aggregated: Aggregated, judgements: list[Row], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        aggregated([judged_row("a", []) | {"judgements": judgements}])


def test_a_set_without_negatives_cannot_be_negated(tmp_path: Path, aggregated: Aggregated) -> None:
    body = {"schema": "kubealign.principles/v1", "name": "mine", "version": 1}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.dump(body | {"principles": [{"name": "Concise", "positive": "Short."}]}))
    row = judged_row("a", [(1.0, 1.0)])
    with pytest.raises(ConfigError, match="'Concise': negative"):
        aggregated([row], principles=str(path))
    made, _, dataset = aggregated([row], principles=str(path), negation=0.0, rules=())
    assert {p["text"] for r in made for p in r["principles"]} == {"Short."}
    assert dataset.manifest.provenance.step["params"]["principles"]["name"] == "mine"


def test_where_principles_lie_is_not_in_the_recipe_but_what_they_say_is(
    tmp_path: Path, aggregated: Aggregated
) -> None:
    body = {"schema": "kubealign.principles/v1", "name": "mine", "version": 1}
    prints = []
    for place, text in (("a", "Short."), ("b", "Short."), ("c", "Brief.")):
        (tmp_path / f"{place}.yaml").write_text(
            yaml.dump(body | {"principles": [{"name": "Concise", "positive": text}]})
        )
        _, _, dataset = aggregated(
            [judged_row("a", [(1.0, 1.0)])], principles=str(tmp_path / f"{place}.yaml"), negation=0.0
        )
        prints.append(dataset.manifest.fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_principles_must_say_what_the_pairs_were_judged_by(tmp_path: Path) -> None:
    mine = {"name": "Concise", "positive": "Short.", "negative": "Long."}

    def place(name: str, **change: Any) -> str:
        body = {"schema": "kubealign.principles/v1", "name": "mine", "version": 1}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.dump(body | {"principles": [mine | change]}))
        return str(path)

    shown = load_principles(place("before")).statements()
    rows = [judged_row("a", [(1.0, 1.0)])]
    with DatasetWriter(str(tmp_path / "in"), JUDGED, derive("judge", 1, {"principles": shown})) as writer:
        writer.write_rows(rows)
        judged = writer.commit(Stats(rows_in=1, rows_out=1))
    for number, change in enumerate([{}, {"negative": "Wordy."}, {"weight": 3}]):
        config = AggregateConfig(principles=place(f"now{number}", **change))
        run(config, judged=judged, output=str(tmp_path / f"out{number}"))
    config = AggregateConfig(principles=place("changed", positive="Brief."))
    with pytest.raises(ConfigError, match="Concise changed, so judge again"):
        run(config, judged=judged, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"passes": 0}, "passes"),
        ({"geometric_p": 0.0}, "geometric_p"),
        ({"max_principles": 0}, "max_principles"),
        ({"negation": 1.5}, "negation"),
        ({"label_noise": -0.1}, "label_noise"),
        ({"scale": "range"}, "scale"),
        ({"label": "mean"}, "label"),
        ({"ties": "keep"}, "ties"),
        ({"inconsistent": "half"}, "inconsistent"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"min_consistency": 60}, "min_consistency"),
        ({"min_principle_consistency": -0.1}, "min_principle_consistency"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}="):
        AggregateConfig(**given)


# --- what the judge's opinions are worth ---------------------------------------------------------


def scores_of(rates: Sequence[float], rows: int = 20) -> list[Row]:
    """Judged prompts in which, under each principle, a share of the judgements is consistent."""
    return [
        judged_row(i, [(1.0, 1.0 if i < rate * rows else -1.0) for rate in rates], [f"Yes {i}.", f"No {i}."])
        for i in range(rows)
    ]


def test_a_judge_near_chance_fails_the_run_before_anything_is_written(
    aggregated: Aggregated, tmp_path: Path
) -> None:
    rows = scores_of([0.5] * 7 + [0.9])
    with pytest.raises(GateError, match=r"agree on 55\.0% .* min_consistency=0\.6") as caught:
        aggregated(rows, min_consistency=0.6)
    assert all(f"{name} {'90.0' if name == NAMES[-1] else '50.0'}%" in str(caught.value) for name in NAMES)
    assert not (tmp_path / "1" / "out").exists()
    aggregated(rows, min_consistency=0.55)


def test_each_principle_has_a_gate_of_its_own_and_one_that_is_not_drawn_has_none(
    aggregated: Aggregated,
) -> None:
    rows = scores_of([0.9] * 7 + [0.3])
    aggregated(rows, min_consistency=0.8)
    with pytest.raises(GateError, match=rf"min_principle_consistency=0\.6 or more under {NAMES[-1]} too"):
        aggregated(rows, min_consistency=0.8, min_principle_consistency=0.6)
    aggregated(rows, min_principle_consistency=0.6, names=NAMES[:-1])


def test_a_principle_that_was_never_judged_does_not_pass_a_gate(aggregated: Aggregated) -> None:
    aggregated(scores_of([0.9] * 7))
    with pytest.raises(GateError, match=f"{NAMES[-1]} none at all"):
        aggregated(scores_of([0.9] * 7), min_principle_consistency=0.1)


def test_the_gate_is_no_part_of_the_recipe(aggregated: Aggregated) -> None:
    rows = scores_of([0.9] * 8)
    _, _, one = aggregated(rows)
    _, _, other = aggregated(rows, min_consistency=0.8)
    assert one.manifest.fingerprint == other.manifest.fingerprint


def test_pairs_of_which_none_was_judged_are_refused_by_name(aggregated: Aggregated) -> None:
    with pytest.raises(EmptyDataset, match=r"none of its 1 prompts has a judged pair.*sample with n=2"):
        aggregated([judged_row("a", [])])


def test_the_report_tells_rates_scores_and_what_became_of_the_pairs(aggregated: Aggregated) -> None:
    rows = [*scores_of([0.25] * 8), judged_row("tied", [(-1.0, 1.0)] * 8)]
    rows[0]["judgements"].append(judgement(0, 1, "Also <judged>", 2.0, 4.0))
    _, stats, dataset = aggregated(rows, passes=1, rules=())
    page = Page((Path(dataset.uri) / REPORT).read_text())
    assert f"{8 * 21 + 1} judgements of 21 pairs of 21 prompts" in page.text
    assert page.text.count("23.8%") == 1 + 1 + len(NAMES)  # overall, in the warning, by principle
    assert "these labels are mostly noise" in page.text
    assert f"{len(NAMES)} principles under which the judge has no opinion" in page.text
    assert page.text.index("Also <judged>") < page.text.index("has no opinion")
    cells = {row[0]: row[1] for row in page.rows}
    assert cells["Also <judged> (judged, not drawn from)"] == "1"
    assert cells["tie"] == str(stats.dropped["tie"])
    decided = max((one for one in dataset.manifest.extra["principles"]), key=lambda one: one["dominant"])
    assert [decided["name"], str(decided["dominant"])] in [row[:2] for row in page.rows]
    assert f"Scores under {decided['name']}" in page.charts


def test_the_histogram_holds_every_score() -> None:
    opinions = Opinions()
    values = np.arange(1000) / 100
    opinions.extend(values, values)
    opinions.extend(np.array([-500.0]), np.array([-500.0]))
    counts, low, high = opinions.histogram()
    assert sum(counts) == 1001
    assert low == -high
    assert high == pytest.approx(9.9, abs=0.1)
    assert counts[0] == 1  # the outlier, in the outer bin


def test_rules_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"rules\.function='refusal'.*language_mismatch"):
        RuleSpec(function="refusal")
    with pytest.raises(ConfigError, match=r"rules\.flip_rate=2"):
        RuleSpec(function="refusal_phrase", flip_rate=2)
    with pytest.raises(ConfigError, match="every rule once"):
        AggregateConfig(rules=(RuleSpec(function="refusal_phrase"),) * 2)


def test_the_component(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    judged = make_dataset(random_rows(5), JUDGED)
    artifact = dsl.Dataset(name="judged", uri=judged.uri, metadata={"schema": JUDGED})
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "out"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    options = {"ties": "coin", "rules": [{"function": "refusal_phrase", "settings": {"phrases": ["I am"]}}]}
    artifacts: dict[str, Any] = {"judged": artifact, "dataset": dataset, "metrics": metrics, "report": report}
    aggregate.python_func(**artifacts, passes=2, options=options)
    assert dataset.metadata["schema"] == PREFERENCES
    assert metrics.metadata["rows_out"] == dataset.metadata["rows"] == 10
