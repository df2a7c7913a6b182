"""A registry, and a model to register."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from support.datasets import MakeDataset
from support.fake_registry import Registry
from support.tiny import prompt_row


@pytest.fixture
def model(tmp_path: Path, make_dataset: MakeDataset) -> Dataset:
    """One trained from a policy of the hub, on one source."""
    sources = [{"name": "chats", "license": "cc-by-4.0", "content": {"commit": "c" * 40}}]
    prompts = make_dataset([prompt_row("hi", [])], stage="import_prompts", params={"sources": sources})
    params, models = {"objective": "dpo", "beta": 0.1}, {"policy": {"digest": "d" * 64}}
    own = derive("train", 1, params, inputs={"training": prompts}, models=models, slug=["dpo"])
    base = {"uri": "org/base", "revision": "e" * 40, "license": "apache-2.0"}
    own.origins[own.fingerprint] = {"places": {"d" * 64: base}, "versions": {}}
    with DatasetWriter(str(tmp_path / "model"), MODEL, own) as writer:
        return writer.commit(Stats())


@pytest.fixture
def registry() -> Iterator[Registry]:
    """One that answers."""
    server = Registry()
    with server.serving():
        yield server
