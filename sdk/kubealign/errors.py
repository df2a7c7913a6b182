"""What the SDK raises beside the errors of the components.

KubeAlignError
├── ClusterError  Kubeflow Pipelines cannot be reached, or does not do what was asked of it
│   └── Unavailable  it does not answer now, and may later
├── RunFailed     a run that did not finish; names the task, its error and its log
└── RunStopped    a run that a signal ended
"""

from __future__ import annotations

from pathlib import Path

from kubealign_components.errors import KubeAlignError


class ClusterError(KubeAlignError):
    """Kubeflow Pipelines cannot be reached, or does not do what was asked of it."""


class Unavailable(ClusterError):
    """It does not answer now, and may later."""


class RunFailed(KubeAlignError):
    """A run that did not finish.

    Args:
        task: title of the task that failed.
        reason: its error, in one line if it was one of ours.
        log: file with everything the task wrote, if it wrote anything.
    """

    def __init__(self, task: str, reason: str, log: Path | None = None) -> None:
        pointer = f"\n  log: {log}" if log else ""
        super().__init__(f"{task} failed: {reason}{pointer}")
        self.task = task
        self.reason = reason
        self.log = log


class RunStopped(KubeAlignError):
    """A run that a signal ended; what was finished is kept.

    Args:
        number: the signal.
        name: of the run.
    """

    def __init__(self, number: int, name: str) -> None:
        super().__init__(f"stopped; finished rows and checkpoints of run {name} are kept")
        self.exit_code = 128 + number
