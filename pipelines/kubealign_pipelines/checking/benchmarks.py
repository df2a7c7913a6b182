"""The tasks of benchmarks at second 0: a name that is none would end a run that has trained for hours."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kubealign_components.benchmark.names import check_names, own_names
from kubealign_components.errors import ConfigError
from kubealign_components.named_paths import FOLDER, kind_at, named_path
from kubealign_components.store import scheme_of
from kubealign_pipelines.checking.findings import Finding, error_at
from kubealign_pipelines.checking.reach import unserved
from kubealign_pipelines.checking.stages import LATER, Checked
from kubealign_pipelines.checking.volumes import is_below

_TASKS, _FOLDER = "tasks", "task_folder"


def check_benchmarks(checked: Checked, *, readable: bool, unseen: Collection[str] = ()) -> Iterator[Finding]:
    """A finding for a task folder that is none, or that pods do not see, and for names that are in none.

    Args:
        checked: the settings.
        readable: whether the stages see what is seen here: on this machine, or in a pod of the run.
        unseen: folders that are not mounted here, but in pods of the run.
    """
    for stage in checked.of("benchmark"):
        folder = stage.config.task_folder
        if not folder or folder == LATER or is_below(folder, unseen):
            continue
        if expected := _problem(folder, readable=readable):
            yield error_at(stage.path((_FOLDER,)), folder, expected)
        elif scheme_of(folder) == "file":
            try:
                check_names(stage.config.tasks, own_names(named_path(folder)))
            except ConfigError as error:
                yield error_at(stage.path((_TASKS,)), error.value, error.expected)


def _problem(folder: str, *, readable: bool) -> str:
    if other := unserved(folder):
        return other
    if scheme_of(folder) != "file":
        return ""
    if not readable:
        remote = "the gs://, s3:// or minio:// URI of a folder of tasks, or a path on a volume of the pods"
        return f"{remote}: they do not see this machine's files"
    return "" if kind_at(named_path(folder)) == FOLDER else "a folder with tasks in lm-eval's YAML"
