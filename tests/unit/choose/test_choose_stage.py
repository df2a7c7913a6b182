"""choose: the variants of a sweep, held against what was planted in their evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.stage import run
from kubealign_components.data.choice_rows import CHOICE, ChoiceRow
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION, MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.data.trained import chosen_row
from kubealign_components.errors import ConfigError, DataError, GateError
from support.pages import Page
from support.run_folders import completions

PROMPTS = 40


def evaluation(
    folder: Path,
    beta: float,
    gain: float,
    *,
    kl: float | None = 1.0,
    kl_error: float | None = 0.1,
    tokens: int = 20,
    prompts: range = range(PROMPTS),
    reward: str = "brevity",
    rewarded: bool = True,
) -> Dataset:
    """The evaluation of a model trained with ``beta``, which gained ``gain`` in the mean of its prompts."""
    model = folder / f"model-{beta}"
    if not model.exists():
        with DatasetWriter(str(model), MODEL, derive("train", 1, {"beta": beta, "seed": 0})) as writer:
            writer.commit(Stats())
    noise = np.random.default_rng(int(1000 * beta)).normal(0, 0.05, PROMPTS)
    rows = []
    for prompt in prompts:
        sides = [completions("before", [0.0]), completions("after", [gain + noise[prompt] - noise.mean()])]
        sides[1][0]["num_tokens"] = tokens + prompt % 3
        rows.append(
            {"prompt_id": f"{prompt:03d}", "messages": "[]", "reference": sides[0], "aligned": sides[1]}
            | {"reward_difference": gain}
        )
    params = {"reward": {"function": reward}}
    inputs = {"model": Dataset.open(str(model), allow_empty=True)}
    made = derive("evaluate", 1, params, inputs=inputs)
    uri = str(folder / f"evaluation-{made.fingerprint[:8]}-{len(prompts)}-{gain}")
    stats = Stats(rows_in=len(rows), rows_out=len(rows))
    stats.numbers |= {"reward_gain": gain} if rewarded else {}
    stats.numbers |= {} if kl is None else {"kl_per_completion": kl}
    stats.numbers |= {} if kl_error is None else {"kl_standard_error": kl_error}
    with DatasetWriter(uri, EVALUATION, made) as writer:
        writer.write_rows(rows)
        writer.commit(stats)
    return Dataset.open(uri)


def chosen_of(folder: Path, evaluations: list[Dataset], **settings: Any) -> tuple[list[ChoiceRow], Stats]:
    output = str(folder / f"choice-{len(list(folder.glob('choice-*')))}")
    stats = run(ChooseConfig(**settings), evaluations=evaluations, output=output, report=f"{output}.html")
    return list(Dataset.open(output, CHOICE).iter_rows(of=ChoiceRow)), stats


def test_the_variant_with_the_highest_bound_is_chosen(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, 0.05, 0.5, kl=9.0, tokens=60),
        evaluation(tmp_path, 0.1, 0.3, kl=2.0, tokens=20),
        evaluation(tmp_path, 0.3, 0.1, kl=3.0, tokens=30),
    ]
    rows, stats = chosen_of(tmp_path, evaluations)
    assert [row["variant"] for row in rows] == ["train_beta=0.05", "train_beta=0.1", "train_beta=0.3"]
    assert [json.loads(row["settings"]) for row in rows] == [{"train_beta": b} for b in (0.05, 0.1, 0.3)]
    assert [row["chosen"] for row in rows] == [True, False, False]
    assert [row["on_front"] for row in rows] == [True, True, False]
    for row, gain in zip(rows, (0.5, 0.3, 0.1), strict=True):
        assert row["gain"] == pytest.approx(gain)
        assert row["gain_low"] < gain < row["gain_high"]
        assert row["behind"] == pytest.approx(0.5 - gain)
    assert rows[1]["behind_low"] > 0
    assert rows[0]["model"].endswith("model-0.05")
    assert stats.numbers["chosen_gain_low"] == pytest.approx(rows[0]["gain_low"])
    assert stats.metrics()["rows_out"] == 3


def test_limits_keep_costly_variants_from_being_chosen(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, 0.05, 0.5, kl=9.0, tokens=60),
        evaluation(tmp_path, 0.1, 0.3, kl=2.0, tokens=2),
        evaluation(tmp_path, 0.2, 0.4, kl=None, tokens=2),
    ]
    rows, _ = chosen_of(tmp_path, evaluations, max_kl=5.0)
    assert [row["chosen"] for row in rows] == [False, True, False]
    rows, _ = chosen_of(tmp_path, evaluations, max_length_ratio=2.0)
    assert [row["chosen"] for row in rows] == [False, False, True]
    rows, _ = chosen_of(tmp_path, evaluations, max_kl=9.1)  # of which a KL of 9.0 ± 0.1 is not shown
    assert [row["chosen"] for row in rows] == [False, True, False]
    with pytest.raises(GateError, match="with the upper end of its interval"):  # 2.975 of 3 tokens by luck
        chosen_of(tmp_path, evaluations, max_length_ratio=1.02)
    assert chosen_row(Dataset.open(str(tmp_path / "choice-2")))["model"].endswith("model-0.2")
    with pytest.raises(GateError, match="no variant keeps to max_kl"):
        chosen_of(tmp_path, evaluations, max_kl=0.5)
    with pytest.raises(DataError, match="has no chosen model"):
        chosen_row(Dataset.open(str(tmp_path / "choice-6")))
    with pytest.raises(GateError, match=r"expected at least min_gain=\+0\.6000"):
        chosen_of(tmp_path, evaluations, min_gain=0.6)


def test_a_kl_of_a_single_prompt_has_no_interval_and_keeps_to_no_limit(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, 0.05, 0.5, kl=1.0, kl_error=None),
        evaluation(tmp_path, 0.1, 0.3, kl=2.0),
    ]
    rows, _ = chosen_of(tmp_path, evaluations, max_kl=5.0)
    assert [row["chosen"] for row in rows] == [False, True]
    assert [(row["kl"], row["kl_low"]) for row in rows] == [
        (1.0, None),
        (2.0, pytest.approx(2 - 0.196, abs=1e-3)),
    ]


def test_it_is_one_choice_whatever_order_and_however_often(tmp_path: Path) -> None:
    evaluations = [evaluation(tmp_path, beta, beta) for beta in (0.1, 0.2, 0.3)]
    once, _ = chosen_of(tmp_path, evaluations)
    again, stats = chosen_of(tmp_path, [*reversed(evaluations), evaluations[0]])
    assert once == again
    assert stats.dropped == {"same_as_another": 1}
    first, second = (Dataset.open(str(tmp_path / f"choice-{n}")).manifest for n in (0, 2))
    assert first.fingerprint == second.fingerprint
    assert {step["stage"] for step in first.recipe.values()} == {"train", "evaluate", "choose"}


def test_only_prompts_that_all_have_are_compared(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, 0.1, 0.1, prompts=range(30)),
        evaluation(tmp_path, 0.2, 0.2, prompts=range(10, 40)),
    ]
    _, stats = chosen_of(tmp_path, evaluations)
    assert stats.numbers["compared_prompts"] == 20
    page = Page((tmp_path / "choice-0.html").read_text())
    assert stats.numbers["prompts_not_compared"] == 20
    assert "20 held-out prompts are not compared" in page.text
    assert "A (train_beta=0.1) lacks 10; B (train_beta=0.2) lacks 10" in page.text
    with pytest.raises(DataError, match="1 held-out prompts are in all 2 evaluations"):
        chosen_of(tmp_path, [evaluations[1], evaluation(tmp_path, 0.3, 0.1, prompts=range(11))])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = evaluation(tmp_path, 0.1, 0.1)
    with pytest.raises(ConfigError, match="by one reward"):
        chosen_of(tmp_path, [first, evaluation(tmp_path, 0.2, 0.1, reward="length")])
    with pytest.raises(ConfigError, match="with a reward"):
        chosen_of(tmp_path, [evaluation(tmp_path, 0.3, 0.1, rewarded=False)])


def test_the_page_names_the_rule_the_correction_and_who_is_as_good(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, 0.1, 0.010, kl=3.0, prompts=range(20)),
        evaluation(tmp_path, 0.2, 0.011, kl=4.0, prompts=range(20)),
        evaluation(tmp_path, 0.3, -0.5, prompts=range(20)),
    ]
    rows, _ = chosen_of(tmp_path, evaluations)
    page = Page((tmp_path / "choice-0.html").read_text())
    [chosen] = [row for row in rows if row["chosen"]]
    assert f"Chosen is {chosen['variant']}" in page.text
    assert "The rule: the highest lower bound of the gain" in page.text
    assert "for all 3 variants at once" in page.text
    assert "1 of the 2 others cannot be told from the chosen one" in page.text
    assert "20 held-out prompts are few" in page.text
    assert len(page.charts) == 2
    assert not page.loaded
    assert [row[0][0] for row in page.rows if row[1:]][1:4] == ["A", "B", "C"]
    assert [row[1] for row in page.rows if row[1:]][:4] == ["train beta", "0.1", "0.2", "0.3"]
