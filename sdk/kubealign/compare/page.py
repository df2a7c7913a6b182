"""Runs beside each other on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
from markupsafe import Markup

from kubealign.cli.console import duration, number_texts
from kubealign.compare.runs import ComparedRun, Floats, RunComparison, mean_reward
from kubealign_components.data.schemas import Completion, EvaluationRow
from kubealign_components.reports.charts import bounds, histogram
from kubealign_components.reports.html import fitting, messages_text, render

BINS = 24
TEXTS = 40
"""Most prompts whose texts are shown."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class SharedTexts(TypedDict):
    """What the runs answered to one prompt."""

    prompt: str
    sides: list[tuple[str, str, str]]
    """Name, facts and text."""
    spread: float
    """Largest less smallest mean reward of the aligned models."""


def compare_page(comparison: RunComparison) -> str:
    """A self-contained page."""
    shared = comparison.shared()
    return render(
        "kubealign/compare/page.html",
        names=comparison.names,
        runs=[run_row(run) for run in comparison.runs],
        notes=comparison.notes(),
        differences=difference_rows(comparison),
        settings=setting_rows(comparison),
        evaluation=number_rows(comparison.evaluation()),
        stages=number_rows(comparison.stages()),
        charts=list(_charts(comparison.runs)),
        quantiles=quantile_rows(comparison.runs),
        shared=len(shared),
        texts=fitting(
            (shared_texts(comparison.runs, name) for name in spread_evenly(shared, TEXTS)),
            lambda shown: [shown["prompt"], *(text for _, _, text in shown["sides"])],
        ),
    )


def setting_rows(comparison: RunComparison) -> list[list[str]]:
    """Name and values of the settings that differ; nothing where a run has none."""
    return [[name, *(value or "" for value in values)] for name, values in comparison.settings().items()]


def run_row(run: ComparedRun) -> list[str]:
    """Name, pipeline, state, begin and time of a run."""
    seconds = run.info.results.get("seconds")
    return [
        run.name,
        run.settings["pipeline"],
        run.info.state,
        f"{run.info.began:%Y-%m-%d %H:%M}",
        "" if seconds is None else duration(seconds),
    ]


def number_rows(numbers: Mapping[str, Sequence[float | None]]) -> list[list[str]]:
    """Name and values of each number; two runs have their difference as well."""
    runs = range(max(map(len, numbers.values()), default=0))
    of_runs = [{name: v[run] for name, v in numbers.items() if v[run] is not None} for run in runs]
    texts = [number_texts(one) for one in of_runs]
    rows = []
    for name, values in numbers.items():
        if any(name in one for one in texts):
            row = [one.get(name, "") for one in texts]
            if len(values) == 2:
                before, after = values
                row.append("" if before is None or after is None else f"{after - before:+.4g}")
            rows.append([name.replace("_", " "), *row])
    return rows


def difference_rows(comparison: RunComparison) -> list[list[str]]:
    """Each other run against the first: difference of the mean rewards, its interval, prompts."""
    return [
        [
            one.name,
            f"{one.mean:+.4g}",
            "{:+.4g} to {:+.4g}".format(*one.interval) if one.interval else "none from one prompt",
            str(one.prompts),
        ]
        for one in comparison.differences()
    ]


def quantile_rows(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Quantiles and mean of the rewards of each run's models."""
    return [
        [f"{run.name}, {side}", *(f"{v:.4g}" for v in (*np.quantile(rewards, QUANTILES), rewards.mean()))]
        for run in runs
        for side, rewards in run.rewards.items()
        if len(rewards)
    ]


def spread_evenly(names: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of ``names``, in their order, evenly over all."""
    indices = np.unique(np.linspace(0, len(names) - 1, min(len(names), most)).round().astype(int))
    return [names[index] for index in indices] if names else []


def shared_texts(runs: Sequence[ComparedRun], prompt_id: str) -> SharedTexts:
    """The reference's answer, and the first of each run that evaluated the prompt."""
    rows = {run.name: run.rows[prompt_id] for run in runs if prompt_id in run.rows}
    first_run, first = next(iter(rows.items()))
    same = len({row["reference"][0]["messages"] for row in rows.values()}) == 1
    sides = [_side("reference" if same else f"reference of {first_run}", first["reference"][0])]
    sides += [_side(name, row["aligned"][0]) for name, row in rows.items()]
    return {"prompt": messages_text(first["messages"]), "sides": sides, "spread": _spread(rows.values())}


def _side(name: str, completion: Completion) -> tuple[str, str, str]:
    facts = "" if completion["reward"] is None else f"reward {completion['reward']:.4g}, "
    facts += f"{completion['num_tokens']} tokens, {completion['finish_reason']}"
    return name, facts, messages_text(completion["messages"], roles=False)


def _spread(rows: Iterable[EvaluationRow]) -> float:
    rows = list(rows)
    if any(completion["reward"] is None for row in rows for completion in row["aligned"]):
        return 0.0
    means = [mean_reward(row) for row in rows]
    return max(means) - min(means)


def _charts(runs: Sequence[ComparedRun]) -> Iterator[Markup]:
    """The rewards of every run, those of one reward over the same bins."""
    for reward in dict.fromkeys(run.reward for run in runs if run.reward):
        yield from _histograms("Rewards of", {r.name: r.rewards for r in runs if r.reward == reward})
    sampled = {run.name: {"sampled": run.sampled_rewards} for run in runs if len(run.sampled_rewards)}
    yield from _histograms("Rewards of samples of", sampled)


def _histograms(title: str, values: Mapping[str, Mapping[str, Floats]]) -> Iterator[Markup]:
    everything = [those for of_run in values.values() for those in of_run.values()]
    if not everything:
        return
    low, high = bounds(*np.quantile(np.concatenate(everything), [0.001, 0.999]).tolist())
    for name, of_run in values.items():
        counts = {
            side: np.histogram(np.clip(those, low, high), BINS, (low, high))[0].tolist()
            for side, those in of_run.items()
        }
        yield histogram(f"{title} {name}", counts, low, high, x="reward")
