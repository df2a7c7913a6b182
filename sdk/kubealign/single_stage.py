"""One stage by itself, here and now: what a notebook calls."""

from __future__ import annotations

import importlib
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from kubealign.local.runs import numbered
from kubealign.yaml_source import joined
from kubealign_components.config import BORROWS, GROUPS, OPTIONS, did_you_mean, from_parameters, require
from kubealign_components.data.chunks import Part, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError, CorruptDataset, NotFound
from kubealign_components.inputs import INPUTS, Input
from kubealign_components.merge.stage import run as merge
from kubealign_components.stages import config_class
from kubealign_components.store import scheme_of
from kubealign_pipelines.flat import paths_in_options

SOURCES = "sources"
DatasetOrPath = Dataset | str | Path
"""A dataset or model, or where one is."""
WORK = "work"
"""Folder of finished rows and outputs below that of the stages, and the setting that names it."""


def stage(
    name: str,
    /,
    *inputs: DatasetOrPath | Sequence[DatasetOrPath],
    into: str | Path = "stages",
    **settings: object,
) -> Dataset:
    """Run the stage ``name`` here and give what it made.

    Rows and outputs that are finished below ``into`` already are taken: the same call again computes nothing.

    Args:
        name: as in ``kubealign_components``: import_prompts, filter, sample, rewards, select, train, …
        inputs: datasets and models that it takes, in the order of ``kubealign_components.inputs``,
            or by their names.
        into: folder on this machine; what is made lies in ``<into>/<name>``, or with a number at the end.
        settings: of the stage, by the names that a run file has without the stage's: ``n`` of ``sample``.

    Raises:
        ConfigError: no such stage, an input too many or too few, or settings that cannot be used.
        KubeAlignError: what the stage raises.
    """
    require(name in INPUTS, "stage", name, f"one of {', '.join(INPUTS)}{did_you_mean(name, INPUTS)}")
    require(scheme_of(str(into)) == "file", "into", str(into), "a folder on this machine")
    given = _inputs(name, inputs, settings)
    folder = Path(into).resolve()
    if SOURCES in settings:
        settings[SOURCES] = _sources(settings[SOURCES])
    config = _config(name, {WORK: str(folder / WORK), **settings})
    module = importlib.import_module(f"kubealign_components.{name}.stage")

    def make(output: Path) -> None:
        if "chunk" in inspect.signature(module.run).parameters:
            _in_one_chunk(module.run, config, given["dataset"], str(folder / WORK), str(output))
        else:
            module.run(config, **given, output=str(output))

    return _made_once(folder, name, make)


def _in_one_chunk(
    worker: Callable[..., Part], config: object, dataset: object, work: str, output: str
) -> None:
    """Make ``output`` by a stage that works by chunk."""
    assert isinstance(dataset, Dataset)
    chunks = plan(dataset, work=work, chunks=1)
    merge(parts=[worker(config, chunk=chunk) for chunk in chunks], chunks=chunks, output=output)


def _inputs(
    name: str, inputs: Sequence[DatasetOrPath | Sequence[DatasetOrPath]], settings: dict[str, object]
) -> dict[str, object]:
    """The inputs of the stage by name; those that were given by name are taken out of ``settings``."""
    takes = INPUTS[name]
    require(len(inputs) <= len(takes), name, len(inputs), f"no more inputs than {', '.join(takes) or 'none'}")
    given: dict[str, object] = dict(zip(takes, inputs))
    for own in [own for own in takes if own in settings]:
        require(own not in given, own, settings[own], "it once, in its place or by its name")
        given[own] = settings.pop(own)
    for own, input_kind in takes.items():
        expected = f"what {name} takes: {' or '.join(input_kind.schemas)}"
        require(own in given or input_kind.optional, own, None, expected)
    return {own: _opened(given[own], takes[own]) for own in takes if own in given}


def _opened(given: object, input_kind: Input) -> object:
    if input_kind.many:
        each = given if isinstance(given, (list, tuple)) else [given]
        return [_open(one, input_kind) for one in each]
    opened = _open(given, input_kind)
    return opened.uri if input_kind.by_uri else opened


def _open(given: object, input_kind: Input) -> Dataset:
    return Dataset.open(given.uri if isinstance(given, Dataset) else str(given), *input_kind.schemas)


def _sources(given: object) -> list[object]:
    """Sources as settings have them, which take a text for a place alone."""
    each = given if isinstance(given, (list, tuple)) else [given]
    return [str(one) if isinstance(one, Path) else one for one in each]


def _config(name: str, settings: Mapping[str, object]) -> object:
    """The config of the stage, of settings by their own names or by those in its options."""
    cls = config_class(name)
    assert cls is not None
    paths = paths_in_options(name)
    arguments = [
        *getattr(cls, BORROWS, {}),
        *chain(*(g.arguments for g in getattr(cls, GROUPS, {}).values())),
    ]
    own = {*inspect.signature(cls).parameters, *arguments, OPTIONS}
    parameters: dict[str, object] = {}
    options: dict[str, object] = {}
    for setting, value in settings.items():
        if setting in own:
            parameters[setting] = value
        elif setting in paths:
            _put(options, paths[setting], value)
        elif setting != WORK:
            names = {*own, *paths}
            raise ConfigError(setting, value, f"a setting of {name}{did_you_mean(setting, names)}")
    written = parameters.get(OPTIONS)
    options = joined(options, written) if isinstance(written, Mapping) else options
    return from_parameters(cls, {**parameters, OPTIONS: options}, name)


def _put(options: dict[str, object], path: Sequence[str], value: object) -> None:
    *outer, last = path
    for part in outer:
        inner = options.setdefault(part, {})
        assert isinstance(inner, dict)
        options = inner
    options[last] = value


def _made_once(folder: Path, name: str, make: Callable[[Path], None]) -> Dataset:
    """What ``make`` makes in a folder of its own; the same that stands there already is given instead."""
    output, earlier = _new_folder(folder, name)
    try:
        make(output)
        made = Dataset.open(str(output), allow_empty=True)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise
    for path in earlier:
        with suppress(NotFound, CorruptDataset):
            standing = Dataset.open(str(path), allow_empty=True)
            if standing.manifest.fingerprint == made.manifest.fingerprint:
                standing.verify()
                shutil.rmtree(output)
                return standing
    return made


def _new_folder(folder: Path, name: str) -> tuple[Path, list[Path]]:
    """A new folder for what the stage makes, and those of earlier calls."""
    earlier: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / own for own in numbered(name)):
        try:
            path.mkdir()
        except FileExistsError:
            earlier.append(path)
        else:
            return path, earlier
    raise AssertionError("numbers do not end")
