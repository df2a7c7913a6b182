"""What is exported says what the dataset says: read again, it gives the same prompts and completions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import DatasetCard

from kubealign.cli.main import main
from kubealign_components.data.dataset import Dataset
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from support.fake_hub import FakeHub, fake_hub, hub_run

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "score_chosen": 2.0, "answer": "7"},
    {"messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Ho?"}]},
    {
        "prompt": "Add.",
        "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
        "tools": [TOOL],
    },
    {"prompt": "Which?", "completion": "This.", "label": False},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    sources = []
    for number, row in enumerate(ROWS):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n")
        sources.append(SourceConfig(uri=str(path), name=f"s{number}"))
    run(ImportConfig(sources=tuple(sources)), output=str(tmp_path / "made"))
    return Dataset.open(str(tmp_path / "made"))


def said(dataset: Dataset) -> dict[str, Any]:
    return {
        row["prompt_id"]: (
            row["messages"],
            row["tools"],
            row["answers"],
            sorted((c["completion_id"], c["label"] or "") for c in row["completions"]),
        )
        for row in dataset.iter_rows()
    }


def exported(dataset: Dataset, folder: Path, form: str) -> Path:
    result = CliRunner().invoke(main, ["export", dataset.uri, "--format", form, "-o", str(folder)])
    assert result.exit_code == 0, result.output
    return Path(result.output.strip())


def again(file: Path, folder: Path) -> Dataset:
    """Every row imported as a source of its own, since they are of several forms."""
    sources = []
    folder.mkdir()
    for number, line in enumerate(file.read_text().splitlines()):
        (folder / f"{number}.jsonl").write_text(line + "\n")
        sources.append(SourceConfig(uri=str(folder / f"{number}.jsonl"), name=f"s{number}"))
    run(ImportConfig(sources=tuple(sources)), output=str(folder / "made"))
    return Dataset.open(str(folder / "made"))


def test_every_comparison_is_a_row(tmp_path: Path) -> None:
    pairs = [("A", "B"), ("B", "C"), ("A", "D")]
    source = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": "Hi?", "chosen": a, "rejected": b}) + "\n" for a, b in pairs]
    source.write_text("".join(lines))
    run(ImportConfig(sources=(SourceConfig(uri=str(source)),)), output=str(tmp_path / "made"))
    file = exported(Dataset.open(str(tmp_path / "made")), tmp_path / "trl", "trl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert sorted(found) == sorted(pairs)


def test_trl_rows_say_the_same(dataset: Dataset, tmp_path: Path) -> None:
    file = exported(dataset, tmp_path / "trl", "trl")
    assert said(again(file, tmp_path / "again")) == said(dataset)
    from trl import is_conversational

    assert all(is_conversational(json.loads(line)) for line in file.read_text().splitlines())
    assert dataset.manifest.fingerprint in (tmp_path / "trl" / "README.md").read_text()


def test_sharegpt_rows_say_the_same_but_for_single_verdicts(dataset: Dataset, tmp_path: Path) -> None:
    found = said(again(exported(dataset, tmp_path / "sharegpt", "sharegpt"), tmp_path / "again"))
    assert found.keys() == said(dataset).keys()
    assert [[c[0] for c in row[3]] for row in found.values()] == [
        [c[0] for c in row[3]] for row in said(dataset).values()
    ]


def test_parquet_and_datasets_have_the_rows_as_they_are(dataset: Dataset, tmp_path: Path) -> None:
    import datasets

    file = exported(dataset, tmp_path / "parquet", "parquet")
    read = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert read.to_list() == dataset.to_datasets().to_list() == list(dataset.iter_rows())
    assert dataset.to_datasets(["prompt_id"]).column_names == ["prompt_id"]


def test_what_cannot_be_done_is_said(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    result = CliRunner().invoke(main, ["export", dataset.uri, "-o", str(tmp_path / "full")])
    assert (result.exit_code, "a new folder, or an empty one" in result.output) == (2, True)
    result = CliRunner().invoke(
        main, ["export", dataset.uri, "-o", str(tmp_path / "new"), "--push", "nobody/none"]
    )
    assert (result.exit_code, "cannot push to nobody/none" in result.output) == (1, True)


def pushed(hub: FakeHub, dataset: Dataset, folder: Path, **options: str) -> subprocess.CompletedProcess[str]:
    command = ["export", dataset.uri, "-o", str(folder / "out"), "--push", "me/mine"]
    return hub_run(hub, folder, f"from kubealign.cli.main import main; main({command})", **options)


def test_what_is_pushed_can_be_loaded_from_the_hub(dataset: Dataset, tmp_path: Path) -> None:
    """The hub's own client pushes and loads, against a server that answers as the hub does."""
    with fake_hub() as hub:
        for number in ("first", "second"):
            done = pushed(hub, dataset, tmp_path / number)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split()[-1] == f"{hub.address}/datasets/me/mine"
        files = hub.files("me/mine")
        assert sum(path.endswith(".parquet") for path in files) == 1
        text = files["README.md"].decode()
        assert text.count(dataset.manifest.fingerprint) == 1  # the second push tells it in place of the first
        assert text.startswith("---\n") and "num_examples: 4" in text
        code = "import datasets, json; print(json.dumps(datasets.load_dataset('me/mine')['train'].to_list()))"
        loaded = hub_run(hub, tmp_path / "reader", code)
    assert loaded.returncode == 0, loaded.stderr
    own = [json.loads(line) for line in (tmp_path / "first/out/train.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if v is not None} for row in json.loads(loaded.stdout)]
    assert rows == own


def test_a_repository_s_licence_frees_no_rows_that_are_pushed_to_it(tmp_path: Path) -> None:
    sources = []
    for number, license in enumerate(("cc-by-4.0", "")):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"prompt": f"Why {number}?"}) + "\n")
        sources.append(SourceConfig(uri=str(tmp_path / f"{number}.jsonl"), license=license))
    run(ImportConfig(sources=tuple(sources)), output=str(tmp_path / "made"))
    with fake_hub() as hub:
        hub.commit("me/mine", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
        done = pushed(hub, Dataset.open(str(tmp_path / "made")), tmp_path)
        assert done.returncode == 0, done.stderr
        card = DatasetCard(hub.files("me/mine")["README.md"].decode())
    assert card.data.license == ["cc-by-4.0", "mit", "unknown"]
    assert "# Mine" in card.text


def test_what_the_hub_does_not_list_is_pushed_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Why?"}) + "\n")
    source = SourceConfig(uri=str(tmp_path / "a.jsonl"), license="GPL-3.0-only")
    run(ImportConfig(sources=(source,)), output=str(tmp_path / "made"))
    with fake_hub() as hub:
        hub.commit("me/mine", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
        done = pushed(hub, Dataset.open(str(tmp_path / "made")), tmp_path)
        assert done.returncode == 0, done.stderr
        card = DatasetCard(hub.files("me/mine")["README.md"].decode())
    assert (card.data.license, card.data.license_name) == ("other", "gpl-3.0-only-and-mit")
    assert "`gpl-3.0-only`" in card.text


def test_a_hub_that_refuses_is_one_line(dataset: Dataset, tmp_path: Path) -> None:
    with fake_hub() as hub:
        done = pushed(hub, dataset, tmp_path, token="hf_of_nobody")
        assert not hub.repositories
    assert done.returncode == 1
    assert "cannot push to me/mine" in done.stderr and "401" in done.stderr
    assert "Traceback" not in done.stderr and "hf_of_nobody" not in done.stderr
