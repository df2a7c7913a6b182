"""mix as a KFP component."""

from typing import List

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.DATA, install_kfp_package=False)
def mix(
    selection: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    training_uris: List[str] = [],
    weights: dict = {},
    caps: dict = {},
    max_examples: int = 0,
    validation_fraction: float = 0.05,
    seed: int = 0,
    work: str = "",
    options: dict = {},
    variant: dict = {},
    sweep: bool = False,
):
    """Make the training dataset: mix, split by prompt, shuffle.

    Args:
        selection: selected completions (kubealign.selection/v1).
        dataset: training examples (kubealign.training/v1).
        metrics: examples in, out and dropped by reason.
        report: the rows in charts and examples.
        training_uris: training datasets of earlier runs to mix in.
        weights: relative weight by source; a source that is not named has the weight it was imported with.
        caps: most examples by source.
        max_examples: most examples of the mix; 0 for no limit.
        validation_fraction: share of prompts that are held out.
        seed: decides what stays, the split and the order.
        work: work prefix; what was finished there before is taken.
        options: further settings of the stage by name.
        variant: what one variant of a sweep has of its own: by stage, options that count before all else.
        sweep: whether it is of a variant of a sweep, which goes on without one of which nothing was selected.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import log_stats, open_dataset, publish_with_page, rows_of
    from kubealign_components.data.dataset import Dataset
    from kubealign_components.data.schemas import SELECTION, TRAINING
    from kubealign_components.mix.stage import MixConfig, run
    from kubealign_components.variant import from_variant

    config = from_variant(MixConfig, parameters, "mix")
    stats = run(
        config,
        selections=[open_dataset(selection, SELECTION, allow_empty=sweep)],
        training=[Dataset.open(uri, TRAINING) for uri in config.training_uris],
        output=rows_of(dataset),
        sweep=sweep,
    )
    publish_with_page(dataset, report)
    log_stats(metrics, stats)
