"""The command that registers a model in Kubeflow's model registry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.connection import connected
from kubealign.cli.terminal import say
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.registry.server import TOKEN

if TYPE_CHECKING:
    from kubealign.cluster.client import Cluster
    from kubealign_components.registry.versions import Registration

_MODEL = "model"
"""What a run's model is called, which the run's evaluation is of."""


@click.command("register")
@click.argument("target", metavar="PATH_OR_URI_OR_RUN")
@click.argument("output", metavar="[STAGE_OR_OUTPUT]", required=False, default="")
@click.option(
    "--server", required=True, envvar="KUBEALIGN_REGISTRY", show_envvar=True, help="Address of the registry."
)
@click.option("--name", default="", help="Of the registered model; by default what its manifest calls it.")
@click.option("--author", default="", envvar="KUBEALIGN_AUTHOR", show_envvar=True, help="Of the version.")
@click.option(
    "--registry-token",
    default="",
    envvar=TOKEN,
    show_envvar=True,
    help="Bearer token of the registry.",
)
@click.option("--registry-token-file", type=click.Path(path_type=Path), help="File with that token.")
@click.option("--registry-ca-cert", default="", help="File with the registry's certificate authority.")
@click.option("--pipeline-root", default="", help="Where the outputs of a cluster's run lie.")
@connected
def register(
    target: str,
    output: str,
    server: str,
    name: str,
    author: str,
    registry_token: str,
    registry_token_file: Path | None,
    registry_ca_cert: str,
    pipeline_root: str,
    connect: Callable[[], Cluster],
) -> None:
    """Register a model in Kubeflow's model registry: where it lies, what it was made of and how it did.

    Of a RUN here (folder or name below runs/) or of a cluster (id or name): its model. The version is called
    as the model's fingerprint, so that a model that is registered again is brought up to date.
    """
    from kubealign_components.registry.server import RegistryServer
    from kubealign_components.registry.versions import register

    token = registry_token_file.read_text(encoding="utf-8").strip() if registry_token_file else registry_token
    registry = RegistryServer(address=server, token=token, ca_cert=registry_ca_cert)
    what = _what(target, output, name, author, pipeline_root, connect)
    done = register(registry, what)
    say(what.sentence(done))
    say(what.uri)
    if done.before:
        say(f"so far the registry had it at {done.before}")
    if what.uri.startswith("file:"):
        say("it lies on this machine alone: who reads the registry elsewhere cannot load it", err=True)


def _what(
    target: str, output: str, name: str, author: str, pipeline_root: str, connect: Callable[[], Cluster]
) -> Registration:
    """What to register of a path, a URI, a run here, or one of a cluster."""
    from kubealign.cli.cluster import cluster_for, output_of
    from kubealign.lineage import open_output
    from kubealign.local.runs import find_run, output_path
    from kubealign_components.evaluate.verdict import verdict
    from kubealign_components.registry.versions import PipelineRun, registration

    output = output or _MODEL
    if here := find_run(target):
        path = output_path(here, output)
        evaluation = {} if output != _MODEL else dict(here.results.get("evaluation", {}))
        return registration(
            open_output(str(path)),
            name=name,
            author=author,
            evaluation=evaluation,
            description=verdict(evaluation),
        )
    if "/" in target or Path(target).exists():
        return registration(open_output(target), name=name, author=author)
    cluster = cluster_for(target, connect)
    run = cluster.run(target)
    made = output_of(cluster, target, output, pipeline_root)
    numbers: dict[str, float] = {}
    if output == _MODEL:
        with contextlib.suppress(
            NotFound, ConfigError
        ):  # a run that compares nothing, or has not come so far
            compared = output_of(cluster, target, "evaluate.dataset", pipeline_root)
            numbers = open_output(compared.uri).manifest.numbers
    return registration(
        open_output(made.uri),
        name=name,
        author=author,
        evaluation=numbers,
        description=verdict(numbers),
        run=PipelineRun(id=run.run_id, name=run.display_name, namespace=cluster.namespace_of(run)),
    )
