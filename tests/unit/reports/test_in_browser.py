"""Every kind of page in a browser: marks in every chart, no error, no request, no script of a text, no rule
of accessibility broken, on a phone and a large screen, by day and by night."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from kubealign.compare.page import compare_page
from kubealign.compare.runs import compared
from kubealign.local.live import TaskState
from kubealign.local.results import Output, Results, StageRow
from kubealign.local.runs import LOCK, read_run, runs_below
from kubealign.local.summary import write_summary
from kubealign.ui.server import Server
from kubealign_components.data.schemas import JUDGED, MODEL, REWARDED, SELECTION, new_completion
from kubealign_components.engines.rewards import RewardWords
from kubealign_components.evaluate.by_source import SourceGain
from kubealign_components.evaluate.controlled import OfPrompt
from kubealign_components.evaluate.report import report_html
from kubealign_components.evaluate.second_reward import SecondRewards
from kubealign_components.reports.charts import histogram
from kubealign_components.reports.judgements import judgements_page
from kubealign_components.reports.rows import rows_page
from kubealign_components.training.curves import curves_page
from support.browser import ATTACK, faults_of, needs_browser, opened_browser
from support.datasets import MakeDataset
from support.run_folders import add_run
from support.tiny import prompt_row

pytestmark = needs_browser
BOXES = """axes => axes.map(axis => [...axis.querySelectorAll('[id*="xtick"] text')]
  .map(text => text.getBoundingClientRect()).map(box => [box.left, box.right]))"""
"""Left and right of each number along each axis."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as browser:
        yield browser


@pytest.fixture
def address(tmp_path: Path) -> Callable[[str], str]:
    """``address(text)`` is where the browser finds a page."""
    made = 0

    def write(text: str) -> str:
        nonlocal made
        made += 1
        path = tmp_path / f"page-{made}.html"
        path.write_text(text)
        return path.as_uri()

    return write


def test_what_is_wrong_with_a_page_is_seen(browser: Browser, address: Callable[[str], str]) -> None:
    page = """<!doctype html><html lang="en"><title>x</title><main><h1>x</h1><img src="nothing.png">
      <div style="width:3000px">wide</div><figure><figcaption>bare</figcaption><svg></svg></figure>"""
    seen = " ".join(faults_of(browser, address(f"{page}{ATTACK}<script>nothing()</script>")))
    for fault in (
        "request: ",
        "too wide",
        "no marks in the chart bare",
        "became a script",
        "nothing is not",
        "image-alt",
    ):
        assert fault in seen


def test_numbers_along_an_axis_do_not_overprint_each_other(
    browser: Browser, address: Callable[[str], str]
) -> None:
    spans = ((-5.5e-4, -1.5e-4), (0.0, 1.2e-4), (1e6, 9e6), (-1234.5, 987.6), (0.1234, 0.1239))
    drawn = [histogram("x", {"a": [1, 2]}, low, high, x="reward") for low, high in spans]
    page = browser.new_page()
    page.goto(address("".join(drawn)))
    boxes = page.locator('[id*="matplotlib.axis_1"]').evaluate_all(BOXES)
    assert len(boxes) == len(spans) and all(len(of_axis) > 2 for of_axis in boxes)
    for of_axis in boxes:
        assert all(before[1] < after[0] for before, after in pairwise(sorted(of_axis)))


def answers(*rewards: float) -> list[dict[str, object]]:
    text = json.dumps([{"role": "assistant", "content": f"{ATTACK} {'long' * 200}"}])
    return [
        new_completion(
            completion_id=f"c{reward}",
            messages=text,
            reward=reward,
            quantile_reward=reward,
            token_ids=[1] * tokens,
            num_tokens=tokens,
            logprob=-2.0 * tokens,
            sampler_logprob=-2.5 * tokens - reward,
            finish_reason="stop",
            reference=True,
            model=ATTACK,
        )
        for tokens, reward in enumerate(rewards, 3)
    ]


