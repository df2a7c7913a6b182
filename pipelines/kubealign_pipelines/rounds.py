"""Further rounds of offline alignment, each on what the policy has become.

    next_round ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge ─ join_rounds
               ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

A round samples from the policy of the one before and trains on from it, on what is selected of the
completions of all rounds. These have their rewards and, under the first policy, their log-probabilities from
the round that they were sampled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.join_rounds.component import join_rounds
from kubealign_components.join_rounds.stage import FIRST, LAST
from kubealign_components.logprobs.component import logprobs
from kubealign_components.next_round.component import next_round
from kubealign_components.sample.component import sample
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.rules import Choice

MOST = 4
"""Kubernetes' object of a run has room for four, in few and large chunks."""
ROUNDS = Choice(
    name="rounds",
    values=tuple(range(1, MOST + 1)),
    meaning="How often the policy is sampled, aligned and evaluated, each round on from the policy of the one"
    " before, on completions of all rounds.",
)
REFERENCE = Choice(
    name="rounds_reference",
    values=(FIRST, LAST),
    meaning="What the policy of a further round stays near: the first policy, or the one that it starts at.",
)

Answered = Callable[[PipelineTask, PipelineChannel, str], PipelineTask]
"""Gives the rewarded completions of a policy for the prompts of a task, under the name of a round."""
Aligned = Callable[..., PipelineTask]
"""Trains on what is selected of a task's completions and compares; the arguments of ``align_offline`` beside
those that all rounds have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """How many there are, and what their policies stay near."""

    number: int
    reference: str

    @classmethod
    def chosen(cls, choices: Mapping[str, str]) -> Rounds:
        """As ``choices`` by name say."""
        return cls(number=int(choices[ROUNDS.name]), reference=choices[REFERENCE.name])


def further_rounds(
    inputs: PipelineInputs,
    rounds: Rounds,
    *,
    prompts: PipelineTask,
    first: PipelineTask,
    evaluated: PipelineTask,
    scored_first: bool,
    answered: Answered,
    aligned: Aligned,
) -> None:
    """The rounds after the first one.

    Args:
        inputs: of the pipeline.
        rounds: how many, and their reference.
        prompts: task that tokenised the prompts.
        first: task that rewarded the first policy's completions, which every round is compared with.
        evaluated: task that compared the policy of the first round.
        scored_first: whether log-probabilities are computed before selection.
        answered: samples and rewards.
        aligned: selects, scores, trains and compares.
    """
    joined, make_task, work = first, inputs.placement, {"work": inputs["work"]}
    shown: Arguments = {}
    for number in range(2, rounds.number + 1):
        begun = make_task(
            next_round,
            str(number),
            prompts=prompts.outputs["dataset"],
            evaluation=evaluated.outputs["dataset"],
            policy=inputs["policy"],
            reference=inputs["reference"],
            number=number,
            **{**shown, **work, **inputs.cut(sample)},
        )
        shown = {"before": begun.outputs["rounds"]}
        about = f"round {number}"
        joined = make_task(
            join_rounds,
            str(number),
            earlier=joined.outputs["dataset"],
            later=answered(begun, begun.outputs["start"], about).outputs["dataset"],
            number=number,
            references=rounds.reference,
            **{**work, **(inputs.cut(logprobs) if scored_first else {})},
        )
        models = _models(inputs, rounds, begun)
        evaluated = aligned(joined, about=about, against=first, earlier=begun.outputs["rounds"], **models)


def _models(inputs: PipelineInputs, rounds: Rounds, begun: PipelineTask) -> dict[str, object]:
    """What a round starts at, and the reference of its log-probabilities."""
    start = begun.outputs["start"]
    if rounds.reference == LAST:
        return {"reference": start, "start": {"policy": start, "reference": ""}}
    # Asked for as in the first round, so that what that one scored is found.
    anchor: Arguments = {"policy": start, "reference": begun.outputs["anchor"]}
    return {"reference": inputs["reference"], "start": anchor}
