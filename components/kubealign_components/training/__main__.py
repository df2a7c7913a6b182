"""A training process: ``torchrun -m kubealign_components.training JOB_URI``."""

from __future__ import annotations

import os
import sys

from kubealign_components.training.launch import run_process

if __name__ == "__main__":
    try:
        code = run_process(sys.argv[1])
    except SystemExit as told:  # to stop, after a checkpoint
        code = told.code if isinstance(told.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # The work is done and published. Threads of gloo and DeepSpeed now and then abort the process while
    # the interpreter takes itself apart, which would be reported as a failed training.
    os._exit(code)
