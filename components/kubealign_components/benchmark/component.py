"""benchmark as a KFP component."""

from kfp import dsl

from kubealign_components import images


@dsl.component(base_image=images.SAMPLE, install_kfp_package=False)
def benchmark(
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    lineage: dsl.Output[dsl.HTML],
    policy: str,
    tasks: list,
    model: dsl.Input[dsl.Model] = None,
    choice: dsl.Input[dsl.Dataset] = None,
    task_folder: str = "",
    limit: int = 0,
    num_fewshot: int = -1,
    apply_chat_template: bool = False,
    engine: str = "transformers",
    seed: int = 0,
    work: str = "",
    options: dict = {},
):
    """Measure the aligned policy and its reference on standard benchmarks, with lm-eval.

    Args:
        dataset: both sides of every document of the tasks (kubealign.benchmark/v1).
        metrics: each metric of each task for both, and the paired difference with its standard error.
        report: the tasks, with what moved and what did not.
        lineage: every stage, setting, model and source that led here.
        policy: model directory, URI or hub id of the reference policy.
        tasks: names of tasks, groups or tags of lm-eval, such as arc_easy, or of the task folder.
        model: the aligned model (kubealign.model/v1).
        choice: in its place, the choice whose chosen model is measured (kubealign.choice/v1).
        task_folder: folder or URI of tasks of one's own, as YAML of lm-eval; empty for none.
        limit: most documents of each task, the first ones; 0 for all.
        num_fewshot: examples before each question; -1 for what each task says.
        apply_chat_template: whether each question is a turn of a chat.
        engine: transformers, or vllm on GPUs.
        seed: of the choice of examples, and of tasks that sample.
        work: work prefix; tasks that were finished there before are taken.
        options: further settings of the stage by name, such as dtype, batch_size and allow_unsafe_code.
    """
    parameters = dict(locals())

    from kubealign_components.artifacts import (
        local_copy,
        log_stats,
        open_dataset,
        publish,
        rows_of,
        write_page,
    )
    from kubealign_components.benchmark.config import BenchmarkConfig
    from kubealign_components.benchmark.stage import run
    from kubealign_components.config import from_parameters
    from kubealign_components.data.choice_rows import CHOICE
    from kubealign_components.data.trained import chosen_row
    from kubealign_components.reports.lineage import to_html

    chosen = chosen_row(open_dataset(choice, CHOICE))["model"] if model is None else ""
    stats = run(
        from_parameters(BenchmarkConfig, parameters, "benchmark"),
        model=chosen or local_copy(model),
        output=rows_of(dataset),
        report=report.path,
        model_uri=chosen or model.uri,
    )
    log_stats(metrics, stats)
    write_page(lineage, to_html(publish(dataset, report, lineage).manifest))
