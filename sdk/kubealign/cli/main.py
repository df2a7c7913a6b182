"""The ``kubealign`` command.

Exit codes: 0 done, 1 a run or a dataset failed, 2 the command or its settings cannot be used, 130
interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.boundary import Boundary
from kubealign.cli.card import card
from kubealign.cli.check import check, params, schema
from kubealign.cli.cluster import cancel, cluster_for, fetch, logs, output_of, retry, runs, submit, upload
from kubealign.cli.compare import compare
from kubealign.cli.completion import completion
from kubealign.cli.components import components
from kubealign.cli.connection import connected
from kubealign.cli.doctor import doctor
from kubealign.cli.estimate import estimate
from kubealign.cli.examples import show_examples
from kubealign.cli.export import export
from kubealign.cli.gc import gc
from kubealign.cli.init import init
from kubealign.cli.local_runs import du, ls, open_
from kubealign.cli.options import Given, run_options
from kubealign.cli.register import register
from kubealign.cli.run import run, sweep
from kubealign.cli.schedule import schedule
from kubealign.cli.terminal import say
from kubealign.cli.ui import ui
from kubealign.cli.verify import verify
from kubealign.cli.why import why
from kubealign.cli.withdraw import withdraw
from kubealign_components import __version__
from kubealign_components.whole_file import write_whole

if TYPE_CHECKING:
    from kubealign.cluster.client import Cluster


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="kubealign", prog_name="kubealign")
def main() -> None:
    """LLM preference alignment as Kubeflow pipelines."""


@main.command("compile")
@run_options
@click.option("-o", "--output", type=LocalPath(), help="The YAML to write; by default PIPELINE.yaml.")
@click.option(
    "--format",
    "form",
    default="package",
    show_default=True,
    type=click.Choice(["package", "kubernetes"]),
    help="package: to upload; kubernetes: Pipeline and PipelineVersion objects, to apply.",
)
def compile_(given: Given, output: Path | None, form: str) -> None:
    """Compile PIPELINE (offline_alignment, salmon) to the YAML that Kubeflow Pipelines runs.

    Parameters of the run file become the parameters' defaults, after every stage has checked them.
    """
    from kubealign_pipelines.compiler import compile_pipeline

    checked = given.checked(complete=False)
    path = output or Path(f"{checked.name}.yaml")
    graph = compile_pipeline(checked.pipeline, path, checked.compile, checked.parameters, defaults=True)
    if form == "kubernetes":
        from kubealign.cluster.objects import pipeline_objects, write_objects

        write_objects(pipeline_objects(path, graph.description), path)
    say(f"{path}: {graph.name}, {len(graph.tasks)} tasks, {len(graph.parameters)} parameters")


@main.command("lineage")
@click.argument("target", metavar="PATH_OR_URI_OR_RUN")
@click.argument("output", metavar="[STAGE_OR_OUTPUT]", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=LocalPath(), help="Also write a self-contained page.")
@click.option("--pipeline-root", default="", help="Where the outputs of a cluster's run lie.")
@connected
def lineage_(
    target: str,
    output: str,
    as_json: bool,
    html: Path | None,
    pipeline_root: str,
    connect: Callable[[], Cluster],
) -> None:
    """Tell which data, models and settings led to a dataset, a model or a run's last result.

    Of a RUN here (folder or name below runs/): to what STAGE made, by default the last. Of a RUN of a cluster
    (id or name): to its OUTPUT or TASK.OUTPUT, by default the model.

    Checks every fingerprint of the recipe, and whether each ancestor still lies where it was.
    """
    from kubealign.cli.console import standard_console
    from kubealign.lineage import ancestors, lineage_json, lineage_tree, open_output
    from kubealign_components.reports.lineage import to_html

    dataset = open_output(_target_uri(target, output, pipeline_root, connect))
    if html:
        write_whole(html, to_html(dataset.manifest))
    if as_json:
        click.echo(json.dumps(lineage_json(dataset), indent=2, ensure_ascii=False))
        return
    console = standard_console()
    console.print(lineage_tree(dataset.manifest))
    console.print(f"All {len(dataset.manifest.recipe)} fingerprints match their steps.")
    for ancestor in ancestors(dataset):
        console.print(
            f"  {ancestor.state}: {ancestor.name} {ancestor.fingerprint[:12]} {ancestor.uri}",
            markup=False,
            soft_wrap=True,
        )


@main.command("rerun")
@click.argument("target", metavar="PATH_OR_URI")
@click.option("-o", "--output", type=LocalPath(), help="File to write; standard output by default.")
@click.option("--check", "into", type=LocalPath(), help="Run it below this folder, and compare.")
def rerun_(target: str, output: Path | None, into: Path | None) -> None:
    """Write the run file that makes a dataset or model again, from its manifest.

    Of a run that is its last output; benchmarks that it was measured on are told, too.

    With --check it is run here, from the sources on, and fingerprint, rows and weights are compared.
    """
    import yaml

    from kubealign.cli.console import standard_console
    from kubealign.cli.progress import Progress
    from kubealign.errors import RunFailed
    from kubealign.lineage import benchmark_of, open_output
    from kubealign.local.runner import run_local
    from kubealign.rerun import check, rerun_folder, run_file_of
    from kubealign.runfile import RunFile

    original = open_output(target)
    measured = benchmark_of(target)
    content = run_file_of(original.manifest, measured.manifest if measured else None)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if output:
        write_whole(output, text)
    elif not into:
        click.echo(text, nl=False)
    if into:
        console = standard_console()
        folder = rerun_folder(into, original.manifest)
        results = run_local(RunFile(**content), output=folder, progress=Progress(console=console))
        apart = check(original, results)
        if apart:
            raise RunFailed("rerun", f"{results.folder} is not the same: {'; '.join(apart)}")
        console.print(f"The same again: fingerprint {original.manifest.fingerprint[:12]}, rows and weights.")


@main.command("show")
@click.argument("target", metavar="PATH_OR_URI_OR_RUN")
@click.argument("output", metavar="[STAGE_OR_OUTPUT]", required=False, default="")
@click.option("--rows", default=3, show_default=True, type=click.IntRange(min=0), help="How many rows.")
@click.option("--pipeline-root", default="", help="Where the outputs of a cluster's run lie.")
@connected
def show_(target: str, output: str, rows: int, pipeline_root: str, connect: Callable[[], Cluster]) -> None:
    """Show a dataset: kind, counts, what was dropped and why, and a few rows.

    Of a RUN here (folder or name below runs/): what STAGE made, by default the last. Of a RUN of a cluster
    (id or name): of its OUTPUT or TASK.OUTPUT, by default the model.
    """
    from kubealign.cli.console import standard_console
    from kubealign.cli.show import show
    from kubealign.lineage import open_output

    dataset = open_output(_target_uri(target, output, pipeline_root, connect))
    show(dataset, rows, standard_console())


def _target_uri(target: str, output: str, pipeline_root: str, connect: Callable[[], Cluster]) -> str:
    """``target``, or where the ``output`` of the run of that name lies, here or on the cluster."""
    from kubealign.local.runs import find_run, output_path

    if here := find_run(target):
        return str(output_path(here, output) if output else here.folder.path)
    if "/" in target or Path(target).exists():
        return target
    return str(output_of(cluster_for(target, connect), target, output or "model", pipeline_root).uri)


for _command in (
    cancel,
    card,
    check,
    compare,
    completion,
    components,
    doctor,
    du,
    estimate,
    export,
    fetch,
    gc,
    init,
    logs,
    ls,
    open_,
    params,
    register,
    retry,
    run,
    runs,
    schedule,
    schema,
    submit,
    sweep,
    ui,
    upload,
    verify,
    why,
    withdraw,
):
    main.add_command(_command)
show_examples(main)


if __name__ == "__main__":
    sys.exit(main())
