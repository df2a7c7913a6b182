"""The rounds of a run side by side: what each gained over the first policy, and whose samples it chose."""

from __future__ import annotations

from kubealign.local.results import Results
from kubealign_components.reports.rounds import lines_of


def rounds_of(results: Results) -> list[list[str]]:
    """A line of :data:`~kubealign_components.reports.rounds.COLUMNS` for each round that was evaluated, with
    a word on the chosen one; none where there was one alone, or where what was evaluated are variants of a
    sweep."""
    evaluated = [row for row in results.stages if row.stage == "evaluate"]
    if len(evaluated) < 2 or any(row.iteration for row in evaluated):
        return []
    lines = lines_of([row.numbers for row in evaluated if row.numbers])  # of those that were not ended early
    for line in lines:
        line[0] += ", chosen" if line[0] == str(results.chosen_round) else ""
    return lines


def why_stopped(results: Results) -> str:
    """Why no further round was sampled or trained; empty where all were."""
    begun = [made for name, made in results.datasets.items() if name.startswith("next_round")]
    return next((made.ended_early for made in begun if made.ended_early), "")
