"""What a pod of a TrainJob runs: ``python -m kubealign_components.training.node JOB_URI``.

torchrun with the arguments that the runtime's ``PET_`` variables give. Its exit code says whether another
attempt can help: 65 where the settings, the data or the model are at fault, for which the runtime does not
start the nodes anew, 143 where it was told to end.
"""

from __future__ import annotations

import os
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from kubealign_components.errors import FINAL, FINAL_CODE
from kubealign_components.preemption import EXIT_CODE, grace_seconds
from kubealign_components.training.launch import error_of
from kubealign_components.training.local_processes import STEP_SECONDS


def main(job: str) -> int:
    """Run the training processes of this node on the job at the URI ``job``; the exit code."""
    # torchrun passes SIGTERM on and kills after this; the processes need less to publish a checkpoint.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{grace_seconds(STEP_SECONDS) + 4:.0f}")
    try:
        torchrun.main(["-m", "kubealign_components.training", job])
    except ChildFailedError as failure:
        if isinstance(error_of(job), FINAL):
            return FINAL_CODE
        codes = {each.exitcode for each in failure.failures.values()}
        return EXIT_CODE if EXIT_CODE in codes else 1
    except SignalException:
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
