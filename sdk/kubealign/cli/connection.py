"""Options of the commands that speak to Kubeflow Pipelines, and what they print."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.terminal import say

if TYPE_CHECKING:
    from kubealign.cluster.client import Cluster
    from kubealign.runfile import RunFile

_CONNECTION: tuple[tuple[str, str, str], ...] = (
    ("host", "KF_PIPELINES_ENDPOINT", "Address of the KFP API; without it this pod's cluster or kubeconfig."),
    ("namespace", "KUBEALIGN_NAMESPACE", "Profile, on a multi-user installation."),
    ("token", "KUBEALIGN_TOKEN", "Bearer token."),
    ("token-file", "KUBEALIGN_TOKEN_FILE", "File with a bearer token, read anew for each request."),
    ("cookies", "KUBEALIGN_COOKIES", "Session cookies of Dex or oauth2-proxy."),
    ("iap-client-id", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID", "Client id of Identity-Aware Proxy."),
    ("kube-context", "KUBEALIGN_KUBE_CONTEXT", "Context of the kubeconfig."),
    ("ca-cert", "KUBEALIGN_CA_CERT", "File with the server's certificate authority."),
    ("proxy", "KUBEALIGN_PROXY", "HTTP proxy before the server."),
)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the connection; the command gets a ``connect`` that opens it."""

    @wraps(command)
    def wrapped(*args: object, insecure: bool, **kwargs: object) -> None:
        names = [name.replace("-", "_") for name, _, _ in _CONNECTION]
        given = {name: str(kwargs.pop(name)) for name in names}

        def connect() -> Cluster:
            from kubealign.cluster.client import Cluster
            from kubealign.cluster.connection import Connection

            return Cluster(Connection(verify_ssl=not insecure, **given))

        command(*args, connect=connect, **kwargs)

    decorated: Callable[..., None] = click.option(
        "--insecure", is_flag=True, help="Do not check the server's certificate."
    )(wrapped)
    for name, variable, text in reversed(_CONNECTION):
        decorated = click.option(f"--{name}", default="", envvar=variable, show_envvar=True, help=text)(
            decorated
        )
    return decorated


def placement(command: Callable[..., None]) -> Callable[..., None]:
    """Options of what runs: experiment, pipeline root, service account."""
    for name, default, text in (
        ("service-account", "", "Service account of the pods."),
        ("pipeline-root", "", "Where outputs go; by default the installation's."),
        ("experiment", "Default", "Experiment; made if it is new."),
    ):
        command = click.option(f"--{name}", default=default, show_default=bool(default), help=text)(command)
    return command


@contextlib.contextmanager
def compiled(run: RunFile, *, as_defaults: bool = False) -> Iterator[tuple[Path, dict[str, object]]]:
    """The IR of ``run`` in a temporary file and the parameters that it takes, checked before."""
    from kubealign.parameters import check_parameters
    from kubealign.run_paths import send_code
    from kubealign_pipelines.compiler import compile_pipeline
    from kubealign_pipelines.flat import fold

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        graph = compile_pipeline(run.pipeline, package, run.compile, run.parameters, defaults=as_defaults)
        check_parameters(graph, run.parameters, complete=not as_defaults)
        parameters = fold(graph, run.parameters).values
        yield package, graph.given(parameters if as_defaults else send_code(parameters))


def print_rows(rows: list[Mapping[str, str]] | list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in (rows[0] if rows else ())}
    for row in [{name: name.upper() for name in widths}, *rows] if rows else ():
        say("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
