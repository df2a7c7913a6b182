#!/usr/bin/env python3
"""Builds the images with Docker (BuildKit) or Buildah: ``make images``.

The names come from ``kubealign_components/images.py``; a CPU variant's tag ends in ``-cpu``. pip inside
the build gets the settings that pip has here (indexes, links to wheels, certificates) as a build secret,
so that none of them stays in a layer; folders among them are served over HTTP on this machine while the
build runs. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("data", "sample", "train")
PASSED_ON = ("index-url", "extra-index-url", "find-links", "trusted-host", "timeout", "retries")
PLACES = ("index-url", "extra-index-url", "find-links")
X86, ARM = "linux/amd64", "linux/arm64"
ATTESTED = ("--push", "--sbom=true", "--provenance=mode=min", "--allow", "network.host")
"""What is pushed says what is in it and where it comes from. Provenance of mode max would publish the build's
arguments, a proxy with its password among them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="data, sample, train; all by default")
    parser.add_argument("--variant", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--base-image", default="", help="an image with Python 3.11 and its venv")
    parser.add_argument("--registry", default="", help="put before the names, such as registry.example/ai")
    parser.add_argument("--push", action="store_true", help="push what is built, attested, for all platforms")
    parser.add_argument("--platform", default="", help="such as linux/arm64; several want --push")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    unknown = set(options.kinds) - set(KINDS)
    if unknown:
        parser.error(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    if "," in options.platform and not options.push:
        parser.error(f"--platform={options.platform}: expected one platform, or --push beside it")
    tool = pusher() if options.push else builder()
    if tool is None:
        missing = (
            "no docker with buildx is" if options.push else "neither docker with BuildKit nor buildah is"
        )
        parser.error(f"{missing} on the PATH")
    # Proxies are arguments that builders know and keep out of the history.
    proxies = [name for name in os.environ if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")]
    build_args = [*options.build_arg, *proxies, f"REVISION={revision()}"]
    if options.base_image:
        build_args.append(f"BASE_IMAGE={options.base_image}")
    with pip_secrets() as secrets:
        for kind in options.kinds or KINDS:
            tag = reference(kind, options.variant, options.registry)
            where = options.platform or (platforms(kind, options.variant) if options.push else "")
            target = [*tool, *(("--platform", where) if where else ())]
            build(
                target,
                kind,
                tag,
                [*build_args, f"VERSION={tag.rpartition(':')[2]}"],
                options.variant,
                secrets,
            )
            sys.stdout.write(f"{tag}\n")
    return 0


def reference(kind: str, variant: str = "cuda", registry: str = "") -> str:
    """The name that the image gets; the data image has no variants.

    >>> reference("train", "cpu", "registry.example/ai").startswith("registry.example/ai/kubealign/train:")
    True
    """
    sys.path.insert(0, str(ROOT / "components"))
    from kubealign_components import images

    name: str = getattr(images, kind.upper())
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    return prefix + name + ("-cpu" if variant == "cpu" and kind != "data" else "")


def platforms(kind: str, variant: str) -> str:
    """The platforms that all pins of an image have wheels for; ``make lock`` looks after it.

    >>> platforms("data", "cuda"), platforms("sample", "cuda")
    ('linux/amd64,linux/arm64', 'linux/amd64')
    """
    everywhere = kind == "data" or (kind == "train" and variant == "cuda")
    return f"{X86},{ARM}" if everywhere else X86


def build(
    tool: Sequence[str],
    kind: str,
    tag: str,
    build_args: Sequence[str],
    variant: str,
    secrets: Sequence[str],
) -> None:
    """Build one image; what the build says goes to standard error."""
    arguments = list(build_args) + ([f"VARIANT={variant}"] if kind != "data" else [])
    command = [*tool, "--network", "host", "--file", f"images/{kind}/Dockerfile", "--tag", tag, *secrets]
    command += [part for argument in arguments for part in ("--build-arg", argument)]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run([*command, "."], cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"{tag} could not be built: see above")


def builder() -> list[str] | None:
    """The first command here that builds with mounts and secrets, or None."""
    if docker := _docker(["build"], "--secret"):
        return [*docker, "--progress", "plain"]
    return ["buildah", "build", "--format", "docker", "--layers"] if shutil.which("buildah") else None


def pusher() -> list[str] | None:
    """The first command here that builds for several platforms, attests and pushes, or None."""
    docker = _docker(["buildx", "build"], "--sbom")
    return [*docker, "--progress", "plain", *ATTESTED] if docker else None


def _docker(command: Sequence[str], option: str) -> list[str] | None:
    """The first docker on the PATH whose ``command`` knows ``option``."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    for docker in dict.fromkeys(path for folder in folders if (path := shutil.which("docker", path=folder))):
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        said = subprocess.run(
            [docker, *command, "--help"], env=environment, capture_output=True, text=True, check=False
        )
        if said.returncode == 0 and option in said.stdout:
            return [docker, *command]
    return None


def revision() -> str:
    """The commit that is built, with ``-dirty`` where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match", "no-tag"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@contextlib.contextmanager
def pip_secrets() -> Iterator[list[str]]:
    """``--secret`` options for a build: pip's settings and certificates of this machine."""
    settings = pip_settings()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lines = []
        for name in PASSED_ON:
            values = settings.get(name, "").split()
            if name in PLACES:
                values = [stack.enter_context(reachable(value)) for value in values]
            if values:
                lines.append(f"{name} = {' '.join(values)}")
        secrets = []
        if settings.get("cert"):
            secrets += ["--secret", f"id=ca.pem,src={settings['cert']}"]
            lines.append("cert = /run/secrets/ca.pem")
        (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
        yield [*secrets, "--secret", f"id=pip.conf,src={folder / 'pip.conf'}"]


def pip_settings() -> dict[str, str]:
    """What ``pip config list`` says, the environment over the files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    # The environment comes last: it wins over the files.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, quoted = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(quoted)
    return settings


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[str]:
    """``uri`` as the build can reach it: a local folder is served over HTTP on the loopback address."""
    path = Path(urllib.parse.unquote(uri.removeprefix("file://")))
    if not (uri.startswith(("file:", "/")) and path.is_dir()):
        yield uri
        return
    # An index's pages link to files beside the index: serve from the folder above it.
    root, below = (path.parent, path.name) if (path / "index.html").is_file() else (path, "")
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{below}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing of requests that succeed."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep the build's output for the build."""


if __name__ == "__main__":
    raise SystemExit(main())
