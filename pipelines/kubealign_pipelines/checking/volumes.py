"""Folders of volumes, which whoever checks a run may not see: what a run names there is left to its pods."""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from kubealign_components.store import scheme_of
from kubealign_pipelines.graph import CHECK
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import DEFAULTS, STANDALONE


def unseen_folders(settings: CompileSettings, *, in_pod: bool) -> set[str]:
    """Where pods of a run see volumes that are not mounted here.

    Args:
        settings: of the run.
        in_pod: whether this is the run's own check, whose pod has volumes as well.
    """
    volumes = {
        (claim, posixpath.normpath(path))
        for stage in (*DEFAULTS, *settings.stages)
        for claim, path in settings.resources(stage).volumes.items()
    }
    if in_pod:
        own = settings.resources(CHECK).volumes
        volumes -= {(claim, posixpath.normpath(path)) for claim, path in own.items()}
        return {path for _, path in volumes}
    # In a profile the namespace's PodDefaults mount the model cache, which no task says.
    return {path for _, path in volumes} | set(STANDALONE.volumes.values())


def is_below(uri: str, folders: Collection[str]) -> bool:
    """Whether ``uri`` is the path of one of ``folders``, or of something in it."""
    if scheme_of(uri) != "file":
        return False
    path = posixpath.normpath(uri.removeprefix("file://"))
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
