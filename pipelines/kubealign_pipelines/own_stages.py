"""Stages of a user's own as components: one module, which travels in the compiled pipeline."""

from __future__ import annotations

import dataclasses
import keyword
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kfp import dsl

from kubealign_components.config import OPTIONS, hints_of, require, require_choice
from kubealign_components.errors import ConfigError
from kubealign_components.own_stage import OwnStage, packed, read_stage
from kubealign_components.stages import CONFIGS, register
from kubealign_pipelines.checking.carried import check_texts
from kubealign_pipelines.generated import defined
from kubealign_pipelines.resources import IMAGES

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

OUTPUTS = ("dataset", "metrics", "report")
"""Outputs of a stage of rows: the dataset, its numbers, and the page about it."""
MOST = 64 * 2**10
"""Bytes of a packed module: it lies in the compiled pipeline once for each task."""
_TYPES = {str: "str", int: "int", float: "float", bool: "bool"}
_SOURCE = '''\
def {name}({inputs}):
    """{meaning}"""
    settings = dict({settings})

    from kubealign_components.own_stage import run_stage

    run_stage(
        {carried!r},
        {name!r},
        settings,
        dict({datasets}),
        dataset=dataset,
        metrics=metrics,
        report=report,
    )
'''


def own_stage(file: str | Path, *, image: str = "data") -> BaseComponent:
    """The component of the stage in ``file``, a module that needs nothing but what its image has.

    The stage is called as the file. Its settings are the component's parameters, its datasets the inputs.

    Args:
        file: a module with ``VERSION``, ``Config`` and ``run(config, *, <datasets>, output)``.
        image: data, sample or train.

    Raises:
        ConfigError: no such file, one that defines no stage, or a name that is taken.
    """
    path = Path(file).expanduser().resolve()
    name = path.stem
    require(path.is_file() and path.suffix == ".py", "own_stage", str(file), "a Python file")
    require_choice("image", image, IMAGES)
    usable = name.isidentifier() and not keyword.iskeyword(name) and name not in (*CONFIGS, "merge")
    require(usable, "own_stage", str(file), "a file called like a function, and like no stage that there is")
    source = path.read_text(encoding="utf-8")
    carried = packed(source)
    most = f"a module of at most {MOST} bytes as it is packed (this has {len(carried)})"
    require(len(carried) <= MOST, "own_stage", str(file), most)
    stage = read_stage(source, name, str(path))
    taken = {*OUTPUTS, *stage.inputs, OPTIONS} & {field.name for field in dataclasses.fields(stage.config)}
    expected = f"settings with other names than inputs and outputs have, and than {OPTIONS}"
    require(not taken, name, sorted(taken), expected)
    register(name, stage.config)
    return _component(stage, carried, IMAGES[image])


def _component(stage: OwnStage, carried: str, image: str) -> BaseComponent:
    datasets = [f"{name}: dsl.Input[dsl.Dataset]" for name in stage.inputs]
    outputs = [
        f"{name}: dsl.Output[dsl.{kind}]" for name, kind in zip(OUTPUTS, ("Dataset", "Metrics", "HTML"))
    ]
    settings = dict(_parameters(stage))
    ordered = sorted(settings.values(), key=lambda text: "=" in text)
    text = _SOURCE.format(
        name=stage.name,
        inputs=", ".join([*datasets, *outputs, *ordered]),
        meaning=_meaning(stage),
        settings=", ".join(f"{name}={name}" for name in settings),
        datasets=", ".join(f"{name}={name}" for name in stage.inputs),
        carried=carried,
    )
    function = defined(stage.name, text, f"component of {stage.name}", {"dsl": dsl})
    return dsl.component(function, base_image=image, install_kfp_package=False)


def _parameters(stage: OwnStage) -> Iterator[tuple[str, str]]:
    """Each setting as the component's function has it."""
    hints = hints_of(stage.config)
    for field in dataclasses.fields(stage.config):
        kind = _kind(hints[field.name])
        if not kind:
            expected = "text, whole number, number, true or false, a tuple, a list or a mapping"
            raise ConfigError(f"{stage.name}.Config.{field.name}", str(hints[field.name]), expected)
        default = _default(field)
        for finding in check_texts((f"{stage.name}.Config", field.name), default):
            raise ConfigError(finding.name, finding.value, finding.expected)
        text = f"{field.name}: {kind}"
        yield field.name, text if default is dataclasses.MISSING else f"{text} = {default!r}"


def _kind(hint: object) -> str:
    origin = typing.get_origin(hint) or hint
    if origin in (tuple, list):
        return "list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "dict"
    return _TYPES.get(origin, "") if isinstance(origin, type) else ""


def _default(field: dataclasses.Field[object]) -> object:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return list(value) if isinstance(value, tuple) else value


def _meaning(stage: OwnStage) -> str:
    """The first line of what ``run`` says of itself."""
    text = (stage.run.__doc__ or f"The stage {stage.name}.").strip().splitlines()[0]
    return text.replace("\\", "").replace('"', "'").replace("{{", "{ {")
