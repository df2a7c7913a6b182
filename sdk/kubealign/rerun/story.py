"""What a manifest tells of a run: its steps, which of them fed which, and where things lay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from kubealign_components.config import require
from kubealign_components.data.fingerprint import Step, digest
from kubealign_components.data.manifest import ENDED_EARLY, Manifest
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
BENCHMARKS = frozenset(["benchmark"])
"""Stages that either pipeline may have beside these."""
ROUNDS = frozenset(["next_round", "join_rounds"])
"""Stages that begin and join further rounds of offline alignment."""
_ONCE = frozenset(["import_prompts", "filter"])
"""Stages that stand before all rounds."""
DRAWS = frozenset(["draw_more", "join_draws"])
"""Stages between the draws of a range."""
_TWICE = frozenset(["filter", "sample", "train_reward_model"])
"""Stages that SALMON has two of."""


class Story:
    """The steps that led to what ``manifest`` describes.

    Raises:
        ConfigError: they are not those of one run of a pipeline.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.recipe = {
            name: step for name, step in manifest.recipe.items() if ENDED_EARLY not in step["params"]
        }
        """Without the steps of rounds that made nothing."""
        self.stages = {step["stage"] for step in self.recipe.values()}
        require(
            not self.stages & DRAWS,
            "rerun",
            manifest.slug,
            "what a run made that drew as many completions of every prompt: this one's sample_n was a range, "
            "for which no run file can be told; run the file that made it once more",
        )
        of_sweep = any(not step["params"]["rounds"] for step in self.all("choose"))
        require(
            not of_sweep,
            "rerun",
            manifest.slug,
            "what one run made: this is the choice among the variants of a sweep; name the model or the "
            "evaluation of one of them, such as the chosen one's, or run the file of the sweep once more",
        )
        salmon = bool(self.stages & SALMON)
        own = SALMON | OFFLINE - {"import_prompts"} if salmon else OFFLINE | ROUNDS | {"choose"}
        stages = own | BENCHMARKS
        repeated = (
            dict.fromkeys(_TWICE, 2) if salmon else dict.fromkeys(OFFLINE - _ONCE | ROUNDS, self.rounds)
        )
        counts = Counter(step["stage"] for step in self.recipe.values())
        for stage, count in counts.items():
            self._require(stage in stages, f"its recipe has a step {stage!r} that is none of that pipeline's")
            most = repeated.get(stage, 1)
            self._require(count <= most, f"its recipe has a step {stage!r} more than {most} times")

    def all(self, stage: str) -> list[Step]:
        """The steps of ``stage``."""
        return [step for step in self.recipe.values() if step["stage"] == stage]

    @property
    def rounds(self) -> int:
        """How many rounds of offline alignment led here, or were to."""
        if chosen := [int(step["params"]["rounds"]) for step in self.all("choose")]:
            return max(chosen)
        return max((int(step["params"]["number"]) for step in self.all("next_round")), default=1)

    def of_first_round(self, stage: str) -> list[Step]:
        """The steps of ``stage`` that no further round led to: their models are those that the run was
        given."""
        return [step for step in self.all(stage) if not self._of_further_round(step)]

    def _of_further_round(self, step: Step) -> bool:
        recipe = self.manifest.recipe
        parents = (recipe[name] for name in step["inputs"].values() if name in recipe)
        return any(parent["stage"] in ROUNDS or self._of_further_round(parent) for parent in parents)

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