def test_judgements(browser: Browser, address: Callable[[str], str], make_dataset: MakeDataset) -> None:
    opinion = {"first": 0, "second": 1, "score": 0.5, "consistent": True}
    rows = [
        prompt_row(f"{ATTACK} {i}", [])
        | {
            "completions": answers(0.1, 0.5),
            "judgements": [
                {**opinion, "principle": f"{ATTACK}{k}", "s12": 1.0 + i, "s21": k - 2.0} for k in range(4)
            ],
        }
        for i in range(6)
    ]
    assert faults_of(browser, address(judgements_page(make_dataset(rows, JUDGED, stage="judge")))) == []


def test_rows_of_stages(browser: Browser, address: Callable[[str], str], make_dataset: MakeDataset) -> None:
    rows = [
        prompt_row(f"{ATTACK} {i}", [])
        | {"source": f"{ATTACK}{i % 2}", "prompt_tokens": 5 + i, "prompt_token_ids": [1]}
        | {
            "completions": answers(0.1 * i, 0.5, 0.9),
            "reference_rewards": [0.1],
            "pairs": [{"chosen": 2, "rejected": 0}],
        }
        for i in range(8)
    ]
    rewarded = [{k: v for k, v in row.items() if k not in ("reference_rewards", "pairs")} for row in rows]
    for dataset in (make_dataset(rewarded, REWARDED), make_dataset(rows, SELECTION)):
        assert faults_of(browser, address(rows_page(dataset))) == []


def test_training_evaluation_and_comparison(
    browser: Browser, address: Callable[[str], str], make_dataset: MakeDataset, tmp_path: Path
) -> None:
    bins = [[0.1 * i, 0.1 * i, 4] for i in range(10)]
    steps = [
        {
            "step": i,
            "metrics": json.dumps(
                {"loss": 1 / i, "learning_rate": 1e-5 * i, "memory_gib": 1.5, "calibration": bins}
            ),
        }
        for i in range(1, 30)
    ]
    assert faults_of(browser, address(curves_page(make_dataset(steps, MODEL).uri))) == []
    rows = [
        {"messages": json.dumps([{"role": "user", "content": ATTACK}]), "reward_difference": 0.1 * i - 0.3}
        | {"reference": answers(0.3), "aligned": answers(0.1 * i)}
        for i in range(8)
    ]
    numbers = {
        "prompts": 8.0,
        "reward_gain": 0.1,
        "reward_gain_low": 0.0,
        "reward_gain_high": 0.2,
        "win_rate": 0.5,
    }
    numbers |= {"reward_reference": 0.3, "reward_aligned": 0.4}
    parts = ("gain_by_length", "gain_by_phrases", "gain_beyond_length", "length_slope")
    seconds = ("held_out_reward_gain", "held_out_reward_agreement", "win_rate_length_controlled")
    numbers |= {f"{name}{end}": 0.05 for name in (*parts, *seconds) for end in ("", "_low", "_high")}
    both = OfPrompt(reference=np.array([0.1, 0.2]), aligned=np.array([0.3, 0.1]))
    shifted = OfPrompt(reference=both.reference, aligned=both.aligned + 0.2)
    page = report_html(
        model=ATTACK,
        reference="tiny",
        numbers=numbers,
        verdict=None,
        warnings=[ATTACK],
        rows=rows,
        phrases=[ATTACK, "great question"],
        seconds=[SecondRewards(first=both, second=both), SecondRewards(first=shifted, second=both)],
        held_out=[RewardWords(ATTACK, ATTACK)],
        sources=[
            SourceGain(source=name, prompts=4, gain=None, interval=None, length_ratio=1.0)
            for name in (ATTACK, "b")
        ],
    )
    shown = address(page)
    assert faults_of(browser, shown) == []
    visit = browser.new_page()
    visit.goto(shown)
    differences = "rows => rows.map((row) => +row.dataset.difference)"
    visit.get_by_label("Sort by").select_option("difference:-1")
    sorted_ = visit.locator("#sorted > div").evaluate_all(differences)
    assert sorted_ == sorted(sorted_, reverse=True) and len(sorted_) == 8
    visit.get_by_label("Show only prompts").fill("nothing has this")
    expect(visit.locator("#sorted > div:visible")).to_have_count(0)
    paths = [
        add_run(
            tmp_path / "out",
            name,
            make_dataset,
            aligned={ATTACK: 0.5, "b": 0.7},
            text=ATTACK,
            parameters={ATTACK: name},
        )
        for name in ("one", "two")
    ]
    assert faults_of(browser, address(compare_page(compared([read_run(path) for path in paths])))) == []


