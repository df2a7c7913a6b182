"""What Argo does with a step's pod that ended: a model of its retry rules, for the two releases in use.

Argo 3.7 and 4.0 decide alike. What differs is the policy of a step that names none: Argo's own default under
Kubeflow Pipelines 2.16, and the installation's under 2.17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

POLICY_OF = {"2.16": "OnFailure", "2.17": "OnError"}
"""Effective policy of a step's retries by release of Kubeflow Pipelines."""
FAILED, ERROR = "Failed", "Error"
"""Phases of a pod: a container ended with a code, or the pod was lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One pod of a step, in seconds."""

    started: float
    finished: float
    phase: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """A step's retry strategy as Kubeflow compiles it."""

    limit: int
    duration: float
    factor: float
    max_duration: float

    @classmethod
    def compiled(cls, policy: dict[str, object]) -> Retries:
        """From the ``retryPolicy`` of a compiled task."""
        seconds = {name: float(str(value).rstrip("s")) for name, value in policy.items()}
        return cls(
            limit=int(seconds["maxRetryCount"]),
            duration=seconds["backoffDuration"],
            factor=seconds["backoffFactor"],
            max_duration=seconds["backoffMaxDuration"],
        )

    def after(
        self, attempts: Sequence[Attempt], release: str, *, deadline: float = float("inf")
    ) -> tuple[float | None, str]:
        """When the next pod begins, None for never, and what Argo says.

        Args:
            attempts: the pods so far, of which the last one ended.
            release: of Kubeflow Pipelines.
            deadline: when the Workflow is to end.
        """
        last = attempts[-1]
        if last.finished > deadline:
            return None, "retry exceeded workflow deadline"
        window = attempts[0].started + self.max_duration
        if last.finished > window:
            return None, "Max duration limit exceeded"
        begins = last.finished + self.duration * self.factor ** (len(attempts) - 1)
        if begins > window:
            return None, "Backoff would exceed max duration limit"
        retried = ERROR if POLICY_OF[release] == "OnError" else FAILED
        if last.phase != retried:
            return None, "Node not set to be retried"
        if len(attempts) > self.limit:
            return None, "No more retries left"
        return begins, ""
