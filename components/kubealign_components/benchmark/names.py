"""The names of lm-eval's tasks, known where lm-eval is not installed.

``task_names.tsv.gz`` has a line for each task and group: name, its YAML below ``lm_eval/tasks``, its tags.
``python -m kubealign_components.benchmark.names`` writes it anew for another release of lm-eval, which takes
half a minute: as long as lm-eval itself would search its 14,000 files, each time it starts.
"""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import yaml

from kubealign_components.config import did_you_mean, require

NAMES = Path(__file__).with_name("task_names.tsv.gz")


@dataclass(frozen=True, slots=True)
class TaskNames:
    """What a release of lm-eval has tasks for."""

    release: str
    files: Mapping[str, str]
    """Paths below ``lm_eval/tasks`` by the name of the task or group."""
    tags: Mapping[str, tuple[str, ...]]
    """Names of tasks by tag."""

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.tags

    def __iter__(self) -> Iterator[str]:
        yield from self.files
        yield from self.tags


@cache
def task_names() -> TaskNames:
    """The names of the release that the stage is locked to."""
    release, *lines = gzip.decompress(NAMES.read_bytes()).decode().splitlines()
    files: dict[str, str] = {}
    tags: dict[str, list[str]] = {}
    for line in lines:
        name, path, tagged = line.split("\t")
        files[name] = path
        for tag in filter(None, tagged.split(",")):
            tags.setdefault(tag, []).append(name)
    return TaskNames(release, files, {tag: tuple(of) for tag, of in tags.items() if tag not in files})


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAML without the functions that it names."""


_Loader.add_multi_constructor("!", lambda *_: None)


def own_names(folder: Path) -> set[str]:
    """Names of the tasks, groups and tags of the YAML files below ``folder``; what is no YAML has none."""
    names: set[str] = set()
    for path in sorted(folder.rglob("*.yaml")):
        try:
            content = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506
        except (OSError, yaml.YAMLError):
            continue
        for key in ("task", "group", "tag") if isinstance(content, dict) else ():
            named = content.get(key)
            if isinstance(named, str):
                names.add(named)
            elif key == "tag" and isinstance(named, list):
                names.update(map(str, named))
    return names


def check_names(tasks: Sequence[str], own: Collection[str] = (), *, complete: bool = True) -> None:
    """Refuse a name that is there twice, and one that is none.

    Args:
        tasks: names of tasks, groups or tags.
        own: further names that there are.
        complete: whether there are no others.

    Raises:
        ConfigError: repeats the name, with one that is close.
    """
    shipped = task_names()
    for position, name in enumerate(tasks):
        field = f"tasks[{position}]"
        require(name not in tasks[:position], field, name, "each task once")
        if complete and name not in shipped and name not in own:
            require(False, field, name, _expected(name, own))


def _expected(name: str, own: Collection[str]) -> str:
    near = did_you_mean(name, [*own, *task_names()])
    where = f" or of the task folder ({', '.join(sorted(own)) or 'it has none'})" if own else ""
    return (
        f"the name of a task, group or tag of lm-eval {task_names().release}{where}{near}; lm-eval ls tasks "
        "lists them, and task_folder names a folder of YAML with further ones"
    )


def write_names() -> None:
    """Write the names of the lm-eval that is installed."""
    from lm_eval import tasks
    from lm_eval.tasks._index import TaskIndex

    root = Path(tasks.__file__).parent
    index = TaskIndex.build([root])
    tags: dict[str, list[str]] = {}
    for name, entry in sorted(index.items()):
        for task in entry.tags if entry.yaml_path is None else ():
            tags.setdefault(task, []).append(name)
    lines = [
        "\t".join([name, entry.yaml_path.relative_to(root).as_posix(), ",".join(tags.get(name, ()))])
        for name, entry in sorted(index.items())
        if entry.yaml_path is not None
    ]
    text = "\n".join([version("lm-eval"), *lines]) + "\n"
    NAMES.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write_names()