def test_a_run_and_its_lineage(browser: Browser, make_dataset: MakeDataset, tmp_path: Path) -> None:
    source = make_dataset([prompt_row(ATTACK, [ATTACK])], stage="import_prompts", slug=[ATTACK])
    last = make_dataset([], MODEL, stage="train", inputs={"prompts": source, ATTACK: source})
    stages = [
        StageRow(
            stage=s,
            title=ATTACK,
            rows_in=3,
            rows_out=2,
            dropped={ATTACK: 1},
            counts={ATTACK: 1},
            numbers={},
            seconds=1.0,
        )
        for s in ("import_prompts", "train")
    ]
    kinds = (("import-prompts", "system.Dataset", source), ("train", "system.Model", last))
    outputs = [
        Output(task=task, title=ATTACK, output="dataset", type=kind, path=Path(made.uri), metadata={})
        for task, kind, made in kinds
    ]
    run = Results(
        pipeline=ATTACK,
        folder=tmp_path,
        parameters={"a": ATTACK},
        seconds=9.0,
        stages=stages,
        outputs=outputs,
    )
    write_summary(run, tmp_path / "summary.html", failure=ATTACK)
    for path in (tmp_path / "summary.html", *(tmp_path / "reports").iterdir()):
        assert faults_of(browser, path.as_uri()) == []


@pytest.fixture
def served(tmp_path: Path, make_dataset: MakeDataset) -> Iterator[tuple[str, Path]]:
    """Address and folder of three runs."""
    for name in ("one", "two-x", "three-x"):
        run = add_run(tmp_path / "out", name, make_dataset, aligned={"a": 0.5, "b": 0.7}, text=ATTACK)
        (run / "summary.html").write_text(
            "<!doctype html><title>x</title><script>window.name = self.origin</script>"
        )
    with Server(tmp_path / "out", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.address, tmp_path / "out"
        server.shutdown()
        thread.join()


def test_runs_are_filtered_compared_and_followed(browser: Browser, served: tuple[str, Path]) -> None:
    root, folder = served
    assert faults_of(browser, root) == []
    page = browser.new_page()
    page.goto(root)
    page.keyboard.press("Tab")
    page.keyboard.type("-X")  # into the filter, by keyboard alone
    expect(page.locator("#sorted > tr:visible")).to_have_count(2)
    expect(page.locator("#kept")).to_have_text("2 of 3")
    page.get_by_label("compare two-x").check()
    page.get_by_label("compare three-x").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("h1")).to_have_text("three-x against two-x")
    run = runs_below(folder)[0]
    page.goto(f"{root}run/{run.name}/")
    assert page.evaluate("window.name") == "null"  # a stored page is no part of the site

    (run.folder.path / "results.json").unlink()
    (run.folder.path / "summary.html").unlink()
    with (run.folder.path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tell(run.folder.progress, "sample", 1)
        page.goto(f"{root}run/{run.name}/")
        expect(page.locator("#live")).to_contain_text("1/9 prompts")
        tell(run.folder.progress, ATTACK, 5)
        expect(page.locator("#live")).to_contain_text("5/9 prompts")
        assert page.evaluate("window.hacked") is None
        assert faults_of(browser, f"{root}run/{run.name}/") == []


def tell(path: Path, title: str, done: int) -> None:
    task: TaskState = {
        "title": title,
        "state": "running",
        "seconds": 1.0,
        "detail": f"{done}/9 prompts",
        "log": "x",
    }
    path.write_text(json.dumps({"tasks": [task], "left": 5.0}))
