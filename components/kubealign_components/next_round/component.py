"""next_round as a KFP component."""

from typing import Dict, List, NamedTuple

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def next_round(
    prompts: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    policy: str,
    reference: str = "",
    earlier: dsl.Input[dsl.Dataset] = None,
    before: list = [],
    number: int = 2,
    rounds: int = 0,
    seed: int = 0,
    work: str = "",
    rows_per_chunk: int = 0,
    max_chunks: int = 100,
    engines: int = 1,
    options: dict = {},
) -> NamedTuple("Begun", [("Output", List[Dict]), ("start", str), ("anchor", str), ("shown", List[Dict])]):  # type: ignore[valid-type]
    """Begin a further round of alignment: the same prompts for the policy of the round before.

    Args:
        prompts: tokenised prompts of the first policy (kubealign.tokenized/v1).
        evaluation: of the policy that the round before has trained (kubealign.evaluation/v1).
        dataset: the prompts as those of that policy, without completions (kubealign.tokenized/v1).
        metrics: rows in and out.
        policy: model directory, URI or hub id of the first policy.
        reference: model that the aligned policy stays near, where that is not the first policy.
        earlier: evaluation of the round before that one (kubealign.evaluation/v1), where rounds may end.
        before: what the evaluations of the rounds before that one showed.
        number: of the round, from 2.
        rounds: how many there are at most, where one that is not better ends them; 0 for all.
        seed: of the bootstrap.
        work: work prefix; what was finished there before is taken. For a fan-out that follows, empty: beside
            the dataset.
        rows_per_chunk: most rows in a chunk of the fan-out that follows; 0 where none does.
        max_chunks: most chunks of it; they grow when more would be needed.
        engines: of a pod of it: a chunk has up to rows_per_chunk rows for each.
        options: further settings of the stage by name.
        start: URI of the policy that the round samples from and starts at.
        anchor: the model that the first round's log-probabilities are of.
        shown: what the evaluations of all rounds so far showed.

    Returns:
        Chunk descriptors for the fan-out that follows.
    """  # noqa: DOC102 (outputs, which the reader of a component finds among its arguments)
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish, rows_of
    from kubealign_components.config import from_parameters
    from kubealign_components.data.planning import PlanConfig, planned
    from kubealign_components.data.schemas import EVALUATION, TOKENIZED
    from kubealign_components.next_round.stage import NextRoundConfig, run, shown_by, trained_policy

    config = from_parameters(NextRoundConfig, parameters, "next_round")
    plan = PlanConfig(work=work, rows_per_chunk=rows_per_chunk, max_chunks=max_chunks, engines=engines)
    rows, compared = open_dataset(prompts, TOKENIZED), open_dataset(evaluation, EVALUATION)
    further = open_dataset(earlier, EVALUATION) if earlier is not None else None
    stats = run(config, prompts=rows, evaluation=compared, earlier=further, output=rows_of(dataset))
    log_stats(metrics, stats)
    shown = [*before, *([] if compared.ended_early else [shown_by(compared)])]
    return planned(plan, publish(dataset)), trained_policy(compared).uri, reference or policy, shown
