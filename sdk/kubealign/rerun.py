"""From a dataset or model back to the run file that makes it again, and whether it then is the same.

Everything comes out of the manifest: settings from the recipe, places of models and sources from the
origins beside it.
"""

from __future__ import annotations

from pathlib import Path

from kubealign.errors import RunFailed
from kubealign.local.results import Results
from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.manifest import Manifest
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.json_types import JsonObject

Parameters = dict[str, object]

_ONCE = ("import_prompts", "filter", "sample", "rewards", "select", "logprobs", "mix", "train", "evaluate")
"""Stages of the pipeline that can be told from a recipe."""
_SAMPLING = ("engine", "n", "temperature", "max_new_tokens")
"""Settings of sampling that are parameters of the pipeline, as evaluation has them too."""
_TRAINING = ("objective", "beta", "learning_rate", "epochs", "adapter")


def run_file_of(manifest: Manifest) -> JsonObject:
    """The run file, as plain values, of the pipeline that makes what ``manifest`` describes.

    Raises:
        ConfigError: it was made by stages that are not those of one run of offline_alignment, or from a
            place that the manifest does not tell.
    """
    steps: JsonObject = {}
    for step in manifest.recipe.values():
        stage = step["stage"]
        require(
            stage in _ONCE and stage not in steps,
            "rerun",
            manifest.slug,
            f"what one run of offline_alignment made; its recipe has a step {stage!r} "
            + ("more than once" if stage in steps else "that is none of that pipeline's"),
        )
        steps[stage] = step
    require("filter" in steps, "rerun", manifest.slug, "a dataset or model made from tokenised prompts")
    parameters = _sources(steps["import_prompts"], manifest) | _policies(steps, manifest)
    for stage, write in _WRITERS.items():
        if stage in steps:
            parameters |= write(steps[stage])
    if "rewards" in steps and "model" in steps["rewards"]["models"]["reward"]:
        place = _place(manifest, steps["rewards"]["models"]["reward"]["model"]["digest"])
        parameters["reward_model"] = place["uri"]
    parameters.setdefault("sample_n", 0)
    before = "select" in steps and steps["select"]["inputs"].get("rewarded") == _name(manifest, "logprobs")
    return {
        "pipeline": "offline_alignment",
        "parameters": parameters | {"logprobs_order": "before" if before else "after"},
    }


def check(original: Dataset, results: Results) -> list[str]:
    """What is not the same about ``original`` and what a rerun made: nothing when all of it is.

    Raises:
        RunFailed: the rerun made nothing of the same stage.
    """
    ours = original.manifest
    stage = ours.provenance.step["stage"]
    for output in results.outputs:
        try:
            made = Dataset.open(str(output.path), allow_empty=True)
        except NotFound:
            continue
        if made.manifest.provenance.step["stage"] == stage and made.manifest.schema == ours.schema:
            return _apart(original, made)
    raise RunFailed("rerun", f"{results.folder} holds nothing made by {stage!r} to compare with")


def _apart(original: Dataset, made: Dataset) -> list[str]:
    ours, theirs = original.manifest, made.manifest
    found = []
    if ours.fingerprint != theirs.fingerprint:
        changed = [s["stage"] for name, s in theirs.recipe.items() if name not in ours.recipe]
        found.append(f"fingerprint {theirs.fingerprint[:12]}, it was {ours.fingerprint[:12]}: {changed}")
    files, others = (m.extra.get("files", {}) for m in (ours, theirs))
    found += [
        f"file {name} differs" for name in sorted(files | others) if files.get(name) != others.get(name)
    ]
    if not files and _rows(original) != _rows(made):
        found.append("rows differ")
    return found


def _rows(dataset: Dataset) -> str:
    return digest([digest(repr(row)) for row in dataset.iter_rows()])


def _name(manifest: Manifest, stage: str) -> str | None:
    return next((name for name, step in manifest.recipe.items() if step["stage"] == stage), None)


def _place(manifest: Manifest, wanted: str) -> dict[str, str]:
    for origin in manifest.origins.values():
        if wanted in origin["places"]:
            place: dict[str, str] = origin["places"][wanted]
            return place
    raise ConfigError("rerun", manifest.slug, f"a manifest that says where {wanted[:12]} lay")


def _sources(step: JsonObject, manifest: Manifest) -> Parameters:
    sources = []
    for source in step["params"]["sources"]:
        content = source["content"]
        place = _place(manifest, content.get("sha256") or content["commit"])
        settings = {k: v for k, v in source.items() if k != "content" and v not in (None, {}, [])}
        sources.append(settings | place)
    options = {k: v for k, v in step["params"].items() if k != "sources" and v is not None}
    return {"sources": sources, "import_options": options}


def _policies(steps: JsonObject, manifest: Manifest) -> Parameters:
    made: Parameters = {"policy": _place(manifest, steps["filter"]["models"]["policy"]["digest"])["uri"]}
    reference = steps.get("logprobs", {}).get("models", {}).get("reference")
    if reference:
        made["reference"] = _place(manifest, reference["digest"])["uri"]
    return made


def _filter(step: JsonObject) -> Parameters:
    params = {k: v for k, v in step["params"].items() if v not in (None, {})}
    own = {f"filter_{k}": params.pop(k) for k in ("max_seq_len", "max_prompt_len", "min_completions")}
    return own | {"filter_options": params}


def _sample(step: JsonObject) -> Parameters:
    sampling = dict(step["params"]["sampling"])
    made = {f"sample_{name}": sampling.pop(name) for name in _SAMPLING}
    own = {"seed": sampling.pop("seed"), "sample_truncated": step["params"]["truncated"]}
    return made | own | {"sample_options": {"sampling": sampling}}


def _rewards(step: JsonObject) -> Parameters:
    params = dict(step["params"])
    return {"reward_functions": params.pop("functions"), "rewards_options": {"reward": params}}


def _select(step: JsonObject) -> Parameters:
    params = dict(step["params"])
    own = {f"select_{name}": params.pop(name) for name in ("strategy", "pairs_per_prompt", "pool")}
    return own | {"seed": params.pop("seed"), "select_options": params}


def _logprobs(step: JsonObject) -> Parameters:
    params = dict(step["params"])
    numbers = params.pop("regime")
    own = {"logprobs_source": params.pop("source")}
    return own | {"logprobs_options": params | {"dtype": numbers["compute"]}}


def _mix(step: JsonObject) -> Parameters:
    params = dict(step["params"])
    fraction = params.pop("validation_fraction")
    return {"seed": params.pop("seed"), "validation_fraction": fraction, "mix_options": params}


def _train(step: JsonObject) -> Parameters:
    params = {name: value for name, value in step["params"].items() if value is not None}
    own = {f"train_{name}": params.pop(name) for name in _TRAINING}
    return own | {"seed": params.pop("seed"), "train_options": params}


_WRITERS = {
    "filter": _filter,
    "sample": _sample,
    "rewards": _rewards,
    "select": _select,
    "logprobs": _logprobs,
    "mix": _mix,
    "train": _train,
}


def rerun_folder(output: Path, manifest: Manifest) -> Path:
    """Where a rerun goes: a folder of its own, so that nothing of an earlier run is taken for made again."""
    return output / f"rerun-{manifest.fingerprint[:12]}"
