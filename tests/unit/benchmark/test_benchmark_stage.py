"""benchmark: numbers held against lm-eval called directly and the models' own logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubealign_components.benchmark.component import benchmark
from kubealign_components.benchmark.config import BenchmarkConfig
from kubealign_components.benchmark.stage import run
from kubealign_components.data.benchmark_rows import BENCHMARK, BenchmarkRow
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import GateError
from kubealign_components.reports.html import REPORT
from support.benchmarks import CAPITALS, COUNTRIES, EXAMPLES, GROUP, PROSE, WRITTEN, write_tasks
from support.pages import Page
from support.tiny import build_tiny_model

ASKED = ["geography", "written_capitals", "prose"]


class Measured:
    """A benchmark of two tiny models by the component."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.policy = folder, policy
        self.aligned = build_tiny_model(folder / "aligned", seed=7)
        self.tasks = write_tasks(folder / "tasks", CAPITALS, EXAMPLES, GROUP, WRITTEN, PROSE)
        self.numbers: dict[str, float] = {}
        dataset = SimpleNamespace(name="dataset", uri=str(folder / "out"), metadata={})

        def page(name: str) -> SimpleNamespace:
            path = str(folder / f"{name}.html")
            return SimpleNamespace(name=name, path=path, uri=path, metadata={})

        benchmark.python_func(
            model=SimpleNamespace(path=str(self.aligned), uri=str(self.aligned)),
            dataset=dataset,
            metrics=SimpleNamespace(log_metric=self.numbers.__setitem__),
            report=page("report"),
            lineage=page("lineage"),
            policy=str(policy),
            tasks=ASKED,
            task_folder=str(self.tasks),
            engine="transformers",
            seed=3,
            work=str(folder / "work"),
        )
        self.metadata = dataset.metadata
        self.dataset = Dataset.open(dataset.uri, BENCHMARK)
        self.rows = list(self.dataset.iter_rows(of=BenchmarkRow))
        results: list[dict[str, Any]] = self.dataset.manifest.extra["results"]
        self.results = {(one["task"], one["metric"]): one for one in results}

    def of_task(self, name: str) -> list[BenchmarkRow]:
        return [row for row in self.rows if row["task"] == name]

    def config(self, **settings: Any) -> BenchmarkConfig:
        named = {"policy": str(self.policy), "tasks": tuple(ASKED), "task_folder": str(self.tasks)}
        return BenchmarkConfig(
            **named, engine="transformers", seed=3, work=str(self.folder / "work"), **settings
        )

    def records(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.folder / "work/benchmark").iterdir()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Measured:
    return Measured(tmp_path_factory.mktemp("benchmark"), tiny_model)


