"""What a manifest tells of a run: its steps, which of them fed which, and where things lay."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_components.config import require
from kubealign_components.data.fingerprint import Step, digest
from kubealign_components.data.manifest import Manifest
from kubealign_components.errors import ConfigError

SALMON = frozenset(
    ["clean_prompts", "judge", "aggregate", "clean_pmp", "train_reward_model", "rl_prompts", "train_ppo"]
)
"""Stages that only SALMON has."""
OFFLINE = frozenset(
    [
        "import_prompts",
        "filter",
        "sample",
        "rewards",
        "rank",
        "select",
        "logprobs",
        "mix",
        "train",
        "evaluate",
    ]
)
"""Stages of offline alignment; SALMON has all but the first."""
ROUNDS = frozenset(["next_round", "join_rounds"])
"""Stages that begin and join further rounds of offline alignment."""
_TWICE = frozenset(["filter", "sample", "train_reward_model"])
"""Stages that SALMON has two of."""


class Story:
    """The steps that led to what ``manifest`` describes.

    Raises:
        ConfigError: they are not those of one run of a pipeline.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.stages = {step["stage"] for step in manifest.recipe.values()}
        twice = _TWICE if self.stages & SALMON else frozenset[str]()
        stages = SALMON | OFFLINE - {"import_prompts"} if self.stages & SALMON else OFFLINE
        counts: dict[str, int] = {}
        for step in manifest.recipe.values():
            stage = step["stage"]
            counts[stage] = counts.get(stage, 0) + 1
            require(
                stage not in ROUNDS,
                "rerun",
                manifest.slug,
                "what a run of one round made: this is of several, for which no run file can be told; run "
                "the file that made it once more",
            )
            self._require(stage in stages, f"its recipe has a step {stage!r} that is none of that pipeline's")
            most = 2 if stage in twice else 1
            self._require(counts[stage] <= most, f"its recipe has a step {stage!r} more than {most} times")

    def all(self, stage: str) -> list[Step]:
        """The steps of ``stage``."""
        return [step for step in self.manifest.recipe.values() if step["stage"] == stage]

    def one(self, stage: str, **fed_by: str) -> Step | None:
        """The step of ``stage`` whose inputs, by role, are of the stages ``fed_by``; None for none."""
        for step in self.all(stage):
            if all(self.feeding(step, role) == name for role, name in fed_by.items()):
                return step
        return None

    def feeding(self, step: Step, role: str) -> str:
        """The stage that made the input ``role`` of ``step``; empty where it has no such input."""
        fingerprint = step["inputs"].get(role)
        return self.manifest.recipe[fingerprint]["stage"] if fingerprint else ""

    def origin_of(self, content: str) -> Mapping[str, str]:
        """Where that of the digest ``content`` lay: ``uri``, and ``revision`` where there was one.

        Raises:
            ConfigError: the manifest does not tell.
        """
        if origin := self.manifest.origin_of(content):
            return origin
        raise ConfigError("rerun", self.manifest.slug, f"a manifest that says where {content[:12]} lay")

    def uri_of(self, content: object) -> str:
        """Where a text or a set that a step holds whole lay."""
        return self.origin_of(digest(content))["uri"]

    def _require(self, ok: bool, why: str) -> None:
        pipeline = "salmon" if self.stages & SALMON else "offline_alignment"
        require(ok, "rerun", self.manifest.slug, f"what one run of {pipeline} made; {why}")
