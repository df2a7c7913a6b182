"""The walk from the component to the first optimiser step, as CONTRIBUTING tells it, is short."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from kfp import dsl
from torch.optim.optimizer import register_optimizer_step_pre_hook

import kubealign_components
from kubealign_components.data.dataset import Dataset
from kubealign_components.train.component import train
from support.datasets import MakeDataset
from support.training_data import make_training, score, training_rows

OURS = str(Path(kubealign_components.__file__).parent)
CALLS = 8
WALK = [
    "train/component.py",
    "train/stage.py",
    "training/program.py",
    "training/launch.py",
    "training/program.py",
    "train/program.py",
]
"""Files that the walk leads through, in its order."""


class _Reached(Exception):
    """The first optimiser step is about to be taken."""


def test_at_most_eight_calls_lead_from_the_component_to_the_first_step(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    data: Dataset = make_training(make_dataset, tiny_model, score(training_rows(4), tiny_model))
    walk: list[str] = []

    def reached(*_: object) -> None:
        frames = [f for f in inspect.stack(0) if f.filename.startswith(OURS)]
        walk.extend(str(Path(f.filename).relative_to(OURS)) for f in reversed(frames))
        raise _Reached

    hook = register_optimizer_step_pre_hook(reached)
    artifact = dsl.Dataset(uri=data.uri)
    made = {
        "model": dsl.Model(uri=str(tmp_path / "model")),
        "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        "curves": dsl.HTML(uri=str(tmp_path / "curves.html")),
    }
    try:
        with pytest.raises(_Reached):
            train.python_func(
                training=artifact,
                policy=str(tiny_model),
                max_steps=1,
                options={"batch_size": 2, "dtype": "float32"},
                **made,
            )
    finally:
        hook.remove()
    steps = iter(walk)
    assert all(file in steps for file in WALK), walk
    assert len(walk) <= CALLS, walk
