"""Fixtures: a tiny random Llama for plumbing, SmolLM2 and real data where the claim is about them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from support import executed_lines  # before what it watches is imported

# isort: split
from xdist.scheduler import LoadFileScheduling

from kubealign import quickstart
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import (
    PROMPTS,
)
from kubealign_components.data.stats import Stats
from support.tiny import build_tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of one would spin while they wait for a core that another has.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test has written need not survive a power cut: tests of many small datasets would wait for the disk
# for a third of their time. Processes that are started here do wait.
os.fsync = lambda _: None
for name in ("COLUMNS", "LINES"):
    # pytest loads readline, which sets them for processes that are started: workers, and programs under test.
    os.environ.pop(name, None)
    os.unsetenv(name)

# Machines are noisy: how long an example takes says nothing about whether it holds.
hypothesis.settings.register_profile("kubealign", deadline=None)
hypothesis.settings.load_profile("kubealign")


LONGEST = (
    *("alignment", "readme_runs", "going_on", "larger_than_memory", "multi_node", "sweep"),
    *("salmon", "train_distributed", "offline_alignment", "rounds", "engine_vllm", "family_chain", "rerun"),
)
"""Files of ``tests/local`` that take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: at the end no process waits long for the other."""
    starts = {f"tests/local/test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: _start(item.nodeid.partition("::")[0], starts))


def _start(file: str, starts: Mapping[str, int]) -> int:
    """When ``file`` starts, where those that ``starts`` does not have are as they are listed."""
    return -1 if file.startswith("tests/container/") else starts.get(file, len(starts))


class FilesAndContainers(LoadFileScheduling):  # type: ignore[misc]
    """Which tests stay in one process: those of a file, which may share a run, and all that need images."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/container" if file.startswith("tests/container/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndContainers | None:
    """Files in the order of their tests, where files stay together."""
    return FilesAndContainers(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_sessionfinish() -> None:
    """Leave which lines this process has run, where that is asked for."""
    executed_lines.save()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Llama of two layers; loads in milliseconds."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """``make_dataset(rows, schema=PROMPTS)`` publishes rows as a dataset of that kind."""
    made = 0

    def make(rows: Sequence[dict[str, Any]], schema: str = PROMPTS, **options: Any) -> Dataset:
        nonlocal made
        made += 1
        shards = options.pop("shards", 1)
        params = {"rows": json.loads(json.dumps(len(rows)))} | options.pop("params", {})
        provenance = derive(options.pop("stage", "test"), 1, params, **options)
        size = -(-len(rows) // shards) or 1
        with DatasetWriter(str(tmp_path / f"dataset-{made}"), schema, provenance) as writer:
            for start in range(0, len(rows), size):
                writer.write_rows(rows[start : start + size])
                writer.close_shard()
            return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))

    return make


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory."""
    return quickstart.smollm2()


@pytest.fixture(scope="session")
def preference_rows() -> list[dict[str, Any]]:
    """Real preference pairs in ShareGPT form."""
    rows: list[dict[str, Any]] = json.loads((quickstart.preferences() / "dpo_en_demo.json").read_text())
    return rows
