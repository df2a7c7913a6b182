"""Commands that look before anything runs: check, params, schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from kubealign.cli.arguments import PipelineName
from kubealign.cli.options import Given, run_options, show_findings
from kubealign.cli.terminal import counted, say
from kubealign_pipelines import PIPELINES

if TYPE_CHECKING:
    from kubealign_pipelines.checking.describe import Setting
    from kubealign_pipelines.checking.findings import Finding
    from kubealign_pipelines.graph import Graph, Parameter


@click.command("check")
@run_options
@click.option(
    "--rows",
    default=2,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Show N of the prompts as the policy will see them; 0 for none.",
)
@click.option("--here", is_flag=True, help="For a run on this machine: models and data must be found here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(given: Given, rows: int, here: bool, as_json: bool) -> None:
    """Find everything that is wrong with a run before it starts; starts nothing."""
    from kubealign.checking import check as check_run
    from kubealign_pipelines.checking.findings import BadSettings
    from kubealign_pipelines.checking.run import first_rows

    sourced = given.sourced()
    report = None if sourced.run is None else check_run(sourced, here=here)
    findings = report.findings if report else sourced.located([])
    if as_json:
        click.echo(json.dumps([_plain(finding) for finding in findings], indent=2, ensure_ascii=False))
    if any(not finding.warning for finding in findings):
        if as_json:
            click.get_current_context().exit(2)
        raise BadSettings(findings)
    if as_json:
        return
    show_findings(findings)
    for number, text in enumerate(first_rows(report, rows) if report else [], start=1):
        say(f"prompt {number}: {text}")
    say(f"no errors, {counted(len(findings), 'warning')}")


@click.command("params")
@click.argument("pipeline", metavar="PIPELINE", type=PipelineName(PIPELINES))
@click.option("--all", "every", is_flag=True, help="Every setting of every stage, not the parameters alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def params(pipeline: str, every: bool, as_json: bool) -> None:
    """List the parameters of PIPELINE: name, default and meaning.

    Those marked "compile time" decide which stages the pipeline has; they are fixed when it is compiled.
    """
    from kubealign.cli.console import parameter_table, setting_table, standard_console
    from kubealign.schema import settings_of, shapes

    graphs = shapes(pipeline)
    if every:
        settings = settings_of(graphs)
        if as_json:
            click.echo(json.dumps([_setting(one) for one in settings], indent=2, ensure_ascii=False))
        else:
            standard_console().print(setting_table(settings))
        return
    parameters = sorted(_parameters(graphs), key=lambda p: p.name)
    if as_json:
        names = ("name", "type", "required", "default", "description", "compile_time")
        listed = [{name: getattr(p, name) for name in names} for p in parameters]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    standard_console().print(parameter_table(parameters))


@click.command("schema")
@click.argument("pipeline", metavar="PIPELINE", type=PipelineName(PIPELINES))
def schema(pipeline: str) -> None:
    """Print the JSON schema of a run file of PIPELINE, which editors complete and check from."""
    from kubealign.schema import run_file_schema

    click.echo(json.dumps(run_file_schema(pipeline), indent=2, ensure_ascii=False))


def _parameters(graphs: Sequence[Graph]) -> list[Parameter]:
    return list({p.name: p for graph in reversed(graphs) for p in graph.settings()}.values())


def _plain(finding: Finding) -> dict[str, object]:
    mark = finding.mark
    return {
        "level": "warning" if finding.warning else "error",
        "setting": finding.name,
        "message": finding.message,
        "source": mark.source if mark else None,
        "line": mark.line if mark else None,
        "column": mark.column if mark else None,
    }


def _setting(setting: Setting) -> dict[str, object]:
    required = setting.default is dataclasses.MISSING
    default = None if required else setting.default
    return {
        "name": setting.name,
        "place": setting.dotted_path,
        "stage": setting.stage,
        "type": setting.type,
        "required": required,
        "default": list(default) if isinstance(default, tuple) else default,
        "choices": list(setting.choices),
        "meaning": setting.meaning,
    }
