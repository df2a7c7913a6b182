"""Which model lies in a store is known without its weights, and as surely as with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kubealign_components.data.cache import CACHE
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import OutputRequest, record_finished, take_finished
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.stats import Stats
from kubealign_components.data.weight_records import RECORD
from kubealign_components.engines.dtypes import saved_dtype_name
from kubealign_components.errors import EngineError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_rows
from kubealign_components.store import join, put, store_for
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run as train
from kubealign_components.training.publishing import provenance_of, publish_folder, publish_model
from support.datasets import MakeDataset, questions
from support.store_wire import Wire
from support.tiny import build_tiny_model
from support.training_data import make_training, training_rows

FEW = 10**6
"""Bytes; the weights are more."""
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1.3 MB whose config does not say what it is in."""
    folder = build_tiny_model(tmp_path_factory.mktemp("model"), hidden=128)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    assert (folder / WEIGHTS).stat().st_size > FEW
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to another machine, whose cache is empty."""
    return lambda name: monkeypatch.setenv(CACHE, str(tmp_path / f"cache-{name}"))


def identities(model: ModelFiles) -> tuple[dict[str, str], str, str, int]:
    saved = saved_dtype_name("saved", model.path, model.elsewhere)
    return model.identity(), model.tokenizer_digest(), saved, model.weight_bytes()


def another(model: Path, folder: Path) -> Path:
    """Weights of the same size with another last bit."""
    body = (model / WEIGHTS).read_bytes()
    path = folder / "other.safetensors"
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    return path


def test_a_foreign_model_is_fetched_by_the_first_and_known_to_the_others(
    wire: Wire, remote: str, model: Path, machine: Callable[[str], None]
) -> None:
    publish_folder(model, remote)
    machine("first")
    fetched = find_model(remote, weights=False)
    assert wire.fetched > FEW
    machine("second")
    wire.fetched = 0
    light = find_model(remote, weights=False)
    assert find_model(remote, weights=False).path == light.path
    assert identities(light) == identities(fetched) == identities(find_model(str(model)))
    assert 0 < wire.fetched < FEW
    whole = find_model(remote)
    assert (whole.path / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert whole.identity() == light.identity()


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_record_of_anything_else_is_not_believed(
    wire: Wire, remote: str, model: Path, machine: Callable[[str], None], tmp_path: Path, damage: str
) -> None:
    publish_folder(model, remote)
    machine("first")
    before = find_model(remote).identity()
    store, record = store_for(remote), join(remote, RECORD)
    if damage == "changed":
        store.delete(join(remote, WEIGHTS))
        store.publish_file(another(model, tmp_path), join(remote, WEIGHTS))
    else:
        put(record, store.read(record)[:-5])
    machine("second")
    wire.fetched = 0
    assert (find_model(remote, weights=False).identity() == before) == (damage != "changed")
    assert wire.fetched > FEW
    machine("third")
    wire.fetched = 0
    assert (find_model(remote, weights=False).identity() == before) == (damage != "changed")
    assert wire.fetched < FEW


def test_where_nothing_may_be_written_the_model_is_fetched_again(
    wire: Wire, remote: str, model: Path, machine: Callable[[str], None]
) -> None:
    publish_folder(model, remote)
    for name in ("first", "second"):
        machine(name)
        wire.fetched = 0
        method = "POST" if remote.startswith("gs") else "PUT"
        wire.spoil(method, "refuse")
        assert find_model(remote, weights=False).identity() == find_model(str(model)).identity()
        assert wire.fetched > FEW
    assert not store_for(remote).exists(join(remote, RECORD))


def test_stages_that_run_no_model_fetch_no_weights(
    wire: Wire,
    remote: str,
    model: Path,
    machine: Callable[[str], None],
    make_dataset: MakeDataset,
    tmp_path: Path,
) -> None:
    """filter, and the process that launches a training, of a model that a run made."""
    publish_model(model, remote, provenance(), [], Stats(), {})
    machine("filter")
    wire.fetched = 0
    filter_rows(FilterConfig(policy=remote), prompts=make_dataset(questions(2)), output=str(tmp_path / "f"))
    assert wire.fetched < FEW
    machine("launcher")
    training = make_training(make_dataset, model, training_rows(4))
    config = TrainConfig(
        policy=remote,
        max_steps=1,
        nodes=2,
        work=str(tmp_path / "work"),
        strategy="fsdp2",
        max_initial_drift=1,
    )
    jobs: list[str] = []
    wire.fetched = 0
    with pytest.raises(EngineError, match="does not hold the model"):
        train(config, training=training, output=str(tmp_path / "model"), launcher=jobs.append)
    assert wire.fetched < FEW
    assert len(jobs) == 1


def test_a_finished_model_is_taken_by_its_versions(
    wire: Wire, remote: str, model: Path, machine: Callable[[str], None], tmp_path: Path
) -> None:
    made, taken = join(remote, "made"), join(remote, "taken")
    publish_model(model, made, provenance(), [], Stats(), {})
    record_finished(request(remote, made))
    wire.fetched = 0
    assert take_finished(request(remote, taken)) is not None
    assert wire.fetched < FEW
    machine("reader")
    assert find_model(taken, weights=False).identity() == find_model(str(model)).identity()
    assert wire.fetched < FEW
    store_for(remote).delete(join(taken, WEIGHTS))
    store_for(remote).delete(join(made, WEIGHTS))
    store_for(remote).publish_file(another(model, tmp_path), join(made, WEIGHTS))
    store_for(remote).publish_file(another(model, tmp_path), join(taken, WEIGHTS))
    assert take_finished(request(remote, join(remote, "again"))) is None


def provenance() -> dict[str, object]:
    made = derive("train", 1, {"of": "this test"})
    return {name: getattr(made, name) for name in Provenance.__slots__}


def request(work: str, output: str) -> OutputRequest:
    made = provenance_of(provenance())
    return OutputRequest(
        work=join(work, "work"), stage="train", key=made.fingerprint, output=output, provenance=made
    )


def test_the_rows_of_a_model_are_no_part_of_it(remote: str, model: Path) -> None:
    publish_model(model, remote, provenance(), [(1, {"loss": 0.5})], Stats(), {})
    assert RECORD not in Dataset.open(remote).manifest.extra["files"]
    assert find_model(remote).tokenizer_digest() == find_model(str(model)).tokenizer_digest()
