"""Two rounds on this machine: the second samples from what the first has trained, and repeats nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kubealign import Results, RunFile, run_local
from kubealign.local.results import load_run
from kubealign.local.rounds import rounds_of, why_stopped
from kubealign.parameters import check_parameters
from kubealign.rerun import run_file_of
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.models import find_model
from kubealign_components.data.slices import KEY
from kubealign_pipelines import build
from kubealign_pipelines.compiler import graph_of
from support.pages import Page
from support.small_run import small_run

ROWS = [
    {"prompt": f"Tell me about {topic}."} for topic in ("tides", "bread", "chess", "bees", "maps", "wool")
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def two(tiny_model: Path, output: Path) -> Results:
    """DPO on the best and worst of what both policies said, near the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        parameters = small_run(tiny_model, output.parent / "prompts.jsonl", ROWS, rounds=2)
        return run_local(RunFile(parameters=parameters), output=output, name="two")


def finished(output: Path, stage: str) -> list[Counter[str]]:
    """By folder of the work prefix, which is one for the same settings and models, how often each result of
    ``stage`` was made."""
    return [
        Counter(key for file in folder.glob("data/*.parquet") for key in pq.read_table(file)[KEY].to_pylist())
        for folder in (output / "work" / stage).iterdir()
        if (folder / "data").is_dir()
    ]


def test_the_second_round_samples_from_what_the_first_trained(two: Results, output: Path) -> None:
    first, second = two.datasets["sample"], two.datasets["sample-2"]
    for samples, policy in ((first, two.parameters["policy"]), (second, two.models["train"].uri)):
        step = samples.manifest.provenance.step
        assert step["models"]["policy"]["digest"] == find_model(str(policy)).identity()["digest"]
        assert samples.manifest.stats["counts"]["sampled_completions"] == 3 * len(ROWS)
    assert sorted(sum(made.values()) for made in finished(output, "sample")) == [18, 18]
    [row, *_] = two.datasets["join_rounds"].iter_rows()
    assert Counter((c["reference"], "round 2" in c["model"]) for c in row["completions"]) == {
        (True, False): 3,
        (False, True): 3,
    }


def test_the_last_model_tells_the_run_file_of_both_rounds(two: Results, tmp_path: Path) -> None:
    given = small_run(Path(two.parameters["policy"]), tmp_path / "prompts.jsonl", ROWS, rounds=2)
    written = run_file_of(two.models["train-2"].manifest)["parameters"]
    assert isinstance(written, dict)
    told = check_parameters(
        graph_of(build("offline_alignment", parameters=written), "offline_alignment"), written
    )
    asked = check_parameters(
        graph_of(build("offline_alignment", parameters=given), "offline_alignment"), given
    )
    assert (written["rounds"], written["rounds_reference"]) == (2, "first")
    assert told["train_options"].items() >= asked["train_options"].items()
    assert told["filter_options"].items() >= asked["filter_options"].items()
    apart = {name for name in asked if told[name] != asked[name]}
    places = {"sources", "reward_functions", "work_rows_per_chunk"}  # told in full, or of no row
    assert {name for name in apart if not name.endswith("_options")} <= places | {"evaluate_max_prompts"}


KNOWN_BY = {"rewards": ("messages", "num_tokens", "finish_reason"), "logprobs": ("token_ids",)}
"""What of a completion its result depends on."""


@pytest.mark.parametrize("stage", KNOWN_BY)
def test_nothing_is_rewarded_or_scored_twice(two: Results, output: Path, stage: str) -> None:
    [made] = finished(output, stage)  # of both rounds, in one place
    rows = [row for name in (stage, f"{stage}-2") for row in two.datasets[name].iter_rows()]
    said = {
        (row["prompt_id"], *(str(c[name]) for name in KNOWN_BY[stage]))
        for row in rows
        for c in row["completions"]
    }
    assert set(made.values()) == {1}
    assert len(made) == len(said)


