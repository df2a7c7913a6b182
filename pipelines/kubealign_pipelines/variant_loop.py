"""The loop over the variants of a sweep, and the choice among them behind it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from kfp import dsl
from kfp.dsl import PipelineTask

from kubealign_components.choose.component import choose
from kubealign_components.train.component import train
from kubealign_components.variant import VARIANT
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.variants import SWEPT, VARIANTS


class VariantLoop:
    """Begins at the first stage in which the variants differ: what stands before it is done once for all.

    Args:
        inputs: of the pipeline.
        swept: stages in which they differ; where there are none, there is no loop.
    """

    def __init__(self, inputs: PipelineInputs, swept: Collection[str]) -> None:
        self._inputs = inputs
        self._first = next((stage for stage in SWEPT if stage in swept), None)
        self._loop = ExitStack()
        self._own: Arguments = {}

    def own(self, stage: str) -> Arguments:
        """The argument that gives ``stage``, whose task comes next, what its variant has of its own."""
        if stage == self._first:
            at_once = self._inputs.placement.at_once(train)
            # The top level of a run's page shows the loop alone: its title names the stages in it.
            title = f"each variant: {', '.join(SWEPT[SWEPT.index(stage) :])}"
            loop = dsl.ParallelFor(self._inputs[VARIANTS], parallelism=at_once, name=title)
            self._own = {VARIANT: self._loop.enter_context(loop)}
        return self._own

    def end(self, evaluated: PipelineTask) -> None:
        """End the loop, if there is one, and choose among what ``evaluated`` made of each variant."""
        self._loop.close()
        if self._first is not None:
            self._inputs.placement(
                choose,
                evaluations=dsl.Collected(evaluated.outputs["dataset"]),
                seed=self._inputs["seed"],
                work=self._inputs["work"],
                **self._inputs.of("choose"),
            )
