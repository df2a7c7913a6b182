"""Cards say what a model was made of; the hub's own library reads them, and hostile names are only names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from kubealign.card import card, plain
from kubealign.cli.main import main
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import MODEL, PROMPTS
from kubealign_components.data.stats import Stats
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row

ATTACK = "</td><script>alert(1)</script> ![x](http://evil/x.png) [y](javascript:z) | `a` <http://evil>"


@pytest.fixture
def model(tmp_path: Path, make_dataset: MakeDataset) -> Dataset:
    """One trained from a policy of the hub, on a source of the hub and one of a file."""
    sources = [
        {"name": "chats", "content": {"commit": "c" * 40}},
        {"name": ATTACK, "content": {"sha256": "f" * 64}},
    ]
    prompts = make_dataset([prompt_row("hi", [])], stage="import_prompts", params={"sources": sources})
    models = {"policy": {"digest": "d" * 64}}
    own = derive(
        "train",
        1,
        {"objective": "dpo", "beta": 0.1},
        inputs={"training": prompts},
        models=models,
        slug=[ATTACK],
    )
    places = {
        "c" * 40: {"uri": "org/chats", "revision": "c" * 40},
        "f" * 64: {"uri": "data/file.jsonl"},
        "d" * 64: {"uri": "org/base", "revision": "e" * 40},
    }
    own.origins[own.fingerprint] = {"places": places, "versions": {}}
    with DatasetWriter(str(tmp_path / "model"), MODEL, own) as writer:
        return writer.commit(Stats())


def test_the_hub_s_library_reads_a_model_s_card(model: Dataset) -> None:
    read = ModelCard(card(model, {"reward_gain": 0.25, "prompts": 20.0})).data
    assert read.base_model == "org/base"
    assert read.datasets == ["org/chats"]  # a file is no dataset of the hub
    assert read.tags == ["kubealign", "dpo"]
    results = {result.metric_type: result.metric_value for result in read.eval_results}
    assert results == {"reward_gain": 0.25, "prompts": 20.0}


def test_names_are_only_names(model: Dataset) -> None:
    text = ModelCard(card(model, {"reward_gain": 0.25})).text
    page = Page(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text))
    assert not {"script", "img", "a", "code"} & set(page.tags)
    assert page.loaded == []
    assert [ATTACK, "f" * 64, "data/file.jsonl"] in page.rows
    assert ["beta", "0.1"] in page.rows and ["reward gain", "0.25"] in page.rows
    assert "Step: import_prompts" in page.text and "Step: train" in page.text


@pytest.mark.parametrize(
    "text", [ATTACK, "# no heading", "1. no list", "a\n\nb", "---", "\\", "$x$", "@someone"]
)
def test_a_text_stays_what_it_is(text: str) -> None:
    page = Page(MarkdownIt("commonmark", {"html": True}).render(plain(text)))
    assert page.text == " ".join(text.split()) and set(page.tags) <= {"p"}


def test_a_dataset_s_card_has_columns_and_drops(make_dataset: MakeDataset) -> None:
    text = card(make_dataset([prompt_row("hi", [])], PROMPTS))
    assert DatasetCard(text).data.configs == [{"config_name": "default", "data_files": "*.parquet"}]
    page = Page(MarkdownIt("gfm-like", {"linkify": False}).render(DatasetCard(text).text))
    assert ["prompt_id", "string"] in page.rows and "None." in page.text


def test_the_card_of_a_run_is_that_of_its_model_with_its_evaluation(model: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "runs" / "x"
    (run / "logs" / "1").mkdir(parents=True)
    (run / "pipeline.yaml").write_text("")
    (run / "made").symlink_to(model.uri)
    outputs = [{"task": "train", "output": "model", "type": "system.Model", "path": "made"}]
    results = {"outputs": outputs, "model": "made", "evaluation": {"reward_gain": 0.5}}
    (run / "results.json").write_text(json.dumps(results))
    done = CliRunner().invoke(main, ["card", str(run), "-o", str(tmp_path / "README.md")])
    assert done.exit_code == 0, done.output
    [result] = ModelCard((tmp_path / "README.md").read_text()).data.eval_results
    assert (result.metric_type, result.metric_value) == ("reward_gain", 0.5)
    alone = CliRunner().invoke(main, ["card", model.uri])
    assert "reward_gain" not in alone.output and "base_model: org/base" in alone.output
