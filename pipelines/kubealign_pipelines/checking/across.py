"""What no stage can see alone: settings of different stages that cannot work together, or hardly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kubealign_components.config import semantic_params
from kubealign_components.data.labels import preferred_pairs, sides, verdicts_of
from kubealign_components.engines.rewards import reward_params
from kubealign_components.errors import shown
from kubealign_components.json_types import JsonObject
from kubealign_components.printable import SECRET_NAME, has_secret
from kubealign_components.select.stage import LABELLED, LABELS
from kubealign_components.training.config import PAIRWISE
from kubealign_pipelines.checking.findings import Finding, error_at, warning_at
from kubealign_pipelines.checking.stages import Checked, Stage
from kubealign_pipelines.graph import Source

USUAL_BETA: Mapping[str, tuple[float, float]] = {
    "dpo": (0.01, 0.5),
    "dpo_norm": (1.0, 20.0),
    "ipo": (0.01, 1.0),
    "kto": (0.01, 0.5),
    "qrpo": (0.0001, 0.1),
    "simpo": (1.0, 20.0),
}
"""β of published runs by objective, lowest and highest."""
USUAL_RATE = {"none": 1e-4, "lora": 1e-3, "qlora": 1e-3}
"""Highest learning rate of published runs by adapter."""
FEW_STEPS = 10
"""Fewer optimiser steps than this hardly move a policy."""
_NAMED = ("model", "model_revision", "principles", "principle_names")
"""Settings of a reward that name what it is made of."""
GATES = ("min_gain", "require")
"""Settings of ``evaluate`` that fail a run."""

_SETTLED = {"strategy": "best_worst", "pairs_per_prompt": 1, "pool": "reference", "rewards": "as_given"}
"""Settings of ``select`` with which it takes what ``draw_more`` settles."""
_SETTLES = "the best and the worst sample of a prompt are settled"
_NO_GATE = (
    "none with several rounds: the first round that falls short would end the run before those that may "
    "bring the gain. The summary and the report of the last round tell it; with rounds_stop: no_gain, "
    "choose_min_gain fails a run whose best round gains less"
)
_NO_DROP = (
    "none with several rounds: the first round that falls short would end the run before those after it; "
    "what each has lost is in its benchmark's page and metrics"
)
_NO_SECRET = (
    "no secret, which manifests, logs and the form would show; put it into a Kubernetes secret, and "
    "its name under compile.stages.STAGE.secrets"
)


def check_across(checked: Checked) -> Iterator[Finding]:
    """Findings on settings of several stages together."""
    yield from _names(checked)
    for sample in checked.of("sample"):
        yield from _context(sample, checked)
    for select in checked.of("select"):
        yield from _pairs(select, checked)
    for train in checked.of("train"):
        yield from _training(train)
    for evaluate in checked.of("evaluate"):
        yield from _comparison(evaluate, checked)
    for draw_more in checked.of("draw_more")[:1]:  # the first, which has drawn fewest
        yield from _draws(draw_more, checked)
    if checked.of("next_round"):
        yield from gates(checked, _NO_GATE)
        for benchmark in checked.of("benchmark"):
            if benchmark.config.max_drop:
                yield error_at(benchmark.path(("max_drop",)), benchmark.config.max_drop, _NO_DROP)
        for choose in checked.of("choose"):
            yield from kl_estimates(checked, choose.config.max_kl)
        yield from _own_quantiles(checked)
    for stage in checked.stages:
        if hasattr(stage.config, "learning_rate"):
            yield from _learning_rate(stage)
    yield from secrets(("parameters",), checked.values)


def gates(checked: Checked, expected: str) -> Iterator[Finding]:
    """A finding of ``expected`` on each setting that fails a run for what it gained."""
    for evaluate in checked.of("evaluate"):
        for name in GATES:
            value = getattr(evaluate.config, name)
            if value is not None and value != ():
                yield error_at(evaluate.path((name,)), value, expected)


def kl_estimates(checked: Checked, max_kl: float | None) -> Iterator[Finding]:
    """Findings on settings without which no KL is held to ``max_kl``, which None asks for none of."""
    why = "as choose_max_kl asks for the KL: what has no estimate of it is never chosen"
    for evaluate in checked.of("evaluate") if max_kl is not None else ():
        config = evaluate.config
        if config.sampling.engine == "fake":
            expected = f"vllm or transformers, whose log-probabilities mean something, {why}"
            yield error_at(evaluate.path(("sampling", "engine")), config.sampling.engine, expected)
        elif not config.kl_prompts:
            yield error_at(evaluate.path(("kl_prompts",)), config.kl_prompts, f"1 or more, {why}")


def _own_quantiles(checked: Checked) -> Iterator[Finding]:
    """A prompt that a later round is the first to ask has no samples of the policy that all stay near."""
    pointwise = {one.config.objective for one in checked.of("train")} - {*PAIRWISE}
    for sample in checked.of("sample"):
        if pointwise and sample.config.share < 1:
            expected = (
                f"1 with train_objective {pointwise.pop()}, whose quantiles are among samples of one policy"
            )
            yield error_at(sample.path(("share",)), sample.config.share, expected)


def secrets(path: tuple[str | int, ...], value: object) -> Iterator[Finding]:
    """Findings on secrets that stand in settings as they are."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            named = SECRET_NAME.search(str(name)) and isinstance(item, str) and item
            if named and path[-1:] != ("secrets",):
                yield error_at((*path, name), "…", _NO_SECRET)
            else:
                yield from secrets((*path, name), item)
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from secrets((*path, position), item)
    elif isinstance(value, str) and has_secret(value):
        yield error_at(path, "…", _NO_SECRET)


