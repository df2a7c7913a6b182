"""The ``kubealign`` command.

Exit codes: 0 done, 1 a run or a dataset failed, 2 the command or its settings cannot be used, 130
interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kubealign.cli.cluster import cancel, fetch, logs, output_of, retry, runs, submit, upload
from kubealign.cli.connection import connected
from kubealign.cli.doctor import doctor
from kubealign.cli.estimate import estimate
from kubealign.cli.gc import gc
from kubealign.cli.options import load_run, run_options
from kubealign.cli.schedule import schedule
from kubealign.errors import ClusterError
from kubealign_components import __version__
from kubealign_components.errors import ConfigError, KubeAlignError, NotFound
from kubealign_pipelines import PIPELINES


class _Group(click.Group):
    """Commands whose own errors are one line on standard error, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ConfigError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(2)
        except KubeAlignError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted; finished rows are kept and a new run takes them up.", err=True)
            context.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="kubealign", prog_name="kubealign")
def main() -> None:
    """LLM preference alignment as Kubeflow pipelines."""


@main.command("compile")
@run_options
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The YAML to write; by default PIPELINE.yaml."
)
def compile_(
    pipeline: str | None, file: Path | None, assignments: tuple[str, ...], output: Path | None
) -> None:
    """Compile PIPELINE (offline_alignment, salmon) to the YAML that Kubeflow Pipelines runs.

    Parameters of the run file become the parameters' defaults, after every stage has checked them.
    """
    from kubealign.compiler import compile_pipeline
    from kubealign.parameters import check_parameters

    run = load_run(pipeline, file, assignments)
    path = output or Path(f"{run.pipeline}.yaml")
    graph = compile_pipeline(run.pipeline, path, run.compile, run.parameters, defaults=True)
    try:
        check_parameters(graph, run.parameters, complete=False)
    except ConfigError:
        path.unlink()
        raise
    click.echo(f"{path}: {graph.name}, {len(graph.tasks)} tasks, {len(graph.parameters)} parameters")


@main.command("run")
@run_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs; runs into one folder reuse each other's finished rows.",
)
@click.option("--name", default="", help="Name of the run's folder; date and time by default.")
@click.option(
    "--runner",
    type=click.Choice(["process", "docker"]),
    help="Run each task here (process, the default) or in a container of its image (docker).",
)
@click.option("-v", "--verbose", is_flag=True, help="Also show what the stages write.")
def run_(
    pipeline: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    output: Path,
    name: str,
    runner: str | None,
    verbose: bool,
) -> None:
    """Run PIPELINE (offline_alignment, salmon) whole on this machine."""
    from kubealign.cli.console import Progress, number_table, reuse_text, stage_table, standard_console
    from kubealign.local.runner import run_local
    from kubealign.local.summary import notes_on

    console = standard_console()
    run = load_run(pipeline, file, assignments)
    if runner:
        run = replace(run, local=replace(run.local, runner=runner))
    results = run_local(run, output=output, name=name, progress=Progress(console=console, verbose=verbose))
    console.print()
    console.print(stage_table(results))
    for note in [reuse_text(results), *notes_on(results)]:
        if note:
            console.print(note)
    console.print(number_table("Evaluation", results.evaluation))
    console.print(
        f"Model:   {results.folder / 'model'}\nSummary: {results.folder / 'summary.html'}", soft_wrap=True
    )


@main.command("lineage")
@click.argument("place", metavar="PATH_OR_URI_OR_RUN")
@click.argument("output", metavar="[OUTPUT]", required=False, default="model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write a self-contained page.")
@click.option("--pipeline-root", default="", help="Where the outputs of a cluster's run lie.")
@connected
def lineage_(
    place: str,
    output: str,
    as_json: bool,
    html: Path | None,
    pipeline_root: str,
    connect: Callable[[], Any],
) -> None:
    """Tell which data, models and settings led to a dataset, a model or a run's last result.

    Of a RUN of a cluster (id or name): to its OUTPUT or TASK.OUTPUT, by default the model.

    Checks every fingerprint of the recipe, and whether each ancestor still lies where it was.
    """
    from kubealign.cli.console import standard_console
    from kubealign.lineage import ancestors, lineage_json, lineage_tree, open_place
    from kubealign_components.data.lineage import to_html

    dataset = open_place(_placed(place, output, pipeline_root, connect))
    if html:
        html.write_text(to_html(dataset.manifest))
    if as_json:
        click.echo(json.dumps(lineage_json(dataset), indent=2, ensure_ascii=False))
        return
    console = standard_console()
    console.print(lineage_tree(dataset.manifest))
    console.print(f"All {len(dataset.manifest.recipe)} fingerprints match their steps.")
    for ancestor in ancestors(dataset.manifest):
        console.print(
            f"  {ancestor.state}: {ancestor.name} {ancestor.fingerprint[:12]} {ancestor.uri}",
            markup=False,
            soft_wrap=True,
        )


@main.command("show")
@click.argument("place", metavar="PATH_OR_URI_OR_RUN")
@click.argument("output", metavar="[OUTPUT]", required=False, default="model")
@click.option("--rows", default=3, show_default=True, type=click.IntRange(min=0), help="How many rows.")
@click.option("--pipeline-root", default="", help="Where the outputs of a cluster's run lie.")
@connected
def show_(place: str, output: str, rows: int, pipeline_root: str, connect: Callable[[], Any]) -> None:
    """Show a dataset: kind, counts, what was dropped and why, and a few rows.

    Of a RUN of a cluster (id or name): of its OUTPUT or TASK.OUTPUT, by default the model.
    """
    from kubealign.cli.console import standard_console
    from kubealign.cli.show import show
    from kubealign.lineage import open_place

    dataset = open_place(_placed(place, output, pipeline_root, connect))
    show(dataset, rows, standard_console())


def _placed(place: str, output: str, pipeline_root: str, connect: Callable[[], Any]) -> str:
    """``place``, or where the ``output`` of the cluster's run of that name lies."""
    if "/" in place or Path(place).exists():
        return place
    try:
        cluster = connect()
    except ClusterError as error:
        raise NotFound(
            f"{place}: there is no such path, and no cluster to ask for such a run ({error})"
        ) from error
    return str(output_of(cluster, place, output, pipeline_root).uri)


@main.command("params")
@click.argument("pipeline", type=click.Choice(PIPELINES))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def params_(pipeline: str, as_json: bool) -> None:
    """List the parameters of PIPELINE: name, default and meaning.

    Those marked "compile time" decide which stages the pipeline has; they are fixed when it is compiled.
    """
    import tempfile

    from kubealign.cli.console import parameter_table, standard_console
    from kubealign.compiler import compile_pipeline

    with tempfile.TemporaryDirectory() as folder:
        graph = compile_pipeline(pipeline, Path(folder) / "pipeline.yaml")
    parameters = sorted(graph.settings(), key=lambda p: p.name)
    if as_json:
        listed = [
            {
                "name": p.name,
                "type": p.type,
                "required": p.required,
                "default": p.default,
                "description": p.description,
                "compile_time": p.compile_time,
            }
            for p in parameters
        ]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    standard_console().print(parameter_table(parameters))


for _command in (cancel, doctor, estimate, fetch, gc, logs, retry, runs, schedule, submit, upload):
    main.add_command(_command)


if __name__ == "__main__":
    sys.exit(main())
