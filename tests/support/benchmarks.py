"""Small benchmarks in lm-eval's YAML, of files that lie beside them."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

COUNTRIES = [
    {"country": "France", "cities": ["Paris", "Rome", "Oslo"], "answer": 0},
    {"country": "Italy", "cities": ["Paris", "Rome", "Oslo"], "answer": 1},
    {"country": "Norway", "cities": ["Paris", "Rome", "Oslo"], "answer": 2},
    {"country": "Spain", "cities": ["Rome", "Madrid", "Oslo"], "answer": 1},
    {"country": "Chile", "cities": ["Lima", "Quito", "Santiago"], "answer": 2},
    {"country": "Peru", "cities": ["Lima", "Quito", "Santiago"], "answer": 0},
]
_DATA = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "countries.jsonl"}},
    "test_split": "test",
    "metadata": {"version": 2.0},
}
CAPITALS = {
    **_DATA,
    "task": "capitals",
    "output_type": "multiple_choice",
    "doc_to_text": "The capital of {{country}} is",
    "doc_to_choice": "{{cities}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITTEN = {
    **_DATA,
    "task": "written_capitals",
    "output_type": "generate_until",
    "doc_to_text": "{{country}}:",
    "doc_to_target": "{{cities[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
    ],
}
PROSE = {
    **_DATA,
    "task": "prose",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{country}} is a country.",
    "metric_list": [
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    ],
}
GROUP = {
    "group": "geography",
    "task": ["capitals", {"task": "capitals_with_examples", "num_fewshot": 2}],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1},
}
EXAMPLES = {**CAPITALS, "task": "capitals_with_examples", "fewshot_split": "test"}


def write_tasks(folder: Path, *tasks: dict[str, object]) -> Path:
    """The YAML of ``tasks`` and their documents in ``folder``."""
    folder.mkdir(exist_ok=True)
    for task in tasks:
        (folder / f"{task.get('task') if 'group' not in task else task['group']}.yaml").write_text(
            yaml.safe_dump(task)
        )
    (folder / "countries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in COUNTRIES))
    return folder
