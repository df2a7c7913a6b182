"""Manifests say where models and sources lay and what a step ran with; fingerprints know nothing of it."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from kubealign_components import __version__
from kubealign_components.data.dataset import Dataset
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_run
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as import_run


def imported(folder: Path) -> Dataset:
    folder.mkdir()
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(3)))
    config = ImportConfig(sources=(SourceConfig(name="s", uri=str(source)),))
    import_run(config, output=str(folder / "prompts"))
    return Dataset.open(str(folder / "prompts"))


def test_a_manifest_says_where_everything_lay(tiny_model: Path, tmp_path: Path) -> None:
    prompts = imported(tmp_path / "a")
    filter_run(FilterConfig(policy=str(tiny_model)), prompts=prompts, output=str(tmp_path / "tokenised"))
    manifest = Dataset.open(str(tmp_path / "tokenised")).manifest
    assert manifest.origins.keys() == manifest.recipe.keys()
    places = [p["uri"] for origin in manifest.origins.values() for p in origin["places"].values()]
    assert str(tmp_path / "a" / "prompts.jsonl") in places
    assert str(tiny_model) in places
    versions = manifest.origins[manifest.fingerprint]["versions"]
    assert versions["kubealign"] == __version__
    assert versions["torch"] == version("torch")


def test_places_change_no_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    made = []
    for name, policy in (("a", tiny_model), ("b", moved)):
        output = str(tmp_path / f"tokenised-{name}")
        filter_run(FilterConfig(policy=str(policy)), prompts=imported(tmp_path / name), output=output)
        made.append(Dataset.open(output).manifest)
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].origins != made[1].origins


def test_no_recipe_says_auto(tmp_path: Path) -> None:
    """What it meant is in the recipe: a machine where it means something else makes another dataset."""
    assert '"auto"' not in json.dumps(imported(tmp_path / "a").manifest.recipe)