@pytest.fixture
def lm_eval_warns() -> Iterator[None]:
    """What lm-eval and its libraries warn of when they are imported is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_choices_have_the_log_likelihoods_of_the_models_own_logits(measured: Measured) -> None:
    for side, folder in (("reference", measured.policy), ("aligned", measured.aligned)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for row, document in zip(measured.of_task("capitals"), COUNTRIES, strict=True):
            context = tokenizer(f"The capital of {document['country']} is")["input_ids"]
            given = [likelihood for [[likelihood, _]] in json.loads(row[side])]
            own = []
            for city in document["cities"]:
                ids = tokenizer(f" {city}")["input_ids"]
                with torch.no_grad():
                    logprobs = model(torch.tensor([context + ids])).logits[0].double().log_softmax(-1)
                rows = logprobs[len(context) - 1 : -1]
                own.append(float(rows.gather(1, torch.tensor(ids)[:, None]).sum()))
            assert given == pytest.approx(own, abs=1e-3)
            right = float(int(np.argmax(own)) == document["answer"])
            assert next(score for score in row["scores"])[side] == right


def test_texts_are_those_that_the_model_writes(measured: Measured) -> None:
    model = AutoModelForCausalLM.from_pretrained(measured.aligned, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(measured.aligned)
    for row, document in zip(measured.of_task("written_capitals"), COUNTRIES, strict=True):
        prompt = tokenizer(f"{document['country']}:", return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=6, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
        text = tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
        assert json.loads(row["aligned"]) == [[text]]


@pytest.mark.usefixtures("lm_eval_warns")
def test_values_are_those_of_lm_eval_called_directly(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(measured.tasks)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    own = simple_evaluate(
        model=HFLM(pretrained=str(measured.aligned), device="cpu", dtype="float32", batch_size=4),
        tasks=list(ASKED),
        task_manager=TaskManager(include_path=str(measured.tasks), include_defaults=False),
        bootstrap_iters=1000,
        fewshot_random_seed=3,
    )
    assert own is not None
    for (task, metric), result in measured.results.items():
        theirs = own["results"][task]
        assert result["aligned"] == pytest.approx(theirs[f"{metric},none"], rel=1e-5)
        error = theirs[f"{metric}_stderr,none"]
        assert result["aligned_se"] == (None if error == "N/A" else pytest.approx(error, rel=1e-5))
    assert measured.results["geography", "acc"]["documents"] == 2 * len(COUNTRIES)


def test_differences_are_paired_by_document(measured: Measured) -> None:
    for task in ("capitals", "capitals_with_examples"):
        scores = [row["scores"][0] for row in measured.of_task(task)]
        differences = np.array([one["aligned"] - one["reference"] for one in scores])
        result = measured.results[task, "acc"]
        assert result["aligned"] - result["reference"] == pytest.approx(differences.mean())
        assert result["difference_se"] == pytest.approx(differences.std(ddof=1) / np.sqrt(len(differences)))
    group = measured.results["geography", "acc"]
    parts = [measured.results[task, "acc"] for task in ("capitals", "capitals_with_examples")]
    assert group["difference_se"] == pytest.approx(sum(part["difference_se"] for part in parts) / 2)
    assert group["difference_low"] == pytest.approx(sum(part["difference_low"] for part in parts) / 2)
    assert (group["members"], group["requested"]) == (2, True)
    assert group["sharing"] == 2, "the same countries"
    assert not measured.results["capitals", "acc"]["requested"]
    assert measured.results["prose", "byte_perplexity"]["difference_se"] > 0
    assert measured.results["prose", "byte_perplexity"]["aligned_se"] is None
    assert measured.results["written_capitals", "bleu"]["difference_se"] is None


def test_what_was_asked_for_can_be_sorted_by_and_read(measured: Measured) -> None:
    assert measured.metadata["schema"] == BENCHMARK
    assert measured.numbers["geography_acc_aligned"] == measured.results["geography", "acc"]["aligned"]
    assert {"geography_acc_difference_se", "geography_acc_difference_low"} <= measured.numbers.keys()
    assert not any(name.startswith("capitals_acc") for name in measured.numbers)
    page = Page((measured.folder / "report.html").read_text())
    assert [row[0] for row in page.rows[1:4]] != []
    shown = {row[0]: row for row in page.rows}
    assert shown["geography (2 tasks), version 1"][2] == "12"
    assert shown["capitals_with_examples, version 2.0, 2 examples"][1] == "acc"
    assert "neither a mean over documents nor a perplexity" in page.text
    assert "2 tasks of geography ask the same documents" in page.text
    step = measured.dataset.manifest.provenance.step
    assert set(step["params"]["measured"]) == {
        "capitals",
        "capitals_with_examples",
        "written_capitals",
        "prose",
    }
    assert "benchmark" in (measured.folder / "lineage.html").read_text()


def test_a_run_that_was_stopped_goes_on_and_a_finished_one_is_taken(
    measured: Measured, tmp_path: Path
) -> None:
    before = measured.records()
    assert len(before) == 2 * (4 + 1)  # four tasks and the groups over them, of two models
    lost = measured.folder / "work/benchmark" / min(before, key=lambda name: before[name])
    content = lost.read_bytes()
    lost.unlink()
    again = run(measured.config(limit=0), model=str(measured.aligned), output=str(tmp_path / "taken"))
    assert again.metrics()["tasks"] == 4
    assert not lost.exists(), "what was finished was begun again"
    finished = measured.folder / "work/finished"
    for record in finished.rglob("*.json"):
        record.unlink()
    stats = run(measured.config(), model=str(measured.aligned), output=str(tmp_path / "resumed"))
    assert asdict(stats) == asdict(again)
    with pytest.raises(GateError, match=r"(?s)the model is published.*prose_byte_perplexity changed by"):
        run(
            measured.config(max_drop={"prose": 0.0}), model=str(measured.aligned), output=str(tmp_path / "no")
        )
    assert (tmp_path / "no" / REPORT).is_file()
    assert lost.read_bytes() == content
    after = measured.records()
    assert {name for name in after if after[name] != before[name]} == {lost.name}