def test_the_last_model_starts_at_the_first_ones_and_leads_back_to_everything(
    two: Results, tiny_model: Path
) -> None:
    first, last = two.models["train"], two.models["train-2"]
    assert two.model == Path(last.uri)
    steps = steps_of(last.manifest.fingerprint, last.manifest.recipe)
    assert Counter(step.stage for step in steps) >= Counter(
        import_prompts=1, sample=2, rewards=2, join_rounds=1, train=2
    )
    assert first.manifest.fingerprint in last.manifest.recipe
    start = last.manifest.provenance.step["models"]["policy"]["digest"]
    assert start == find_model(first.uri).identity()["digest"]
    evaluation = two.datasets["evaluate-2"]
    assert evaluation.manifest.identity["policy"] == find_model(str(tiny_model)).identity()["digest"]
    assert two.evaluation == evaluation.manifest.stats["numbers"]
    assert {"reward_gain_low", "kl_per_completion", "length_ratio"} <= two.evaluation.keys()
    lines = rounds_of(two)
    assert [line[0] for line in lines] == ["1", "2"]
    assert all(cell for line in lines for cell in line)
    reports = [out.path for out in two.outputs_of("system.HTML") if out.output == "report"]
    compared = [path for path in reports if path.parent.name.startswith("evaluate")]
    first_page, last_page = (Page(path.read_text()).rows for path in compared)
    assert all(line in last_page for line in lines), "as Kubeflow shows it"
    assert lines[0] not in first_page
    assert Dataset.open(str(two.folder / "model-2")).manifest.fingerprint == last.manifest.fingerprint


@pytest.fixture(scope="module")
def stopped(two: Results, output: Path) -> Results:
    """The same, had it been to go on only from a policy that is shown to be better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        given = {**two.parameters, "rounds": 3, "rounds_stop": "no_gain"}
        return run_local(RunFile(parameters=given), output=output, name="stopped")


def test_after_a_round_that_is_not_better_nothing_is_sampled_or_trained(
    stopped: Results, two: Results, output: Path
) -> None:
    assert why_stopped(stopped).startswith("round 1 is not shown to be better than the first policy")
    assert not why_stopped(two)
    for number in ("2", "3"):
        idle = [row for row in stopped.stages if row.title.endswith(f" {number}")]
        assert [row.stage for row in idle] == [
            *("next_round", "sample", "rewards", "join_rounds"),
            *("select", "logprobs", "mix", "train", "evaluate"),
        ]
        assert all(row.rows_in == row.rows_out == 0 and not row.numbers for row in idle)
    assert sorted(sum(made.values()) for made in finished(output, "sample")) == [18, 18], "those of the other"
    logs = "".join(log.read_text() for log in (stopped.folder / "logs").rglob("*.log"))
    assert not re.search(r"Loading weights|prompts/s|step 1", logs)


def test_the_best_round_is_the_result_of_those_that_may_end(stopped: Results, two: Results) -> None:
    [row] = stopped.choice
    assert (row["variant"], row["chosen"]) == ("round 1", True)
    for results in (stopped, load_run(stopped.folder)):
        assert results.model is not None
        assert results.evaluation == two.datasets["evaluate"].manifest.stats["numbers"]
        made = Dataset.open(str(results.model))
        assert made.manifest.fingerprint == row["model_fingerprint"]
        assert made.manifest.fingerprint == two.models["train"].manifest.fingerprint
    assert (stopped.folder / "model").resolve() == stopped.model
    assert not any((stopped.folder / f"model-round-{number}").exists() for number in (2, 3))
    [line] = rounds_of(stopped)
    assert line[0] == "1, chosen"
    assert "No further round was sampled or trained" in (stopped.folder / "summary.html").read_text()
    again = run_file_of(Dataset.open(str(stopped.folder / "choice")).manifest)["parameters"]
    assert isinstance(again, dict)
    assert (again["rounds"], again["rounds_stop"]) == (3, "no_gain")
