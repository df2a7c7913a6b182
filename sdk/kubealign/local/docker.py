"""Tasks of a local run in containers: kfp.local's DockerRunner with safe defaults, and its exit codes mended.

A container gets the run's folders and what the parameters name on this machine, at the same paths. It
runs without root, capabilities and a writable root file system: only the run's folders and ``/tmp``, a
volume that goes with the container, can be written.

Containers are processes of the engine, not of the run: each has the run's folder as a label, by which those
of a run that was told to stop are ended, and those of one that was killed when the next one begins.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kfp import local

from kubealign.local.runs import LOCK, is_locked
from kubealign_components import images
from kubealign_components.config import require
from kubealign_components.errors import ConfigError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

TMP = "/tmp"
"""Home and working directory in the images."""
LABEL = "kubealign.run"
"""Of a container: the folder of the run that has it."""
ANSWER = 3
"""Seconds that the engine has for an answer while a run is told to stop."""
_DEFAULTS: dict[str, object] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "shm_size": "2g",  # a limit: Docker's default of 64 MB is too little for two processes
}


def docker_runner(
    parameters: Mapping[str, object],
    *,
    run: Path,
    artifacts: Path,
    writable: Sequence[Path],
    settings: Mapping[str, Any],
) -> local.DockerRunner:
    """A runner for one run.

    Args:
        parameters: of the pipeline; the files and folders that they name are mounted read-only.
        run: its folder, in which no other process runs.
        artifacts: kfp's pipeline root, which kfp mounts; made here.
        writable: other folders that the tasks write to; made here.
        settings: arguments of docker's ``containers.run`` over the defaults; ``mounts`` are added.

    Raises:
        ConfigError: no docker package, no Docker Engine, or a setting that KFP's runner refuses.
    """
    try:
        import docker
        from docker.types import Mount
    except ImportError as error:
        raise ConfigError("runner", "docker", "the docker package beside KubeAlign") from error
    try:
        with contextlib.closing(docker.from_env()) as client:
            client.ping()
            remove_left(client, run)
    except docker.errors.DockerException as error:
        raise ConfigError("runner", "docker", f"a Docker Engine that answers ({error})") from error
    for folder in (artifacts, *writable):
        folder.mkdir(parents=True, exist_ok=True)
    inputs = [(target, path) for target, path in named(parameters) if path not in writable]
    mounts = [Mount(TMP, None, type="volume")]
    mounts += [Mount(target, str(path), type="bind", read_only=True) for target, path in inputs]
    mounts += [Mount(str(folder), str(folder), type="bind") for folder in writable]
    mounts += [Mount(**mount) for mount in settings.get("mounts", ())]
    given = settings.get("labels", {})
    labels = dict(given if isinstance(given, Mapping) else dict.fromkeys(given, "")) | {LABEL: str(run)}
    own = {"mounts": mounts, "labels": labels}
    try:
        return local.DockerRunner(**{**_DEFAULTS, **_user([artifacts, *writable]), **settings, **own})
    except ValueError as error:
        raise ConfigError(
            "container", dict(settings), f"arguments of docker's containers.run ({error})"
        ) from error


def signal_containers(run: Path, number: int) -> None:
    """Hand a signal on to the containers of the run in the folder ``run``; SIGKILL removes them as well."""
    import docker

    with (
        contextlib.suppress(docker.errors.DockerException, OSError),
        contextlib.closing(docker.from_env(timeout=ANSWER)) as client,
    ):
        for container in _containers(client, f"{LABEL}={run}"):
            with contextlib.suppress(docker.errors.APIError):  # it has ended meanwhile
                if number == signal.SIGKILL:
                    container.remove(force=True, v=True)
                else:
                    container.kill(number)


def remove_left(client: DockerClient, run: Path) -> None:
    """Remove the containers of ``run``, which begins, and of runs of this machine whose process is dead."""
    for container in _containers(client, LABEL):
        folder = Path(container.labels[LABEL])
        if folder == run or _has_ended(folder):
            _remove(container)


def _has_ended(run: Path) -> bool:
    """Whether the process of ``run`` has certainly ended; nothing is certain of folders of other users."""
    try:
        with (run / LOCK).open():
            return not is_locked(run / LOCK)
    except OSError:
        return False


def _containers(client: DockerClient, label: str) -> list[Container]:
    listed: list[Container] = client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
    return listed


def _remove(container: Container) -> None:
    """Remove a container that somebody else may be removing."""
    import docker

    try:
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise


def named(parameters: object) -> list[tuple[str, Path]]:
    """The files and folders here that ``parameters`` name: each as a path in the container and one here.

    Raises:
        ConfigError: a relative path that leaves the current folder.
    """
    files: dict[str, Path] = {}
    for text in _texts(parameters):
        name = text.removeprefix("file://")
        if not name.strip("./") or not _exists(name):
            continue
        require(
            name.startswith("/") or ".." not in Path(name).parts,
            "path",
            text,
            "an absolute path for containers",
        )
        files[os.path.join(TMP, name)] = Path(name).absolute()  # noqa: PTH118 - keeps an absolute name
    return sorted(files.items())


@contextlib.contextmanager
def exit_codes_kept() -> Iterator[None]:
    """In this block a container's exit code is the one that it ended with.

    kfp 2.17 lets Docker remove a container when it ends and takes one that is gone before its exit code
    was asked for as a success: about one failure in four was none.
    """
    from kfp.local import docker_task_handler

    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before


def run_container(
    client: DockerClient, image: str, command: list[str], volumes: object, **arguments: object
) -> int:
    """Run ``command`` to its end, print what it writes, and give its exit code; nothing of it stays."""
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        print(f"pulling {image}")  # noqa: T201 - how kfp's runners hand a task's output on
        client.images.pull(image)
    container = client.containers.run(image, command, detach=True, volumes=volumes, **arguments)
    try:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for piece in container.logs(stream=True, follow=True):
            print(decode(piece), end="")  # noqa: T201
        return int(container.wait()["StatusCode"])
    finally:
        _remove(container)


def _user(writable: Sequence[Path]) -> dict[str, object]:
    """Who runs the container: whoever runs this, so that the files are theirs, but never root."""
    if os.getuid():
        return {"user": f"{os.getuid()}:{os.getgid()}"}
    for folder in writable:
        for path, _, _ in os.walk(folder):
            os.chown(path, images.USER, -1)
    return {"user": f"{images.USER}:0"}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a text that no file can be called
        return False
