"""benchmark: what is refused, by name and with what to do, before a model is loaded."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.benchmark.config import BenchmarkConfig
from kubealign_components.benchmark.harness import described
from kubealign_components.benchmark.names import task_names
from kubealign_components.benchmark.process import run_harness
from kubealign_components.benchmark.stage import _job, run
from kubealign_components.config import from_parameters
from kubealign_components.data.benchmark_rows import BENCHMARK
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.early_end import end_early
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.preemption import NeverStop
from support.benchmarks import CAPITALS, COUNTRIES, write_tasks


@pytest.fixture(autouse=True)
def lm_eval_warns() -> Iterator[None]:
    """What lm-eval and its libraries warn of when they are imported is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def config(**settings: Any) -> BenchmarkConfig:
    return BenchmarkConfig(
        **{"policy": "some/policy", "tasks": ("arc_easy",), "engine": "transformers", **settings}
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, r"tasks=\(\): expected at least one name of a task"),
        ({"tasks": ("arc_easi",)}, r"tasks\[0\]='arc_easi': .*did you mean arc_easy"),
        ({"tasks": ("mmlu", "mmlu")}, r"tasks\[1\]='mmlu': expected each task once"),
        ({"engine": "fake"}, "engine='fake': expected one of transformers, vllm"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"limit": -1}, "limit=-1"),
        ({"num_fewshot": -2}, "num_fewshot=-2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"memory_fraction": 1.5}, "memory_fraction=1.5"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_names_are_those_of_the_locked_release() -> None:
    shipped = task_names()
    assert shipped.release == version("lm-eval")
    assert {"arc_easy", "hellaswag", "gsm8k", "mmlu", "ai2_arc"} <= set(shipped)
    assert "arc_easy" in shipped.tags["ai2_arc"]
    parameters = {"policy": "some/policy", "tasks": ["mmlu", "gsm8k"], "options": {"batch_size": 4.0}}
    assert from_parameters(BenchmarkConfig, parameters, "benchmark").batch_size == 4


def planned(
    tasks: list[str], folder: Path | str = "", model: Path | None = None, **settings: Any
) -> dict[str, Any]:
    """What the harness plans, in this process."""
    from kubealign_components.benchmark.harness import plan

    given = config(tasks=tuple(tasks), task_folder=str(folder) or "any", **settings)
    models = [find_model(str(model))] if model else []
    scratch = Path(folder or ".")
    before = Path.cwd()
    os.chdir(scratch)
    try:
        return plan(_job(given, models, str(folder)), scratch)
    finally:
        os.chdir(before)


def test_an_unknown_name_is_looked_up_in_the_task_folder_too(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, CAPITALS)
    with pytest.raises(ConfigError, match=r"'capital': .*task folder \(capitals\).*did you mean capitals"):
        planned(["capital"], folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"task_folder=.*each with a task: or group:"):
        planned(["capitals"], tmp_path / "empty")


def test_documents_that_cannot_be_read_are_named_with_a_remedy(tmp_path: Path) -> None:
    lost = {**CAPITALS, "dataset_kwargs": {"data_files": {"test": "nothing.jsonl"}}}
    folder = write_tasks(tmp_path, lost)
    with pytest.raises(ConfigError, match=r"tasks='capitals': .*dataset json .*nothing\.jsonl.*HF_HOME"):
        planned(["capitals"], folder)
    scripted = {
        **CAPITALS,
        "dataset_path": str(tmp_path / "own.py"),
        "dataset_kwargs": {"trust_remote_code": True},
    }
    (tmp_path / "own.py").write_text("import datasets\n")
    write_tasks(tmp_path, scripted)
    with pytest.raises(ConfigError, match="code of the dataset's own"):
        planned(["capitals"], folder)


def test_code_that_a_model_writes_runs_only_where_that_is_stated(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, {**CAPITALS, "unsafe_code": True})
    with pytest.raises(ConfigError, match=r"tasks='capitals': .*allow_unsafe_code"):
        planned(["capitals"], folder)
    assert planned(["capitals"], folder, allow_unsafe_code=True)["tasks"][0]["name"] == "capitals"


def test_a_task_with_images_is_refused(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, {**CAPITALS, "doc_to_image": ["country"]})
    with pytest.raises(ConfigError, match="tasks='capitals': expected a task of text alone"):
        planned(["capitals"], folder)


def test_what_a_task_is_decides_its_digest(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, CAPITALS)
    [first] = planned(["capitals"], folder)["tasks"]
    [same] = planned(["capitals"], folder)["tasks"]
    assert first == same
    assert (first["documents"], first["version"], first["aggregation"]) == (6, "2.0", {"acc": "mean"})
    [limited] = planned(["capitals"], folder, limit=2)["tasks"]
    write_tasks(tmp_path, {**CAPITALS, "doc_to_text": "{{country}}"})
    [asked] = planned(["capitals"], folder)["tasks"]
    assert len({one["digest"] for one in (first, limited, asked)}) == 3
    assert limited["documents"] == 2


def test_the_examples_of_a_task_decide_its_digest(tmp_path: Path) -> None:
    files = {"test": "countries.jsonl", "train": "examples.jsonl"}
    of_files = {"dataset_kwargs": {"data_files": files}, "fewshot_split": "train", "num_fewshot": 1}
    folder = write_tasks(tmp_path, {**CAPITALS, **of_files})
    digests = set()
    for answer in (0, 1):
        (folder / "examples.jsonl").write_text(json.dumps({**COUNTRIES[0], "answer": answer}) + "\n")
        digests.add(planned(["capitals"], folder)["tasks"][0]["digest"])
    assert len(digests) == 2


def test_functions_of_a_task_have_one_digest_in_every_process() -> None:
    """Many of lm-eval's tasks have functions in their settings, some with a part of their arguments."""
    assert json.dumps(partial(write_tasks, "task"), default=described).count("def write_tasks") == 1
    assert "0x" not in json.dumps([object(), print], default=described)


def test_a_chat_needs_a_template(tmp_path: Path, tiny_model: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", CAPITALS)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        ConfigError, match="apply_chat_template=True: expected false: bare has no chat template"
    ):
        planned(["capitals"], folder, bare, apply_chat_template=True)
    assert planned(["capitals"], folder, tiny_model, apply_chat_template=True)["groups"] == []


def test_of_a_round_that_ended_early_nothing_is_measured(tmp_path: Path) -> None:
    ended = str(tmp_path / "model")
    end_early("no gain", stage="train", version=1, schema=MODEL, output=ended, inputs={})
    stats = run(config(), model=ended, output=str(tmp_path / "out"), report=str(tmp_path / "page.html"))
    assert stats.rows_out == 0
    made = Dataset.open(str(tmp_path / "out"), BENCHMARK, allow_empty=True)
    assert made.ended_early == "no gain"
    assert "no gain" in (tmp_path / "page.html").read_text()


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path, {**CAPITALS, "process_docs": "!function ends.at_once"})
    text = (
        (folder / "capitals.yaml").read_text().replace("'!function ends.at_once'", "!function ends.at_once")
    )
    (folder / "capitals.yaml").write_text(text)
    (folder / "ends.py").write_text("import os\n\ndef at_once(docs):\n    os._exit(9)\n")
    given = config(tasks=("capitals",), task_folder=str(folder))
    with pytest.raises(EngineError, match="the process that runs lm-eval ended with exit code 9"):
        run_harness(_job(given, [], str(folder)), tmp_path, NeverStop())
