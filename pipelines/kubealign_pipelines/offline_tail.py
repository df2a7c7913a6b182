"""What both recipes end with: choose, score, mix, train, compare.

    select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

In a sweep what stands before the first stage in which its variants differ is done once, the rest for each:

    logprobs ×chunks ─ merge ─ (select ─ mix ─ train ─ evaluate) ×variants ─ choose

With successive halving the latter is done a rung after the other (``halving.py``).

Where benchmarks are asked for, they hang off ``train``, or in a sweep off ``choose``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.benchmark.component import benchmark
from kubealign_components.evaluate.component import evaluate
from kubealign_components.logprobs.component import logprobs
from kubealign_components.mix.component import mix
from kubealign_components.select.component import select
from kubealign_components.train.component import train
from kubealign_pipelines.fan_out import fan_out
from kubealign_pipelines.halving import Rung
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.variant_loop import for_each_variant
from kubealign_pipelines.variants import SWEPT

BENCHMARK_TASKS = "benchmark_tasks"
"""Which standard benchmarks both policies are measured on; none leaves the stage out."""
OFFLINE_STAGES = ("select", "logprobs", "mix", "train", "evaluate")
"""In their order."""


def align_offline(
    inputs: PipelineInputs,
    rows: PipelineTask,
    *,
    order: str,
    selection: Arguments,
    comparison: Arguments,
    reference: PipelineChannel | str = "",
    swept: Collection[str] = (),
    rungs: Sequence[Rung] = (),
    start: Arguments | None = None,
    against: PipelineTask | None = None,
    earlier: PipelineChannel | None = None,
    benchmarked: bool = False,
    about: str = "",
) -> PipelineTask:
    """Train on completions of ``rows`` and compare the aligned policy with what it was; gives the comparison,
    of a sweep the choice.

    Args:
        inputs: of the pipeline.
        rows: task that made rewarded completions, or others where nothing is rewarded. It has planned
            a fan-out if log-probabilities are computed before selection.
        order: whether log-probabilities are computed "before" or "after" selection.
        selection: arguments of ``select`` that are no inputs of the pipeline.
        comparison: arguments of ``evaluate``: how both policies are sampled, and by what they are compared.
        reference: of ``logprobs`` and ``train``; empty where it is the policy.
        swept: stages in which the variants of a sweep differ; none where there is no sweep.
        rungs: of the sweep.
        start: policy and reference of ``train`` where it starts at another policy.
        against: task whose rewarded completions are compared with, where these are not those of ``rows``.
        earlier: what the evaluations of the rounds before showed, if there are any.
        benchmarked: whether the trained policy is measured on standard benchmarks, of a sweep the chosen one.
        about: tells the tasks of one round from those of another.
    """
    models = {"policy": inputs["policy"], "reference": reference}
    tail = _Tail(
        inputs=inputs,
        selection=selection if order == "before" else {**selection, **inputs.cut(logprobs)},
        models=start or models,
        against=against or rows,
        comparison={**comparison, **({"rounds": earlier} if earlier else {})},
        benchmarked=benchmarked and not swept,
    )
    left: Sequence[str] = SWEPT
    if order == "before":
        made = _scored(inputs, rows, models, about)
    else:
        made, left = _scored(inputs, tail.through(SWEPT[:1], rows, about), models, about), SWEPT[1:]
    if not swept:
        return tail.through(left, made, about)
    first = next(number for number, stage in enumerate(left) if stage in swept)
    made = tail.through(left[:first], made, about)
    chosen = for_each_variant(inputs, left[first:], rungs, partial(tail.through, left[first:], made))
    if benchmarked:
        measure_on_benchmarks(inputs, choice=chosen.outputs["dataset"])
    return chosen


@dataclass(kw_only=True, slots=True)
class _Tail:
    """The stages in which variants may differ, each on what the one before it made."""

    inputs: PipelineInputs
    selection: Arguments
    models: Arguments
    """Of ``train``."""
    against: PipelineTask
    comparison: Arguments
    benchmarked: bool
    selected: PipelineTask | None = None
    """The last task that selected."""

    def through(
        self,
        stages: Sequence[str],
        made: PipelineTask,
        about: str = "",
        own: Mapping[str, Arguments] = MappingProxyType({}),
    ) -> PipelineTask:
        """The task of the last of ``stages``, of which the first one takes what ``made`` made.

        Args:
            stages: some of :data:`SWEPT`, one after the other.
            made: task before them.
            about: tells their tasks from others of these stages.
            own: further arguments by stage.
        """
        make = {
            "select": self._selected,
            "mix": self._mixed,
            "train": self._trained,
            "evaluate": self._compared,
        }
        for stage in stages:
            made = make[stage](made, about, own.get(stage, {}))
        return made

    def _selected(self, made: PipelineTask, about: str, own: Arguments) -> PipelineTask:
        inputs = self.inputs
        further = {"work": inputs["work"], **inputs.of("select"), **self.selection, **own}
        rewarded = made.outputs["dataset"]
        made = inputs.placement(select, about, rewarded=rewarded, seed=inputs["seed"], **further)
        self.selected = made
        return made

    def _mixed(self, made: PipelineTask, about: str, own: Arguments) -> PipelineTask:
        inputs = self.inputs
        return inputs.placement(
            mix,
            about,
            selection=made.outputs["dataset"],
            validation_fraction=inputs["validation_fraction"],
            seed=inputs["seed"],
            work=inputs["work"],
            **own,
            **inputs.of("mix"),
        )

    def _trained(self, made: PipelineTask, about: str, own: Arguments) -> PipelineTask:
        inputs = self.inputs
        trained = inputs.placement(
            train,
            about,
            training=made.outputs["dataset"],
            seed=inputs["seed"],
            work=inputs["work"],
            **self.models,
            **own,
            **inputs.of("train"),
        )
        if self.benchmarked:
            measure_on_benchmarks(inputs, about, model=trained.outputs["model"])
        return trained

    def _compared(self, made: PipelineTask, about: str, own: Arguments) -> PipelineTask:
        if "rounds" in self.comparison and self.selected is not None:
            own = {**own, "selection": self.selected.outputs["dataset"]}
        return compare(self.inputs, self.against, made, {**self.comparison, **own}, about)


def compare(
    inputs: PipelineInputs, rows: PipelineTask, trained: PipelineTask, comparison: Arguments, about: str = ""
) -> PipelineTask:
    """Compare the policy of ``trained`` with what it was, on held-out prompts of ``rows``."""
    return inputs.placement(
        evaluate,
        about,
        rewarded=rows.outputs["dataset"],
        model=trained.outputs["model"],
        policy=inputs["policy"],
        validation_fraction=inputs["validation_fraction"],
        split_seed=inputs["seed"],
        seed=inputs["seed"],
        work=inputs["work"],
        sample_options=inputs["sample_options"],
        **comparison,
        **inputs.of("evaluate"),
    )


def measure_on_benchmarks(inputs: PipelineInputs, about: str = "", **aligned: PipelineChannel) -> None:
    """Measure on standard benchmarks the policy that ``aligned`` has as ``model``, or as ``choice`` chose it,
    and what it was made from."""
    shared = {name: inputs[name] for name in ("policy", "seed", "work")}
    measured = inputs.placement(benchmark, about, **aligned, **shared, **inputs.of("benchmark"))
    inputs.placement.gates.append(measured)


def _scored(inputs: PipelineInputs, made: PipelineTask, models: Arguments, about: str) -> PipelineTask:
    # In the numbers of training, which then starts at log-ratios of exactly 0.
    own = {**inputs.of("logprobs"), "train_options": inputs["train_options"]}
    return fan_out(inputs.placement, logprobs, made, about=about, **models, **own)
