"""The command ``kubealign doctor``."""

from __future__ import annotations

import json

import click

from kubealign.cli.options import Given, run_options
from kubealign.cli.terminal import say


@click.command("doctor")
@run_options
@click.option(
    "-n",
    "--namespace",
    default="",
    envvar="KUBEALIGN_NAMESPACE",
    help="Of the run's pods; by default kubealign, or kubeflow for a standalone installation.",
)
@click.option("--service-account", default="", help="Of the run's pods; by default the installation's.")
@click.option(
    "--kube-context", default="", envvar="KUBEALIGN_KUBE_CONTEXT", help="Context of the kubeconfig."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, to attach to an issue.")
@click.pass_context
def doctor(
    context: click.Context,
    given: Given,
    namespace: str,
    service_account: str,
    kube_context: str,
    as_json: bool,
) -> None:
    """Hold the cluster of the kubeconfig against what a run of PIPELINE or a run file needs of it.

    Changes nothing. Each finding comes with its remedy; exit code 1 where a run would fail or hang.
    """
    from kubealign.cluster.kube import Kubernetes
    from kubealign.doctor.diagnosis import CheckState, Subject, require_namespace
    from kubealign.doctor.examine import examine, report_json, report_lines

    run = given.of("offline_alignment").run()
    kubernetes = Kubernetes(context=kube_context)
    subject = Subject(kubernetes, run, namespace=namespace, service_account=service_account)
    require_namespace(subject)
    findings = list(examine(subject))
    if as_json:
        click.echo(json.dumps(report_json(subject, findings), indent=2, ensure_ascii=False))
    else:
        for line in report_lines(findings):
            say(line)
    if any(finding.state is CheckState.PROBLEM for finding in findings):
        context.exit(1)
