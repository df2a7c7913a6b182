"""A training process: ``torchrun -m kubealign_components.train JOB_FILE``."""

from __future__ import annotations

import sys
from pathlib import Path

from kubealign_components.train.launch import run_process

if __name__ == "__main__":
    sys.exit(run_process(Path(sys.argv[1])))
