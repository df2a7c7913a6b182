"""The variants of a sweep: what each was made with, gained and cost."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kubealign_components.data.bootstrap import Interval
from kubealign_components.data.bounds import Floats, simultaneous_intervals
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.schemas import EvaluationRow
from kubealign_components.errors import ConfigError, DataError

NORMAL = 1.96
"""Standard errors to either end of a 95 % interval."""
ERROR = 0.05
"""How often one of the limits that are kept to may not be, of all variants together."""
ROUND = "round"
"""What tells rounds of alignment apart."""
_OF_THE_END = re.compile(r"evaluate_|.*_ended_early$")
"""Names of settings that a variant lacks, or has, since it ended early."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One evaluated model."""

    name: str
    evaluation: Dataset
    settings: Mapping[str, object]
    """Those that differ between variants, by stage and name."""
    rewards: Floats
    """Mean reward of the aligned model's completions of each prompt, shape (prompts,)."""
    gains: Floats
    """The same minus that of the reference's completions."""
    lengths: Floats
    """Mean tokens of the aligned model's completions of each prompt."""
    reference_lengths: Floats
    """Mean tokens of the reference's completions of each prompt."""
    prompts: int
    """Prompts of its evaluation, those that others lack among them."""
    lost: int
    """Prompts of the others' evaluations that its own lacks."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """Those of its evaluation."""
        numbers: Mapping[str, float] = self.evaluation.manifest.stats["numbers"]
        return numbers

    @property
    def length(self) -> float:
        """Mean tokens of a completion."""
        return float(self.lengths.mean())

    @property
    def share(self) -> float:
        """Of the steps of its training that the model was made after."""
        made = self.evaluation.manifest
        trained = [one for one in steps_of(made.fingerprint, made.recipe) if one.stage == "train"]
        return float(trained[-1].params.get("stop_after", 1.0)) if trained else 1.0

    def length_interval(self, seed: int) -> Interval:
        """The 95 % interval of the mean length, bootstrapped over prompts."""
        low, high = simultaneous_intervals(self.lengths[None, :], seed=seed)
        return float(low[0]), float(high[0])

    @property
    def kl(self) -> float | None:
        """KL to the reference, nats a completion; None where it was not estimated."""
        return self.numbers.get("kl_per_completion")

    @property
    def kl_interval(self) -> Interval | None:
        """Of the KL, 95 %; None where it was estimated on a single prompt, or not at all."""
        if self.kl is None or "kl_standard_error" not in self.numbers:
            return None
        error = NORMAL * self.numbers["kl_standard_error"]
        return self.kl - error, self.kl + error

    def kl_at_most(self, *, among: int) -> float:
        """The KL that it has at most, with 95 % for all of ``among`` variants (Bonferroni); infinite where it
        was estimated on a single prompt, or not at all."""
        if self.kl is None or "kl_standard_error" not in self.numbers:
            return math.inf
        return self.kl + NormalDist().inv_cdf(1 - ERROR / among) * self.numbers["kl_standard_error"]

    @property
    def model(self) -> Mapping[str, str]:
        """Its ``uri``, and its ``fingerprint`` where KubeAlign trained it."""
        parents = self.evaluation.manifest.provenance.parents
        return next((parent for parent in parents if parent["name"] == "model"), {})


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedVariant:
    """One that has no model to choose, or none that may be chosen."""

    name: str
    """Its settings that differ from those of others."""
    reason: str
    """Why it ended early."""


def ended_variants(
    ended: Sequence[Dataset], sound: Sequence[Dataset], *, rounds: bool = False
) -> list[EndedVariant]:
    """What became of the variants, or ``rounds``, of the evaluations ``ended``, which differ from each other
    and from those of ``sound``. Letters, where settings do not tell them apart, come after those of the
    latter."""
    every = [*sound, *ended]
    settings = [{ROUND: _round_of(one)} for one in every] if rounds else _apart(every)
    names = _names(settings)[len(sound) :] if ended else []
    reasons = [one.ended_early for one in ended]
    return [EndedVariant(name=name, reason=reason) for name, reason in zip(names, reasons)]


def _apart(evaluations: Sequence[Dataset]) -> list[dict[str, object]]:
    """Of each the settings in which not all are the same that have them; one that ended early lacks some."""
    every = [
        {name: value for name, value in _settings(one).items() if not _OF_THE_END.match(name)}
        for one in evaluations
    ]
    names = sorted({name for own in every for name in own})
    apart = [name for name in names if len({canonical_json(own[name]) for own in every if name in own}) > 1]
    return [{name: own[name] for name in apart if name in own} for own in every]


def variants_of(
    evaluations: Sequence[Dataset], names: Sequence[str] = (), *, rounds: bool = False
) -> list[Variant]:
    """The variants on the held-out prompts that all have, in the order of their settings.

    Args:
        evaluations: ``kubealign.evaluation/v1``, none twice.
        names: of the settings by which variants are named; none for those in which these differ.
        rounds: whether they are rounds of alignment, which are named by their numbers.

    Raises:
        ConfigError: an evaluation without rewards, or by other ones than the first.
        DataError: fewer than two prompts are in all of them.
    """
    for one in evaluations:
        _check_reward(one, evaluations[0])
    every_setting = [{ROUND: _round_of(one)} if rounds else _settings(one) for one in evaluations]
    names = [ROUND] if rounds else names
    settings = [{name: own.get(name) for name in names} for own in every_setting]
    settings = settings if names else differing(every_setting)
    rows = [{row["prompt_id"]: row for row in one.iter_rows(of=EvaluationRow)} for one in evaluations]
    shared = [name for name in rows[0] if all(name in others for others in rows)]
    if len(shared) < 2:
        raise DataError(
            f"{len(shared)} held-out prompts are in all {len(rows)} evaluations, expected 2 or more: let the "
            "variants differ in nothing that chooses prompts, such as evaluate_max_prompts"
        )
    order = sorted(range(len(rows)), key=lambda i: [_order(value) for value in settings[i].values()])
    names, every = _names([settings[i] for i in order]), len({name for own in rows for name in own})
    made = []
    for name, i in zip(names, order, strict=True):
        both, own = [rows[i][prompt] for prompt in shared], len(rows[i])
        made.append(_variant(name, evaluations[i], settings[i], both, prompts=own, lost=every - own))
    return made


def letter(position: int) -> str:
    """What marks the variant at ``position`` on the page: A, B, …, Z, AA, …; numbers are those of the run
    file, in the order of which nobody hands variants over."""
    before, own = divmod(position, len(LETTERS))
    return (letter(before - 1) if before else "") + LETTERS[own]


def differing(settings: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Those of each ``settings`` in which not all are the same; a setting that one lacks is None there."""
    names = sorted({name for own in settings for name in own})
    apart = [name for name in names if len({canonical_json(own.get(name)) for own in settings}) > 1]
    return [{name: own.get(name) for name in apart} for own in settings]


