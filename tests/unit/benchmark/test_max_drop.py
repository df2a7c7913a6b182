"""max_drop: what fails a run, and what is only told."""

from __future__ import annotations

import pytest

from kubealign_components.benchmark.config import BenchmarkConfig
from kubealign_components.benchmark.gates import unmet
from kubealign_components.benchmark.results import BenchmarkResult
from kubealign_components.errors import ConfigError


def result(
    metric: str, difference: float, half: float | None = 0.01, *, up: bool | None = True
) -> BenchmarkResult:
    return BenchmarkResult(
        task="arc_easy",
        version="1",
        metric=metric,
        filter="none",
        num_fewshot=0,
        documents=100,
        higher_is_better=up,
        reference=0.5,
        reference_se=0.01,
        aligned=0.5 + difference,
        aligned_se=0.01,
        difference_se=None if half is None else half / 2,
        difference_low=None if half is None else difference - half,
        difference_high=None if half is None else difference + half,
    )


def test_the_whole_interval_keeps_to_the_margin() -> None:
    assert unmet({"arc_easy": 0.02}, [result("acc", -0.01)]) == []
    [reason] = unmet({"arc_easy": 0.02}, [result("acc", -0.01, 0.0101)])
    assert reason == (
        "arc_easy_acc changed by -0.0100 (95 % interval -0.0201 to +0.0001), expected an interval without a "
        "loss of more than 0.02"
    )
    assert unmet({"arc_easy": 0.0}, [result("acc", 0.5)]) == []
    assert len(unmet({"arc_easy": 0.0}, [result("acc", 0.0)])) == 1


def test_a_rise_of_what_should_be_low_is_a_loss() -> None:
    assert unmet({"arc_easy": 0.02}, [result("perplexity", -0.5, up=False)]) == []
    assert len(unmet({"arc_easy": 0.02}, [result("perplexity", 0.5, up=False)])) == 1


def test_a_task_stands_for_all_of_its_metrics_and_a_metric_for_itself() -> None:
    both = [result("acc", 0.0), result("acc_norm", -0.2)]
    [reason] = unmet({"arc_easy": 0.05}, both)
    assert reason.startswith("arc_easy_acc_norm ")
    assert unmet({"arc_easy_acc": 0.05}, both) == []


def test_what_has_no_interval_shows_nothing() -> None:
    without = result("bleu", 0.0, None)
    assert unmet({"arc_easy": 0.05}, [result("acc", 0.0), without]) == []
    assert unmet({"arc_easy_bleu": 1.0}, [without]) == [
        "arc_easy_bleu: none of its metrics has a difference with an interval"
    ]
    [reason] = unmet({"arc_easy_f1": 1.0}, [without])
    assert "nothing of that name was measured; there are arc_easy_bleu" in reason


@pytest.mark.parametrize(
    ("max_drop", "message"),
    [
        ({"arc_easi": 0.1}, "max_drop='arc_easi': expected the name of one of tasks, or of a metric of it"),
        ({"arc_easy": -0.1}, r"max_drop\[arc_easy\]=-0.1: expected 0 or more"),
    ],
)
def test_margins_are_of_what_is_measured(max_drop: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchmarkConfig(policy="org/policy", tasks=("arc_easy",), max_drop=max_drop)
