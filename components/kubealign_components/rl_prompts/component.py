"""rl_prompts as a KFP component."""

from typing import Dict, List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def rl_prompts(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    policy: str,
    prompts: dsl.Input[dsl.Dataset] = None,
    sources: List[Dict] = [],
    min_tokens: int = 2,
    max_tokens: int = 256,
    max_rows: int = 0,
    seed: int = 0,
    work: str = "",
    options: dict = {},
    seen: str = "",
):
    """Gather prompts for reinforcement learning, with question type and length bonus.

    Args:
        dataset: prompts without completions (kubealign.prompts/v1).
        metrics: rows in, prompts out and drops by reason.
        report: the rows in charts and examples.
        policy: model directory, URI or hub id of the policy, whose tokenizer counts.
        prompts: prompts of clean_prompts or import_prompts (kubealign.prompts/v1), if any.
        sources: one object a source: name, uri and kind; and revision, question_type, length_bonus, ….
        min_tokens: shorter prompts are dropped.
        max_tokens: longer prompts are dropped.
        max_rows: most prompts of all sources together, a seeded sample; 0 for all.
        seed: decides which prompts the limits keep.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
        seen: a word for what lies at the sources, by which Kubeflow's cache knows them.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
    from kubealign_components.config import from_parameters
    from kubealign_components.data.schemas import PROMPTS
    from kubealign_components.rl_prompts.stage import RlPromptsConfig, run

    config = from_parameters(RlPromptsConfig, parameters, "rl_prompts")
    rows = open_dataset(prompts, PROMPTS) if prompts is not None else None
    stats = run(config, prompts=rows, output=rows_of(dataset))
    publish_with_page(dataset, report)
    log_stats(metrics, stats)