def _order(value: object) -> tuple[bool, float, str]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not number, float(str(value)) if number else 0.0, setting_text(value))


def setting_text(value: object) -> str:
    """A setting as a run file has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _variant(
    name: str,
    evaluation: Dataset,
    settings: Mapping[str, object],
    rows: Sequence[EvaluationRow],
    *,
    prompts: int,
    lost: int,
) -> Variant:
    rewards = {side: _means(rows, side, "reward") for side in ("reference", "aligned")}
    return Variant(
        name=name,
        evaluation=evaluation,
        settings=settings,
        rewards=rewards["aligned"],
        gains=rewards["aligned"] - rewards["reference"],
        lengths=_means(rows, "aligned", "num_tokens"),
        reference_lengths=_means(rows, "reference", "num_tokens"),
        prompts=prompts,
        lost=lost,
    )


def _means(rows: Sequence[EvaluationRow], side: str, name: str) -> Floats:
    """The mean of a number of the completions of each row, shape (rows,)."""
    sides = [row["reference"] if side == "reference" else row["aligned"] for row in rows]
    numbers = [[c["reward"] if name == "reward" else c["num_tokens"] for c in own] for own in sides]
    return np.array([np.mean(np.array(own, dtype=np.float64)) for own in numbers])


def _check_reward(one: Dataset, first: Dataset) -> None:
    if "reward_gain" not in one.manifest.stats["numbers"]:
        expected = "evaluations with a reward, by whose gain a variant is chosen"
        raise ConfigError("evaluations", one.uri, expected)
    if _reward(one) != _reward(first):
        raise ConfigError("evaluations", one.uri, f"evaluations by one reward, that of {first.uri}")


def _reward(evaluation: Dataset) -> str:
    step = evaluation.manifest.provenance.step
    return digest([step["params"].get("reward"), step["models"].get("reward")])


def _round_of(evaluation: Dataset) -> int:
    """Which round of alignment made the model that ``evaluation`` is of, from 1."""
    begun = (step for step in evaluation.manifest.recipe.values() if step["stage"] == "next_round")
    return max((int(step["params"]["number"]) for step in begun), default=1)


def _settings(evaluation: Dataset) -> dict[str, object]:
    """The settings of the last step of each stage that led to ``evaluation``, by stage and name."""
    manifest = evaluation.manifest
    last = {step.stage: step for step in steps_of(manifest.fingerprint, manifest.recipe)}
    return {f"{stage}_{n}": v for stage, step in last.items() for n, v in _flat(step.params)}


def _flat(params: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _names(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """A name for each, of its settings; letters where these do not tell all apart."""
    if all(own.keys() == {ROUND} for own in settings):
        return [f"{ROUND} {own[ROUND]}" for own in settings]
    texts = [", ".join(f"{name}={setting_text(value)}" for name, value in own.items()) for own in settings]
    if max(Counter(texts).values()) == 1 and all(texts):
        return texts
    return [f"variant {letter(position)}" for position in range(len(settings))]
