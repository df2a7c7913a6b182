"""A dataset or model is never freer than what went into it, and everything that describes one says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from kubealign.card import card
from kubealign.cli.main import main
from kubealign_components.artifacts import describe
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.export import export
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.hub_licenses import HUB_LICENSES, card_head
from kubealign_components.data.licenses import (
    UNKNOWN,
    joined,
    license_in_card,
    license_of_model,
    licensed,
    licenses,
    parse_license,
    strictest,
)
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.models import find_model
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.reports.lineage import to_html
from kubealign_components.reports.rows import rows_page
from kubealign_components.training.publishing import publish_model
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row

WORDS = st.sampled_from(["mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "llama3.1", UNKNOWN])
TEXTS = st.sets(WORDS, min_size=1, max_size=3).map(joined)


def write_source(folder: Path, text: str = "Why?", card: str = "") -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    if card:
        (folder / "README.md").write_text(card)
    return folder


def imported(output: Path, *sources: SourceConfig, work: str = "") -> Dataset:
    run(ImportConfig(sources=sources, work=work), output=str(output))
    return Dataset.open(str(output))


@given(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=4))
def test_no_stage_makes_an_output_freer_than_its_inputs(inputs: list[tuple[str, bool]]) -> None:
    datasets: dict[str, Dataset] = {}
    for number, (text, stated) in enumerate(inputs):
        source = {"name": f"s{number}", "content": {"sha256": str(number)}}
        made = derive("import_prompts", 1, {"sources": [source | ({"license": text} if stated else {})]})
        datasets[f"selection_{number}"] = Dataset("", _manifest(made))
    mixed = _manifest(derive("mix", 1, {}, inputs=datasets))
    for dataset in datasets.values():
        assert set(licenses(dataset.manifest)) <= set(licenses(mixed))
    assert (UNKNOWN in licenses(mixed)) is any(UNKNOWN in text or not stated for text, stated in inputs)


def _manifest(provenance: object) -> Manifest:
    members = {name: getattr(provenance, name) for name in provenance.__slots__}  # type: ignore[attr-defined]
    del members["ended_early"]
    return Manifest(schema="kubealign.prompts/v1", rows=0, shards=(), **members)


@given(TEXTS, TEXTS)
def test_what_is_stated_frees_nothing_that_a_card_binds(stated: str, said: str) -> None:
    both = set(parse_license(strictest(stated, said)))
    assert {*parse_license(stated), *(set(parse_license(said)) - {UNKNOWN})} == both
    assert strictest(stated, "other") == strictest(stated, "") == strictest("", stated)


@pytest.mark.parametrize("text", ["free as in beer", "MIT OR Apache-2.0", "AND", "a AND", "<b>"])
def test_what_is_no_licence_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="SPDX identifier"):
        SourceConfig(uri="a", license=text)
    assert license_in_card(f"---\nlicense: {json.dumps(text)}\n---\n") == "other"


@pytest.mark.parametrize(
    ("stated", "read"),
    [
        (["cc-by-nc-4.0", "Acme terms"], "cc-by-nc-4.0 AND other"),
        (["Acme terms", "CC-BY-NC-4.0 AND MIT"], "cc-by-nc-4.0 AND mit AND other"),
        ("CC-BY-NC-4.0 AND Acme terms", "cc-by-nc-4.0 AND other"),
        ([{"name": "cc-by-4.0"}, None, "mit"], "mit AND other"),
        ([], ""),
        (None, ""),
    ],
)
def test_one_licence_that_cannot_be_read_hides_no_other(stated: object, read: str) -> None:
    said = license_in_card(f"---\nlicense: {json.dumps(stated)}\n---\n")
    assert said == read
    assert set(parse_license(strictest("MIT", said))) == {"mit", *parse_license(read or "mit")} - {"other"}


def test_settings_and_card_of_a_source_are_carried_on(tmp_path: Path) -> None:
    bound = write_source(tmp_path / "bound", "What?", "---\nlicense: cc-by-nc-4.0\n---\n# Data\n")
    sources = SourceConfig(uri=str(bound), license="MIT"), SourceConfig(uri=str(write_source(tmp_path / "b")))
    made = imported(tmp_path / "made", *sources)
    assert licenses(made.manifest) == ["cc-by-nc-4.0", "mit", UNKNOWN]
    assert [(one.name, one.license) for one in licensed(made.manifest)] == [
        ("b", UNKNOWN),
        ("bound", "cc-by-nc-4.0 AND mit"),
    ]


def test_a_licence_that_is_stated_later_is_no_longer_unknown(tmp_path: Path) -> None:
    uri, work = str(write_source(tmp_path / "a")), str(tmp_path / "work")
    before = imported(tmp_path / "1", SourceConfig(uri=uri), work=work)
    after = imported(tmp_path / "2", SourceConfig(uri=uri, license="mit"), work=work)
    assert licenses(before.manifest) == [UNKNOWN]
    assert licenses(after.manifest) == ["mit"]
    assert list(after.iter_rows()) == list(before.iter_rows())
    (tmp_path / "a" / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n")
    again = imported(tmp_path / "3", SourceConfig(uri=uri, license="mit"), work=work)
    assert licenses(again.manifest) == ["cc-by-sa-4.0", "mit"]


@pytest.mark.parametrize(
    ("stated", "head"),
    [
        ("CC-BY-4.0", ["cc-by-4.0"]),
        ("CC-BY-4.0 AND MIT", ["cc-by-4.0", "mit"]),
        ("GPL-3.0-only", "other"),
        ("MIT AND LicenseRef-A-and-B AND GPL-2.0+", "other"),
    ],
)
def test_an_exported_dataset_keeps_its_licences_when_it_is_imported(
    stated: str, head: object, tmp_path: Path
) -> None:
    made = imported(tmp_path / "made", SourceConfig(uri=str(write_source(tmp_path / "a")), license=stated))
    export(made, "trl", tmp_path / "out")
    read = DatasetCard.load(tmp_path / "out" / "README.md")
    assert read.data.license == head
    assert all(f"`{name}`" in read.text for name in parse_license(stated))
    again = imported(tmp_path / "again", SourceConfig(uri=str(tmp_path / "out"), license="mit"))
    assert set(licenses(again.manifest)) == {*parse_license(stated), "mit"}


@given(st.sets(st.one_of(WORDS, st.from_regex(r"[a-z0-9][a-z0-9.+-]{0,20}", fullmatch=True)), min_size=1))
def test_the_head_of_a_card_is_one_that_the_hub_takes_and_says_all(names: set[str]) -> None:
    names = set(parse_license(joined(names - {"and", "or", "with"} or {"mit"})))
    head = card_head(names)
    if names <= HUB_LICENSES:
        assert head == {"license": sorted(names)}
    else:
        assert head["license"] == "other" and re.fullmatch(r"[a-z0-9.-]+", str(head["license_name"]))
    assert set(license_in_card(f"---\n{yaml.safe_dump(head)}---\n").split(" AND ")) == names


@pytest.mark.parametrize(
    ("name", "read"), [("Acme-1.0", "acme-1.0"), ("Acme terms", "other"), ("", "other"), (None, "other")]
)
def test_a_licence_that_the_hub_does_not_list_has_its_name(name: str | None, read: str) -> None:
    head = {"license": "other", "license_name": name, "license_details": "free as in beer"}
    assert license_in_card(f"---\n{yaml.safe_dump(head)}---\n") == read
    assert license_in_card(f"---\n{yaml.safe_dump(head | {'license': 'mit'})}---\n") == "mit"


@pytest.fixture
def model(tmp_path: Path, make_dataset: MakeDataset, tiny_model: Path) -> Dataset:
    """One that was trained on licensed prompts, from a policy whose card names a licence."""
    policy = tmp_path / "policy"
    policy.mkdir()
    for file in tiny_model.iterdir():
        (policy / file.name).symlink_to(file)
    (policy / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    sources = [{"name": "chats", "license": "cc-by-4.0", "content": {"sha256": "f" * 64}}]
    prompts = make_dataset([prompt_row("p", ["a"])], stage="import_prompts", params={"sources": sources})
    identity = find_model(str(policy)).identity() | {"tokenizer": "t"}
    own = derive("train", 1, {}, inputs={"training": prompts}, models={"policy": identity})
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    members = {name: getattr(own, name) for name in own.__slots__}
    publish_model(files, str(tmp_path / "model"), members, [(1, {"loss": 0.5})], Stats(), {})
    return Dataset.open(str(tmp_path / "model"))


def test_a_model_is_bound_by_its_data_and_its_base(model: Dataset) -> None:
    assert licenses(model.manifest) == ["cc-by-4.0", "llama3.1"]
    assert license_of_model(Path(model.uri)) == "cc-by-4.0 AND llama3.1"
    (Path(model.uri) / "README.md").write_text("---\nlicense: mit\n---\n")
    assert license_of_model(Path(model.uri)) == "cc-by-4.0 AND llama3.1 AND mit"


def test_a_reward_model_binds_an_evaluation_of_a_model_that_is_known(model: Dataset) -> None:
    places = {
        "a" * 64: {"uri": "org/aligned", "license": "llama3.1"},
        "b" * 64: {"uri": "org/scorer", "license": "cc-by-nc-4.0"},
    }
    reward = {"functions": {"brevity": "1"}, "model": {"digest": "b" * 64, "tokenizer": "t"}}
    models = {"aligned": {"digest": "a" * 64}, "reward": reward}
    own = derive("evaluate", 1, {}, inputs={"model": model}, models=models)
    own.origins[own.fingerprint] = {"places": places, "versions": {}}
    compared = _manifest(own)
    assert licenses(compared) == ["cc-by-4.0", "cc-by-nc-4.0", "llama3.1"]
    assert [(one.kind, one.name) for one in licensed(compared)] == [
        ("aligned", "aligned"),
        ("policy", "policy"),
        ("reward model", "scorer"),
        ("source", "chats"),
    ]


def test_everything_that_describes_it_says_so(model: Dataset, make_dataset: MakeDataset) -> None:
    assert describe(model.manifest)["license"] == "cc-by-4.0 AND llama3.1"
    assert "license:\n- cc-by-4.0\n- llama3.1\n" in card(model)
    assert "| policy | policy | llama3\\.1 |" in card(model)
    assert ["source", "chats", "cc-by-4.0"] in Page(to_html(model.manifest)).rows
    sources = [{"name": "s", "license": "cc-by-4.0", "content": {}}]
    rows = make_dataset([prompt_row("p", ["a"])], stage="import_prompts", params={"sources": sources})
    assert "cc-by-4.0" in Page(rows_page(rows)).text
    for command in (["lineage", model.uri], ["verify", model.uri]):
        shown = CliRunner().invoke(main, command).output
        assert "licence cc-by-4.0 AND llama3.1" in " ".join(shown.split())
    told = json.loads(CliRunner().invoke(main, ["lineage", model.uri, "--json"]).output)
    assert {"kind": "policy", "name": "policy", "license": "llama3.1"} in told["licenses"]
    verified = json.loads(CliRunner().invoke(main, ["verify", model.uri, "--json"]).output)
    assert [one["license"] for one in verified] == ["cc-by-4.0 AND llama3.1", "cc-by-4.0"]


def test_a_licence_that_was_changed_is_found(model: Dataset) -> None:
    path = Path(model.uri) / "manifest.json"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("cc-by-4.0", "cc0-1.0"))
    assert CliRunner().invoke(main, ["verify", model.uri]).exit_code != 0
