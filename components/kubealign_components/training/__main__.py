"""A training process: ``python -m kubealign_components.training JOB_URI``, started by torchrun or by ours."""

from __future__ import annotations

import os
import sys
from typing import Any

from kubealign_components.lean_imports import without_scikit_learn
from kubealign_components.training.program import Program, run_process


def _train() -> Program[Any]:
    from kubealign_components.train.stage import PROGRAM

    return PROGRAM


def _train_reward_model() -> Program[Any]:
    from kubealign_components.train_reward_model.stage import PROGRAM

    return PROGRAM


def _train_ppo() -> Program[Any]:
    from kubealign_components.train_ppo.stage import PROGRAM

    return PROGRAM


PROGRAMS = {"train": _train, "train_reward_model": _train_reward_model, "train_ppo": _train_ppo}
"""What a job can ask for; each stage brings in only its own."""

if __name__ == "__main__":
    without_scikit_learn()
    try:
        code = run_process(sys.argv[1], PROGRAMS)
    except SystemExit as stop:  # to stop, after a checkpoint
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # The work is done and published. Threads of gloo and DeepSpeed now and then abort the process while
    # the interpreter takes itself apart, which would be reported as a failed training.
    os._exit(code)
