"""A single byte that is not what it was is refused, wherever it lies among a model and its ancestors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign.cli.main import main
from kubealign.verify import verify
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import KEY
from kubealign_components.data.stats import Stats
from kubealign_components.training.publishing import publish_model
from support.datasets import MakeDataset
from support.tiny import prompt_row


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    """A model of two files, made from a selection, made from prompts."""
    prompts = make_dataset([prompt_row(f"p{i}", ["a"]) for i in range(5)], stage="import_prompts", shards=2)
    selected = make_dataset([prompt_row("p1", ["a"])], stage="select", inputs={"prompts": prompts})
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    (files / "model.safetensors").write_bytes(b"weights")
    provenance = derive("train", 1, {"beta": 0.1}, inputs={"training": selected})
    members = {name: getattr(provenance, name) for name in provenance.__slots__}
    publish_model(files, str(tmp_path / "model"), members, [(1, {"loss": 0.5})], Stats(), {})
    return tmp_path / "model"


def test_what_is_whole_is_good_and_each_is_looked_at_once(model: Path) -> None:
    run = call(model, "--json")
    assert run.exit_code == 0, run.output
    looked_at = json.loads(run.output)
    assert [(one["stage"], one["state"], one["rows"], one["files"]) for one in looked_at] == [
        ("train", "good", 1, 4),
        ("select", "good", 1, 2),
        ("import_prompts", "good", 5, 3),
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(model: Path, data: st.DataObject) -> None:
    files = sorted(p for d in [model, *model.parent.glob("dataset-*")] for p in d.rglob("*") if p.is_file())
    assert len(files) == 4 + 2 + 3
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    content, place = bytearray(before), data.draw(st.integers(0, len(before) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    file.chmod(0o644)
    file.write_bytes(content)
    try:
        run = call(model)
        assert run.exit_code == 1 and "damaged" in run.output, run.output
        assert "Traceback" not in run.output
    finally:
        file.write_bytes(before)
    assert call(model).exit_code == 0


def test_spaces_of_a_manifest_count_too(model: Path) -> None:
    file = model / "manifest.json"
    file.chmod(0o644)
    file.write_text(file.read_text() + " ")
    assert "not as KubeAlign wrote it" in call(model).output


def test_an_ancestor_that_is_another_one_is_damage_and_one_that_is_gone_is_told(
    model: Path, make_dataset: MakeDataset
) -> None:
    [select, prompts] = [Path(one.uri) for one in verify(str(model)) if one.stage != "train"]
    other = make_dataset([prompt_row("p9", ["b"])], stage="select", params={"seed": 9})
    kept = select.rename(select.with_name("kept"))
    shutil.copytree(other.uri, select)
    run = call(model)
    assert run.exit_code == 1 and "is not the ancestor that was taken" in run.output
    shutil.rmtree(select)
    kept.rename(select)
    shutil.rmtree(prompts)
    run = call(model)
    assert run.exit_code == 0 and f"gone    {prompts}" in run.output
    run = call(prompts)
    assert run.exit_code == 1 and "no finished dataset" in run.output


def test_signed_manifests_are_held_to_their_key(
    model: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    signed = make_dataset([prompt_row("p", ["a"])])
    assert [one.state for one in verify(signed.uri)] == ["good"]
    assert [one.state for one in verify(str(model))] == ["damaged"]
    monkeypatch.delenv(KEY)
    assert [one.state for one in verify(signed.uri)] == ["good"]
