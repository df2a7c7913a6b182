"""Chunked stages as they are, in processes that break where they are told to.

The processes are forked off a server that has imported what is slow to import, so one starts in no time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kubealign_components.config import from_mapping
from kubealign_components.data.chunks import Chunk, Part
from kubealign_components.judge.stage import JudgeConfig
from kubealign_components.judge.stage import run as judge
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.logprobs.stage import run as logprobs
from kubealign_components.rank.stage import RankConfig
from kubealign_components.rank.stage import run as rank
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as rewards
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from kubealign_components.store import faulty, register

STAGES: dict[str, tuple[Any, Callable[..., Part]]] = {
    "judge": (JudgeConfig, judge),
    "logprobs": (LogprobsConfig, logprobs),
    "rank": (RankConfig, rank),
    "rewards": (RewardsConfig, rewards),
    "sample": (SampleConfig, sample),
}
SLOW_IMPORTS = [
    "torch",
    "kubealign_components.engines.transformers_engine",
    "kubealign_components.engines.judge_model",
    "kubealign_components.engines.reward_model",
    "transformers.models.llama.modeling_llama",
    *(f"kubealign_components.{name}.stage" for name in STAGES),
]

Settings = dict[str, Any]


def run(stage: str, settings: Settings, chunk: Chunk) -> Part:
    """The part of ``chunk``, with a store that does not fail."""
    register(faulty.SCHEME, lambda: faulty.FaultyStore({}))
    config, function = STAGES[stage]
    return function(from_mapping(config, settings, stage), chunk=chunk)


def start(
    stage: str, settings: Settings, chunk: Chunk, folder: Path, *, write: int, moment: str, how: str
) -> BaseProcess:
    """A process on ``chunk`` to which ``how`` happens at ``moment`` of its write number ``write``.

    Args:
        stage: one of :data:`STAGES`.
        settings: of the stage.
        chunk: with a work prefix of :mod:`kubealign_components.store.faulty`.
        folder: what it says goes to ``said`` there; where processes meet.
        write: number of the write, from 0.
        moment: one of ``faulty.MOMENTS``.
        how: kill, terminate, or meet: wait until another process is there as well.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    arguments = (stage, settings, chunk.to_json(), str(folder), write, moment, how)
    process = context.Process(target=_work, args=arguments)
    process.start()
    return process


def _work(
    stage: str, settings: Settings, chunk: dict[str, Any], folder: str, write: int, moment: str, how: str
) -> None:
    said = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 2)
    act = {"kill": faulty.kill, "terminate": _terminate, "meet": lambda _: _meet(Path(folder))}[how]
    store = faulty.FaultyStore({write: moment}, act)
    register(faulty.SCHEME, lambda: store)
    config, function = STAGES[stage]
    part = function(from_mapping(config, settings, stage), chunk=Chunk.from_json(chunk))
    Path(folder, f"part-{os.getpid()}").write_text(json.dumps(part.to_json()))


def _terminate(_: str) -> None:
    """What a pod gets when its node is taken away."""
    os.kill(os.getpid(), signal.SIGTERM)


def _meet(folder: Path) -> None:
    (folder / f"here-{os.getpid()}").touch()
    while len(list(folder.glob("here-*"))) < 2:
        time.sleep(0.005)
