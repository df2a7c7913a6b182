"""Where a prompt, a source or a text went: what is counted is what a reader of all rows would count."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kubealign.cli.main import main
from kubealign.local.runs import LOCK, read_run
from kubealign.why import Holder, RowsWith, holders
from kubealign_components.data.schemas import EVALUATION, MODEL, PROMPTS, TRAINING, new_completion
from support.datasets import MakeDataset
from support.tiny import prompt_row

ATTACK = "\x1b[2J"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["why", *map(str, arguments)])


def says(text: str, role: str = "assistant") -> str:
    return json.dumps([{"role": role, "content": text}], ensure_ascii=False)


def completion(name: str, text: str) -> dict[str, object]:
    return new_completion(completion_id=name * 64, messages=says(text), token_ids=[1], num_tokens=1)


@pytest.fixture
def run(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    """Prompts of two sources, of which two are trained on and one is held out; a model of what is gone."""
    prompts = [
        prompt_row(f'question "{i}" é', [f"answer {i}"])
        | {"prompt_id": f"{i:064x}", "source": "forum" if i % 2 else "books"}
        | {"metadata": json.dumps({"annotator": "Ann" if i < 2 else "Bo"})}
        for i in range(6)
    ]
    imported = make_dataset(prompts, PROMPTS, stage="import_prompts", shards=3)
    examples = [
        {"example_id": str(i), "prompt_id": f"{i:064x}", "source": "forum", "split": "train"}
        | {
            "messages": says("x", "user"),
            "completions": [completion("a", f"answer {i}"), completion("b", "rejected")],
        }
        for i in (1, 3)
    ]
    mixed = make_dataset(examples, TRAINING, stage="mix", inputs={"selection": imported})
    model = make_dataset([], MODEL, stage="train", inputs={"training": mixed})
    lost = make_dataset([examples[0]], TRAINING, stage="mix", params={"seed": 1})
    orphan = make_dataset([], MODEL, stage="train", inputs={"training": lost})
    compared = [
        {"prompt_id": f"{5:064x}", "messages": says("x", "user"), "reward_difference": 0.0}
        | {"reference": [completion("c", "before")], "aligned": [completion("d", "after")]}
    ]
    last = make_dataset(compared, EVALUATION, stage="evaluate", inputs={"model": model})
    path = tmp_path / "runs" / "runs" / "dpo"
    (path / "logs" / "1").mkdir(parents=True)
    (path / "pipeline.yaml").write_text("")
    outputs = []
    for task, made in {
        "import": imported,
        "mix": mixed,
        "train": model,
        "orphan": orphan,
        "evaluate": last,
    }.items():
        shutil.copytree(made.uri, path / task)
        kind = "system.Model" if made.manifest.schema == MODEL else "system.Dataset"
        outputs.append({"task": task, "output": "dataset", "type": kind, "path": task})
    outputs.append({"task": "gone", "output": "dataset", "type": "system.Dataset", "path": "gone"})
    (path / "results.json").write_text(json.dumps({"outputs": outputs}))
    return path


def counts(what: str, run: Path) -> list[int | None]:
    return [one.rows for one in holders(RowsWith(what), [read_run(run)])]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("forum", [3, 2, 2, None, 1]),
        ("books", [3, 0, 0, None, 0]),
        (f"{1:064x}", [1, 1, 1, None, 0]),
        (f"{5:064x}", [1, 0, 0, None, 1]),
        ("0" * 60, [6, 2, 2, None, 1]),
        ("c" * 8, [0, 0, 0, None, 1]),
        ("answer 3", [1, 1, 1, None, 0]),
        ("rejected", [0, 2, 2, None, 0]),
        ("after", [0, 0, 0, None, 1]),
        ('question "4" é', [1, 0, 0, None, 0]),
        ("Ann", [2, 0, 0, None, 0]),
        ("foru", [0, 0, 0, None, 0]),
        ("nobody said this", [0, 0, 0, None, 0]),
    ],
)
def test_rows_that_hold_it_are_counted(what: str, expected: list[int | None], run: Path) -> None:
    assert counts(what, run) == expected


def test_a_model_holds_what_it_was_trained_on_and_what_is_gone_is_unknown(run: Path) -> None:
    found: list[Holder] = [one for one in holders(RowsWith("forum"), [read_run(run)]) if one.model]
    assert [(one.rows, one.of) for one in found] == [(2, 2), (None, 0)]


def test_the_command_names_run_stage_and_rows(run: Path) -> None:
    for place in (run, run.parents[1]):
        text = call("forum", place).output
        assert "3 of 6" in text and "model    2 of 2" in text and "import_prompts" in text
        assert "unknown: what it was trained on is gone" in text
    rows = json.loads(call("answer 3", run, "--json").output)
    assert [(one["run"], one["stage"], one["rows"]) for one in rows if one["rows"]] == [
        ("dpo", "import_prompts", 1),
        ("dpo", "mix", 1),
        ("dpo", "train", 1),
    ]


def unlisted(run: Path) -> None:
    """Let what ``run`` made lie where it was made, and no results say of it."""
    results = json.loads((run / "results.json").read_text())
    for number, one in enumerate(results["outputs"]):
        if (run / one["path"]).is_dir():
            (run / "artifacts" / "1").mkdir(parents=True, exist_ok=True)
            manifest = (run / one["path"]).rename(run / "artifacts" / "1" / one["path"]) / "manifest.json"
            os.utime(manifest, (1000 + number, 1000 + number))
    (run / "results.json").unlink()


def test_a_run_without_results_is_looked_at(run: Path) -> None:
    unlisted(run)
    assert counts("forum", run) == [3, 2, 2, None, 1]
    assert "3 of 6" in call("forum", run).output


def test_a_run_that_goes_on_is_looked_at_with_what_it_left_before(run: Path, tmp_path: Path) -> None:
    again = run / "artifacts" / "2" / "mix"
    shutil.copytree(run / "mix", again)
    os.utime(run / "pipeline.yaml", (2**33, 2**33))  # after the results
    with (run / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert counts("forum", run) == [3, 2, 2, None, 1, 2]
        told = call("nobody said this", run).output
    assert "Under way, and not yet all there: dpo" in told
    assert "Under way" not in call("nobody said this", run).output


def test_nothing_and_nowhere_are_told(run: Path, tmp_path: Path) -> None:
    (run / "orphan" / "manifest.json").unlink()
    assert f"No dataset or model of 1 run here holds {'x' + ATTACK!r}" in call(f"x{ATTACK}", run).output
    assert call(" ", run).exit_code == 2
    missing = call("forum", tmp_path / "nothing")
    assert missing.exit_code == 1 and "no such run here" in missing.output