def optimiser_steps(train: Any, examples: int) -> tuple[int, int]:
    """Optimiser steps on ``examples``, and those of them at a learning rate above 0."""
    steps = train.max_steps or math.ceil(math.ceil(examples / train.batch_size) * train.epochs)
    warm = math.ceil(train.warmup_ratio * steps)
    return steps, steps - (1 if warm else 0)


def check_counts(checked: Checked, prompts: int, held_out: int) -> Iterator[Finding]:
    """Findings on how many prompts there are for what is asked of them.

    Args:
        checked: the settings.
        prompts: those that are trained on or held out, at most.
        held_out: those of them that the split holds out.
    """
    for evaluate in checked.of("evaluate"):
        if held_out < 2:
            yield error_at(
                evaluate.path(("validation_fraction",)),
                evaluate.config.validation_fraction,
                f"a share that holds out 2 prompts or more: of {prompts} prompts it holds out {held_out}; "
                "raise it, or give more prompts",
            )
    for train in checked.of("train"):
        select = next(iter(checked.of("select")), None)
        pairs = select.config.pairs_per_prompt if select and select.config.pairwise else 1
        yield from _steps(train, (prompts - held_out) * pairs)


def with_labels(checked: Checked, rows: Sequence[JsonObject]) -> tuple[list[JsonObject], list[Finding]]:
    """The prompts of ``rows`` that ``select`` can take, and what there is to tell where it goes by people's
    labels and none has them."""
    select = next(iter(checked.of("select")), None)
    if select is None or not select.config.by_labels:
        return list(rows), []
    pairs = select.config.strategy == LABELS
    usable = [row for row in rows if _is_labelled(verdicts_of(row["completions"]), pairs=pairs)]
    if usable:
        return usable, []
    lacking = "a chosen completion beside a rejected one" if pairs else "a completion with a label"
    expected = (
        f"sources with labels: none of {len(rows)} prompts has {lacking}; name their columns in `columns` of "
        "the source, or take a strategy by reward"
    )
    return [], [error_at(select.path(("strategy",)), select.config.strategy, expected)]


def _is_labelled(verdicts: pa.StructArray, *, pairs: bool) -> bool:
    if pairs:
        return len(preferred_pairs(verdicts, np.zeros(len(verdicts), np.int64))[0]) > 0
    return bool(np.logical_or(*sides(verdicts.field("label"))).any())


def _steps(train: Stage, examples: int) -> Iterator[Finding]:
    config = train.config
    steps, useful = optimiser_steps(config, examples)
    path = train.path(("max_steps",) if config.max_steps else ("batch_size",))
    value = config.max_steps or config.batch_size
    if useful < 1:
        yield error_at(
            path,
            value,
            f"two optimiser steps or more: {examples} examples make {steps}, and warm-up begins at a rate "
            "of 0, so nothing would be trained; lower batch_size, raise epochs, or give more prompts",
        )
    elif steps < FEW_STEPS:
        yield warning_at(
            path, value, f"{examples} examples make {steps} optimiser steps: too few to move a policy"
        )


def _names(checked: Checked) -> Iterator[Finding]:
    for stage in checked.stages:
        for field in ("policy",):
            if getattr(stage.config, field, None) is not None and not getattr(stage.config, field).strip():
                yield error_at(
                    stage.path((field,)), getattr(stage.config, field), "a model directory, URI or hub id"
                )


def _context(sample: Stage, checked: Checked) -> Iterator[Finding]:
    """What ``max_model_len`` leaves for prompts; the model's own limit is checked with the model."""
    spec = sample.config.sampling
    if spec.max_model_len:
        yield from room(sample, ("sampling",), spec.max_new_tokens, spec.max_model_len, checked)


def room(stage: Stage, group: tuple[str, ...], new: int, limit: int, checked: Checked) -> Iterator[Finding]:
    """Findings on whether prompts and ``new`` tokens fit into ``limit``."""
    path = stage.path((*group, "max_new_tokens"))
    prompt = max((s.config.max_prompt_len for s in checked.of("filter")), default=0)
    if new >= limit:
        yield error_at(path, new, f"fewer than {limit} tokens, all that the model takes with the prompt")
    elif prompt and prompt + new > limit:
        yield warning_at(
            path,
            new,
            f"with prompts of up to {prompt} tokens (max_prompt_len of filter) that is over the {limit} that "
            f"the model takes: one prompt of more than {limit - new} would fail the run; lower one of them",
        )


