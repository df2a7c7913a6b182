"""Further rounds of offline alignment, each on what the policy has become.

    next_round ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge ─ join_rounds
               ─ select ─ logprobs ×chunks ─ merge ─ mix ─ train ─ evaluate

A round samples from the policy of the one before and trains on from it, on what is selected of the
completions of all rounds. These have their rewards and, under the first policy, their log-probabilities from
the round that they were sampled in.

Where rounds may stop, ``next_round`` looks whether the one before was better than the one before it. If it
was not, all that follows works on nothing, and ``choose`` chooses among the rounds that there were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kfp.dsl import PipelineTask
from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_components.choose.component import choose
from kubealign_components.join_rounds.component import join_rounds
from kubealign_components.join_rounds.stage import FIRST, LAST
from kubealign_components.logprobs.component import logprobs
from kubealign_components.next_round.component import next_round
from kubealign_components.sample.component import sample
from kubealign_pipelines.pipeline_inputs import Arguments, PipelineInputs
from kubealign_pipelines.rules import Choice

_ROUND = re.compile(r"-round-(\d+)$")
"""How a task of a further round is called."""
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

STOP = Choice(
    name="rounds_stop",
    values=("never", "no_gain"),
    meaning="When rounds end before the last: never, or once one is not shown to be better than the one"
    " before (no_gain); then the best of them is chosen.",
    has_stages=False,  # only with several rounds, and `choose`, which sweeps have, too
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
    """At most."""
    reference: str
    stop: str
    """When they end before the last."""

    @property
    def may_end(self) -> bool:
        """Whether the last ones may do nothing."""
        return self.stop != STOP.values[0]

    @classmethod
    def chosen(cls, choices: Mapping[str, str]) -> Rounds:
        """As ``choices`` by name say."""
        return cls(
            number=int(choices[ROUNDS.name]), reference=choices[REFERENCE.name], stop=choices[STOP.name]
        )


def round_of(task: str) -> int:
    """The round that the task called ``task`` stands in, from 1."""
    number = _ROUND.search(task)
    return int(number[1]) if number else 1


def further_rounds(
    inputs: PipelineInputs,
    rounds: Rounds,
    *,
    prompts: PipelineTask,
    rows: PipelineTask,
    evaluated: PipelineTask,
    scored_first: bool,
    answered: Answered,
    aligned: Aligned,
) -> PipelineChannel:
    """The rounds after the first one; gives what the last one's policy was compared in, or the choice among
    all of them.

    Args:
        inputs: of the pipeline.
        rounds: how many, and their reference.
        prompts: task that tokenised the prompts.
        rows: task that has the rewarded completions of the first round.
        evaluated: task that compared the policy of the first round.
        scored_first: whether log-probabilities are computed before selection.
        answered: samples and rewards.
        aligned: selects, scores, trains and compares.
    """
    joined, make_task, work = rows, inputs.placement, {"work": inputs["work"]}
    looks = {"rounds": rounds.number, "seed": inputs["seed"]} if rounds.may_end else {}
    evaluations, shown = [evaluated.outputs["dataset"]], dict[str, PipelineChannel]()
    for number in range(2, rounds.number + 1):
        begun = make_task(
            next_round,
            str(number),
            prompts=prompts.outputs["dataset"],
            evaluation=evaluations[-1],
            policy=inputs["policy"],
            reference=inputs["reference"],
            number=number,
            **{**shown, **looks, **work, **inputs.cut(sample)},
        )
        shown = {"before": begun.outputs["shown"]}
        if rounds.may_end:
            shown |= {"earlier": evaluations[-1]}
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
        evaluated = aligned(joined, about=about, earlier=begun.outputs["shown"], **models)
        evaluations.append(evaluated.outputs["dataset"])
    return _chosen(inputs, rounds, evaluations) if rounds.may_end else evaluations[-1]


def _chosen(
    inputs: PipelineInputs, rounds: Rounds, evaluations: Sequence[PipelineChannel]
) -> PipelineChannel:
    """The choice among the rounds of ``evaluations``."""
    each = {f"round_{number}": one for number, one in enumerate(evaluations, start=1)}
    own = {"seed": inputs["seed"], "work": inputs["work"], **inputs.of("choose")}
    return inputs.placement(choose, rounds=rounds.number, **each, **own).outputs["dataset"]


def _models(inputs: PipelineInputs, rounds: Rounds, begun: PipelineTask) -> dict[str, object]:
    """What a round starts at, and the reference of its log-probabilities."""
    start = begun.outputs["start"]
    if rounds.reference == LAST:
        return {"reference": start, "start": {"policy": start, "reference": ""}}
    # Asked for as in the first round, so that what that one scored is found.
    anchor: Arguments = {"policy": start, "reference": begun.outputs["anchor"]}
    return {"reference": inputs["reference"], "start": anchor}
