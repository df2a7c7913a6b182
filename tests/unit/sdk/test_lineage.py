"""Lineage: the whole story from one manifest, and what became of the ancestors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.lineage import ancestors
from kubealign.verify import verify
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.reports.lineage import to_html
from support.pages import Page
from support.tiny import prompt_row


def make(place: Path, stage: str, inputs: dict[str, Dataset], **params: object) -> Dataset:
    provenance = derive(
        stage, 1, params, inputs=inputs, models={"policy": {"name": "tiny & co", "digest": "d"}}, slug=[stage]
    )
    with DatasetWriter(str(place / stage), PROMPTS, provenance) as writer:
        writer.write_rows([prompt_row("hello <b>you</b>", ["fine"])])
        stats = Stats(rows_in=3, rows_out=1)
        stats.drop("prompt_too_long", 2)
        return writer.commit(stats)


@pytest.fixture
def diamond(tmp_path: Path) -> Dataset:
    """evaluate takes rewards twice: itself, and by way of train."""
    source = make(tmp_path, "import", {}, sources=[{"name": "a<b", "sha256": "00"}])
    rewards = make(tmp_path, "rewards", {"prompts": source})
    train = make(tmp_path, "train", {"training": rewards}, beta=0.1)
    return make(tmp_path, "evaluate", {"rewarded": rewards, "model": train}, seed=7)


def test_steps_come_sources_first_and_each_once(diamond: Dataset) -> None:
    steps = steps_of(diamond.manifest.fingerprint, diamond.manifest.recipe)
    assert [(s.stage, s.level) for s in steps] == [
        ("import", 1),
        ("rewards", 2),
        ("train", 3),
        ("evaluate", 4),
    ]


def test_the_tree_names_stages_settings_and_models(diamond: Dataset) -> None:
    done = CliRunner().invoke(main, ["lineage", diamond.uri])
    assert done.exit_code == 0, done.output
    for text in (
        "evaluate",
        "beta 0.1",
        "tiny & co",
        "name a<b, sha256 00",
        "told above",
        "All 4 fingerprints match",
    ):
        assert text in done.output
    assert done.output.count("found: ") == 3


def test_json_tells_the_same_story(diamond: Dataset) -> None:
    done = CliRunner().invoke(main, ["lineage", diamond.uri, "--json"])
    story = json.loads(done.output)
    assert story["fingerprint"] == diamond.manifest.fingerprint
    assert [step["stage"] for step in story["steps"]] == ["import", "rewards", "train", "evaluate"]
    assert story["steps"][2]["params"] == {"beta": 0.1}
    assert {ancestor["state"] for ancestor in story["ancestors"]} == {"found"}


def test_ancestors_that_went_or_changed_are_told(diamond: Dataset, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "import")
    shutil.rmtree(tmp_path / "train")
    make(tmp_path, "train", {}, beta=0.5)
    states = {ancestor.name: ancestor.state.split(":")[0] for ancestor in ancestors(diamond)}
    assert states == {"rewarded": "found", "model": "changed", "prompts": "gone"}


def test_ancestors_are_looked_for_where_they_were_moved_to(diamond: Dataset, tmp_path: Path) -> None:
    """With the folder around them, under another name; what lies at the old place by then is another one."""
    (tmp_path / "run" / "artifacts").mkdir(parents=True)
    for stage in ("import", "rewards", "train", "evaluate"):
        shutil.rmtree(tmp_path / stage)
    source = make(tmp_path / "run" / "artifacts", "import", {}, sources=[{"name": "a"}])
    rewards = make(tmp_path / "run" / "artifacts", "rewards", {"prompts": source})
    last = make(tmp_path / "run" / "artifacts", "train", {"training": rewards})
    moved = (tmp_path / "run").rename(tmp_path / "kept")
    make(tmp_path / "run" / "artifacts", "rewards", {}, another=True)
    (moved / "model").symlink_to("artifacts/train")
    for place in ("artifacts/train", "model"):
        found = list(ancestors(Dataset.open(str(moved / place))))
        assert [(one.name, one.state) for one in found] == [("training", "found"), ("prompts", "found")]
        assert [Path(one.uri) for one in found] == [moved / "artifacts" / n for n in ("rewards", "import")]
        assert [one.state for one in verify(str(moved / place))] == ["good"] * 3
    assert last.uri not in {one.uri for one in found}


def test_an_edited_recipe_is_refused(diamond: Dataset) -> None:
    path = Path(diamond.uri) / "manifest.json"
    path.write_text(path.read_text().replace('"beta": 0.1', '"beta": 0.2'))
    done = CliRunner().invoke(main, ["lineage", diamond.uri])
    assert done.exit_code == 1
    assert "the manifest was changed" in done.stderr
    assert "Traceback" not in done.output


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["show", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert "nowhere is no finished dataset" in done.stderr


def test_show_tells_counts_drops_and_rows(diamond: Dataset) -> None:
    done = CliRunner().invoke(main, ["show", diamond.uri, "--rows", "1"])
    assert done.exit_code == 0, done.output
    for text in ("kubealign.prompts/v1", "prompt too long", "hello <b>you</b>", "fine"):
        assert text in done.output


def test_the_page_is_whole_and_escapes_what_it_shows(diamond: Dataset) -> None:
    page = Page(to_html(diamond.manifest))
    for wanted in ("import", "rewards", "train", "evaluate", "tiny & co", "a<b"):
        assert wanted in page.text
    assert page.loaded == []
    assert page.targets == set(diamond.manifest.recipe) == set(page.ids) - {"arrow"}


def test_the_picture_draws_the_edges_of_the_recipe_and_no_other(tmp_path: Path) -> None:
    """The shape of SALMON: prompts reach the judge past the filter, and the evaluation past everything."""
    source = make(tmp_path, "import", {})
    filtered = make(tmp_path, "filter", {"prompts": source})
    judged = make(tmp_path, "judge", {"completions": make(tmp_path, "sample", {"prompts": source})})
    reward = make(tmp_path, "train_reward_model", {"preferences": judged})
    policy = make(tmp_path, "train_ppo", {"prompts": filtered, "reward": reward})
    last = make(tmp_path, "evaluate", {"rewarded": filtered, "again": filtered, "model": policy})
    recipe = last.manifest.recipe
    edges = {(parent, child) for child in recipe for parent in recipe[child]["inputs"].values()}
    drawn = Page(to_html(last.manifest)).edges
    assert len(drawn) == len(set(drawn)) == 8
    assert set(drawn) == edges