def _pairs(select: Stage, checked: Checked) -> Iterator[Finding]:
    config = select.config
    trained = next((s for s in checked.of("train") if s.config.objective in PAIRWISE), None)
    if trained is not None and not config.pairwise:
        yield error_at(
            select.path(("strategy",)),
            config.strategy,
            f"a strategy that makes pairs, which the objective {trained.config.objective} compares; "
            "or train with qrpo or kto",
        )
    if config.by_labels:
        return
    if not checked.of("sample") and checked.of("import_prompts"):
        yield error_at(
            select.path(("strategy",)),
            config.strategy,
            f"{LABELS} or {LABELLED} where nothing is sampled (sample_n is 0): other strategies rank rewards "
            "among those of the policy's own samples of a prompt",
        )
        return
    sample = next((s for s in reversed(checked.of("sample")) if _feeds(s, select)), None)
    if sample is None:
        return
    n, pool = sample.config.sampling.n, config.pool
    if config.pairwise and pool == "reference" and n < 2:
        yield error_at(
            sample.path(("sampling", "n")), n, "2 or more: a pair needs two completions of a prompt"
        )
    elif n < config.min_references:
        yield error_at(
            sample.path(("sampling", "n")),
            n,
            f"{config.min_references} or more: prompts with fewer rewarded samples are dropped "
            "(min_references of select)",
        )


def _draws(draw_more: Stage, checked: Checked) -> Iterator[Finding]:
    """Draws end where the best and the worst of a prompt's samples, by reward as given, are settled: the
    selection must take these."""
    drawn = draw_more.config.drawn
    for select in checked.of("select"):
        for name, value in _SETTLED.items():
            if getattr(select.config, name) != value:
                expected = f"{shown(value)}, with a range for sample_n: draws end where {_SETTLES}"
                yield error_at(select.path((name,)), getattr(select.config, name), expected)
        if select.config.min_references > drawn:
            expected = f"{drawn} or less: sample_n draws as few of a prompt that is settled"
            yield error_at(select.path(("min_references",)), select.config.min_references, expected)
    for sample in checked.of("sample"):
        if sample.config.sampling.n != sample.task.arguments["n"].constant:
            expected = "none beside sample_n, which says from how many to how many"
            yield error_at(sample.path(("sampling", "n")), sample.config.sampling.n, expected)
        if sample.config.share < 1:
            expected = "1 with a range for sample_n: what a prompt is drawn more of, all prompts decide"
            yield error_at(sample.path(("share",)), sample.config.share, expected)


def _feeds(sample: Stage, select: Stage) -> bool:  # noqa: ARG001
    """Whether the number of samples is for selection: SALMON's judge gets two of a constant."""
    source = sample.task.arguments.get("n")
    return source is not None and source.parameter is not None


def _comparison(evaluate: Stage, checked: Checked) -> Iterator[Finding]:
    """The aligned policy is sampled and rewarded as the reference completions were; where nothing was sampled
    for it, as in PPO, ``evaluate`` does so for both policies."""
    number = evaluate.task.arguments.get("n", Source())
    settled = number.parameter or checked.of("draw_more")
    sampled = (s for s in checked.of("sample") if settled and s.task.arguments.get("n") == number)
    sample = next(sampled, None)
    if sample is None:
        return
    ours, theirs = (semantic_params(stage.config.sampling) for stage in (evaluate, sample))
    if "auto" in (ours["dtype"], theirs["dtype"]):  # which the machine decides
        del ours["dtype"]
    yield from _same(evaluate, "sampling", ours, theirs, "sampled")
    rewards, reward = next(iter(checked.of("rewards")), None), evaluate.config.reward
    if rewards is not None and reward is not None:
        named = {name: semantic_params(reward)[name] for name in _NAMED}
        other = rewards.config.reward
        theirs = {**semantic_params(other), **reward_params(other)}
        yield from _same(evaluate, "reward", {**named, **reward_params(reward)}, theirs, "rewarded")


def _same(
    evaluate: Stage, group: str, ours: Mapping[str, object], theirs: Mapping[str, object], done: str
) -> Iterator[Finding]:
    for name, value in ours.items():
        if value != theirs.get(name):
            expected = (
                f"{shown(theirs.get(name))}, with which the reference completions are {done}; leave it out "
                "here, and set it there for both"
            )
            yield error_at(evaluate.path((group, name)), value, expected)


def _training(train: Stage) -> Iterator[Finding]:
    config = train.config
    low, high = USUAL_BETA.get(config.objective, (0.0, math.inf))
    if not low <= config.beta <= high:
        yield warning_at(
            train.path(("beta",)),
            config.beta,
            f"outside of what {config.objective} is usually run with, {low:g} to {high:g}; its scale depends "
            "on the objective",
        )


def _learning_rate(stage: Stage) -> Iterator[Finding]:
    rate, highest = stage.config.learning_rate, USUAL_RATE[stage.config.adapter]
    if rate > highest:
        what = "all weights" if stage.config.adapter == "none" else "adapters"
        yield warning_at(
            stage.path(("learning_rate",)),
            rate,
            f"above what {what} are usually trained with, at most {highest:g}; training may diverge",
        )
