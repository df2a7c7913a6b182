"""What a run names on a volume of its pods is left to them, and what they do not see is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kubealign_components.config import from_mapping
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.checking.volumes import is_below
from kubealign_pipelines.resources import CompileSettings
from support.source_files import write_pairs, write_withdrawal

EVERYWHERE: dict[str, object] = {"volumes": {"data": "/only-there/"}}
OF_STAGES: dict[str, object] = {
    "stages": dict.fromkeys(("import_prompts", "filter", "sample", "mix", "train"), EVERYWHERE)
}
NAMED = ["policy", "import_withdrawn", "sources[0].uri", "sources[1].uri"]
"""What :func:`at` gives, as findings call it."""


@pytest.fixture
def sound(tmp_path: Path, tiny_model: Path) -> dict[str, object]:
    """Parameters with which nothing is wrong."""
    return {
        "policy": str(tiny_model),
        "sources": [{"uri": write_pairs(tmp_path / "prompts.jsonl", 60), "name": "mine"}],
        "reward_functions": ["brevity"],
        "sample_engine": "transformers",
        "validation_fraction": 0.3,
        "train_options": {"batch_size": 2},
        "work": str(tmp_path / "work"),
    }


def errors(
    values: Mapping[str, object], settings: Mapping[str, object], *, here: bool = False, in_pod: bool = False
) -> list[str]:
    """Names of the settings that are refused; in a pod with what the compiled pipeline tells its check."""
    compiled = from_mapping(CompileSettings, settings, "compile")
    if in_pod:
        compiled = from_mapping(CompileSettings, compiled.of_stages(), "compile")
    report = check_run("offline_alignment", values, compiled, here=here, shape={} if in_pod else None)
    return [finding.name for finding in report.errors]


def at(folder: str) -> dict[str, object]:
    """A model, two sources and a withdrawal below ``folder``."""
    sources = [{"uri": f"{scheme}{folder}/p.jsonl", "name": f"mine{scheme}"} for scheme in ("", "file://")]
    return {"policy": f"{folder}/model", "sources": sources, "import_withdrawn": f"{folder}/w.json"}


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (EVERYWHERE, "/only-there"),
        (OF_STAGES, "/only-there"),
        ({"installation": "standalone"}, "/models"),
        ({"installation": "profile"}, "/models"),
    ],
    ids=["of every pod", "of stages", "standalone", "profile"],
)
def test_what_lies_on_a_volume_of_the_pods_is_no_mistake(
    settings: dict[str, object], folder: str, sound: dict[str, object]
) -> None:
    assert errors(sound | at(folder), settings) == []
    assert errors(sound | at(folder), settings, here=True) == NAMED, "no pod is there to see it"


@pytest.mark.parametrize("folder", ["/only-there-2", "/models-2", "/only-there/../elsewhere"])
def test_what_lies_beside_a_volume_is_told(folder: str, sound: dict[str, object]) -> None:
    assert errors(sound | at(folder), EVERYWHERE | {"installation": "standalone"}) == NAMED


def test_a_pod_looks_at_what_is_mounted_in_it(sound: dict[str, object], tmp_path: Path) -> None:
    """``tmp_path`` is where the pod of the check has the volume."""
    write_withdrawal(tmp_path / "w.json")
    there, missing = ({"import_withdrawn": str(tmp_path / name)} for name in ("w.json", "none.json"))
    everywhere: dict[str, object] = {"volumes": {"data": str(tmp_path)}}
    assert errors(sound | there, everywhere, in_pod=True) == []
    assert errors(sound | missing, everywhere, in_pod=True) == ["import_withdrawn"]
    of_stage: dict[str, object] = {"stages": {"import_prompts": everywhere}}
    assert errors(sound | missing, of_stage, in_pod=True) == [], "another pod's volume"
    other = everywhere | {"stages": {"check": {"volumes": {"other": str(tmp_path)}}}}
    assert errors(sound | missing, other, in_pod=True) == [], "another volume at the same place"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data", True),
        ("/data/", True),
        ("/data//a", True),
        ("file:///data/a", True),
        ("/data/../a", False),
        ("/data2", False),
        ("data/a", False),
        ("s3://data/a", False),
        ("", False),
    ],
)
def test_below_a_folder(uri: str, expected: bool) -> None:
    assert is_below(uri, {"/data", "/models"}) is expected
