"""Stages from Python, and what they give to look at."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kubealign import Dataset, stage
from kubealign_components.data import schemas
from kubealign_components.errors import ConfigError, KubeAlignError, NotFound, SchemaMismatch
from kubealign_components.inputs import INPUTS
from kubealign_components.stages import CONFIGS

COMPONENTS = Path(__file__).parents[3] / "components" / "kubealign_components"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's own data."""
    folder = tmp_path_factory.mktemp("own")
    rows = [{"prompt": f"Question {number}?", "note": number} for number in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def chosen(here: Path, tiny_model: Path) -> Dataset:
    """What five calls make of it."""
    into = here / "stages"
    prompts = stage("import_prompts", into=into, sources=here / "prompts.jsonl")
    rows = stage("filter", prompts, into=into, policy=str(tiny_model))
    settings = {"policy": str(tiny_model), "engine": "transformers", "n": 3, "max_new_tokens": 6}
    answers = stage("sample", rows, into=into, top_p=0.9, slice_rows=8, **settings)
    rewarded = stage("rewards", answers, into=into, reward_functions=["brevity"])
    return stage("select", into=into, rewarded=rewarded)


def test_stages_run_on_ones_own_data(chosen: Dataset, here: Path) -> None:
    assert chosen.manifest.schema == schemas.SELECTION
    steps = {step["stage"]: step["params"] for step in chosen.manifest.recipe.values()}
    assert list(steps) == ["import_prompts", "filter", "sample", "rewards", "select"]
    assert steps["sample"]["sampling"]["top_p"] == 0.9
    folders = {path.name for path in (here / "stages").iterdir()}
    assert folders == {"import_prompts", "filter", "sample", "rewards", "select", "work"}


def test_the_same_call_again_computes_nothing(
    chosen: Dataset, here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was sampled again")

    monkeypatch.setattr("kubealign_components.engines.transformers_engine.TransformersEngine", fail)
    settings = {"policy": str(tiny_model), "engine": "transformers", "n": 3, "max_new_tokens": 6}
    again = stage("sample", here / "stages/filter", into=here / "stages", top_p=0.9, **settings)
    assert Path(again.uri) == here / "stages" / "sample"
    assert not (here / "stages" / "sample-2").exists()


def test_other_settings_make_another_dataset(chosen: Dataset, here: Path) -> None:
    other = stage("select", here / "stages/rewards", into=here / "stages", strategy="all")
    assert Path(other.uri).name == "select-2"
    assert other.manifest.fingerprint != chosen.manifest.fingerprint


@pytest.mark.parametrize(
    ("name", "inputs", "settings", "error", "expected"),
    [
        ("sampel", [], {}, ConfigError, "did you mean sample"),
        ("merge", [], {}, ConfigError, "one of import_prompts, filter"),
        ("select", [], {}, ConfigError, "rewarded=None: expected what select takes: kubealign.rewarded/v1"),
        ("select", ["stages/rewards"] * 2, {}, ConfigError, "no more inputs than rewarded"),
        ("select", ["stages/rewards"], {"rewarded": "x"}, ConfigError, "it once"),
        ("select", ["stages/rewards"], {"stratgy": "all"}, ConfigError, "did you mean strategy"),
        ("select", ["stages/rewards"], {"strategy": "al"}, ConfigError, "strategy='al'"),
        ("select", ["stages/nothing"], {}, NotFound, "no finished dataset"),
        ("mix", ["stages/rewards"], {}, SchemaMismatch, "expected kubealign.selection/v1"),
        ("import_prompts", [], {"sources": ["nowhere.jsonl"]}, KubeAlignError, "nowhere.jsonl"),
        (
            "import_prompts",
            [],
            {"sources": "a", "into": "gs://bucket"},
            ConfigError,
            "a folder on this machine",
        ),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    chosen: Dataset,
    here: Path,
    name: str,
    inputs: list[str],
    settings: dict[str, object],
    error: type[Exception],
    expected: str,
) -> None:
    before = sorted((here / "stages").iterdir())
    with pytest.raises(error) as raised:
        stage(name, *(here / path for path in inputs), **{"into": here / "stages", **settings})
    assert expected in str(raised.value)
    assert sorted((here / "stages").iterdir()) == before


def test_a_dataset_shows_itself(chosen: Dataset, here: Path) -> None:
    assert len(chosen) == chosen.rows > 0
    assert repr(chosen).startswith(f"<kubealign.selection/v1 '{chosen.manifest.slug}': {len(chosen)} rows")
    row = next(iter(chosen))
    assert row["messages"][0]["role"] == "user"
    assert f"{row['metadata']['note']}?" == row["messages"][0]["content"].split()[1]
    assert row["completions"][0]["messages"][0]["role"] == "assistant"
    frame = chosen.to_pandas()
    assert list(frame.columns) == chosen.table().column_names
    assert frame["messages"][0] == row["messages"]
    assert frame["completions"][0] == row["completions"]
    assert list(chosen.to_pandas(["source"])["source"]) == ["prompts"] * len(chosen)
    assert chosen.to_datasets().num_rows == len(chosen)


@pytest.mark.usefixtures("chosen")
def test_a_dataset_without_rows_is_one(here: Path, tiny_model: Path) -> None:
    empty = stage("filter", here / "stages/import_prompts", into=here / "none", policy=str(tiny_model),
                  max_prompt_len=1)  # fmt: skip
    assert len(empty) == 0
    assert empty
    assert "24 dropped" in repr(empty)


def test_the_inputs_are_those_of_the_components() -> None:
    """What each component opens, and as what, read from its source."""
    assert INPUTS.keys() == CONFIGS.keys() - {"split"}
    for name, takes in INPUTS.items():
        tree = ast.parse((COMPONENTS / name / "component.py").read_text())
        opened = {
            ast.unparse(call.args[0]): tuple(getattr(schemas, ast.unparse(arg)) for arg in call.args[1:])
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "open_dataset"
        }
        declared = {own: kinds.schemas for own, kinds in takes.items()}
        for several in {"selections", "evaluations"} & declared.keys():  # opened one by one
            declared[several.removesuffix("s")] = declared[several]
        if name == "benchmark":  # the component finds the model that was chosen
            assert opened.pop("choice") == (schemas.CHOICE,)
        for own, kinds in opened.items():
            assert declared[own] == kinds, name
        run = ast.parse((COMPONENTS / name / "stage.py").read_text())
        (function,) = [n for n in run.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
        arguments = [arg.arg for arg in function.args.kwonlyargs]
        known = {"output", "report", "model_uri", "launcher", "rounds", "sweep"}
        assert [a for a in arguments if a not in known] == [o.replace("dataset", "chunk") for o in takes], (
            name
        )


def test_importing_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, kubealign\nfrom kubealign import Dataset, load_run, run_local, stage\n"
        "loaded = {'torch', 'transformers', 'vllm', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
