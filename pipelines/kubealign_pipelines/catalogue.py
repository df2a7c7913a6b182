"""The components as a catalogue of Kubeflow Pipelines has them: a folder each, loadable by path or URL.

<stage>/<stage>.component.yaml   for kfp.components.load_component_from_url
<stage>/metadata.yaml            stability, what it needs, and when that was last tried
<stage>/README.md                what it does, takes and gives
<stage>/OWNERS                   who answers for it, where owners are named
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import yaml
from kfp import compiler
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.structures import ComponentSpec, InputSpec

from kubealign_components import __version__, images
from kubealign_components.supervisor import supervised
from kubealign_pipelines.graph import NO_STAGES
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import DEFAULTS, TRAINING

STAGES = tuple(stage for stage in DEFAULTS if stage not in NO_STAGES)
"""The check belongs to a pipeline, whose parameters it takes."""
PIPELINES, TRAINER = ">=2.16.0", ">=2.2.0"
"""Releases of Kubeflow Pipelines and of Trainer that the components are written for."""
STABILITY = "alpha"
_KIND = {images.DATA: "data-processing", images.SAMPLE: "inference", images.TRAIN: "training"}


def write_catalogue(
    folder: Path, settings: CompileSettings, *, verified: datetime, owners: Sequence[str] = ()
) -> list[Path]:
    """Write the folder of every component below ``folder``; gives the components' files.

    Args:
        folder: made if it is not there.
        settings: of which registry, images and retries count.
        verified: when the release was tested.
        owners: accounts that approve changes.
    """
    written = []
    for stage in STAGES:
        component = component_of(stage, settings)
        stage_folder = folder / stage
        stage_folder.mkdir(parents=True, exist_ok=True)
        path = stage_folder / f"{stage}.component.yaml"
        compiler.Compiler().compile(component, str(path))
        (stage_folder / "metadata.yaml").write_text(
            _yaml(_metadata(stage, component.component_spec, verified)), encoding="utf-8"
        )
        (stage_folder / "README.md").write_text(_readme(stage, component.component_spec), encoding="utf-8")
        if owners:
            (stage_folder / "OWNERS").write_text(_yaml({"approvers": list(owners)}), encoding="utf-8")
        written.append(path)
    return written


def component_of(stage: str, settings: CompileSettings) -> BaseComponent:
    """The component of ``stage`` as pipelines have it: its image, and its process under a supervisor."""
    module = importlib.import_module(f"kubealign_components.{stage}.component")
    component: BaseComponent = copy.copy(getattr(module, stage))
    spec = component.component_spec
    container = spec.implementation.container
    command = supervised(container.command, settings.retries, torch=container.image != images.DATA)
    own = replace(container, image=settings.image(container.image), command=command)
    component.component_spec = replace(spec, implementation=replace(spec.implementation, container=own))
    return component


def _metadata(stage: str, spec: ComponentSpec, verified: datetime) -> dict[str, object]:
    kind = next((k for name, k in _KIND.items() if _same(name, spec)), "alignment")
    needs = [{"name": "Pipelines", "version": PIPELINES}]
    needs += [{"name": "Trainer", "version": TRAINER}] if stage in TRAINING else []
    return {
        "name": stage,
        "stability": STABILITY,
        "dependencies": {"kubeflow": needs},
        "tags": ["llm", "alignment", kind],
        "lastVerified": verified,
    }


def _same(reference: str, spec: ComponentSpec) -> bool:
    """Whether the component runs in the image ``reference``, from whatever registry."""
    image = str(spec.implementation.container.image)
    return image.rpartition("/")[2].partition(":")[0] == reference.rpartition("/")[2].partition(":")[0]


def _readme(stage: str, spec: ComponentSpec) -> str:
    made = [f"- `{name}`: {one.type.partition('@')[0]}" for name, one in (spec.outputs or {}).items()]
    parts = [
        f"# {stage}",
        " ".join((spec.description or "").split()),
        "## Inputs",
        "\n".join(["| name | type | default | meaning |", "|---|---|---|---|", *_inputs(spec)]),
        "## Outputs",
        "\n".join(made),
        "## Usage",
        f'```python\nfrom kfp import components\n\n{stage} = components.load_component_from_file("'
        f'{stage}.component.yaml")\n```',
        f"Of KubeAlign {__version__}, in the image `{spec.implementation.container.image}`. Apache-2.0.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inputs(spec: ComponentSpec) -> Iterator[str]:
    for name, one in (spec.inputs or {}).items():
        yield f"| `{name}` | {one.type.partition('@')[0]} | {_default(one)} | {_cell(one.description)} |"


def _default(one: InputSpec) -> str:
    if not one.optional:
        return "required"
    return "none" if one.default in (None, "") else f"`{one.default}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _yaml(content: dict[str, object]) -> str:
    return yaml.safe_dump(content, sort_keys=False, explicit_start=True)
