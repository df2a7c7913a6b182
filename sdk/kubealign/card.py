"""Cards of models and datasets in the form of the Hugging Face hub: written from the manifest alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple

import yaml

from kubealign.cli.console import number_texts
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.hub_licenses import card_head
from kubealign_components.data.licenses import licensed, licenses
from kubealign_components.data.lineage import LineageStep, describe, steps_of
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import MODEL, ROWS
from kubealign_components.errors import ConfigError

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:@/])")
_SOURCES = ("sources", "pmp_sources", "rl_sources")


def card(dataset: Dataset, evaluation: Mapping[str, float] | None = None) -> str:
    """Markdown with a header in YAML, for ``README.md`` beside what it describes.

    Args:
        dataset: a dataset, or a model, which is told with its base model and training.
        evaluation: numbers of the model's comparison with its reference.
    """
    manifest = dataset.manifest
    if any(shard.deleted for shard in manifest.shards):
        without = "a dataset whose files have no deleted rows: `kubealign export --format parquet` writes one"
        raise ConfigError("dataset", dataset.uri, without)
    steps = steps_of(manifest.fingerprint, manifest.recipe)
    is_model = manifest.schema == MODEL
    head = card_head(licenses(manifest))
    head |= _model_head(manifest, steps, evaluation or {}) if is_model else _data_head()
    parts = [f"# {plain(manifest.slug or manifest.fingerprint[:12])}", _what(manifest)]
    if evaluation:
        parts += ["## Evaluation", _table(("number", "value"), _numbers(evaluation))]
    if not is_model:
        parts += ["## Columns", _table(("column", "type"), _columns(manifest.schema))]
        parts += ["## Dropped", _table(("reason", "rows"), manifest.stats["dropped"].items())]
    parts += ["## Sources", _table(("source", "content", "where it lay"), _sources(manifest, steps))]
    went_in = (astuple(one) for one in licensed(manifest))
    parts += ["## Licences of what went in", _table(("kind", "name", "licence"), went_in)]
    for step in steps:
        parts += [f"## Step: {plain(step.stage)}", _table(("setting", "value"), _settings(step))]
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(parts) + "\n"
    )


def plain(text: object) -> str:
    """``text`` on one line, as Markdown that shows it and does nothing else."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _what(manifest: Manifest) -> str:
    rows = "" if manifest.schema == MODEL else f", {manifest.rows} rows"
    stage = plain(manifest.provenance.step["stage"])
    return (
        f"Made by KubeAlign's stage {stage} ({plain(manifest.schema)}{rows}). "
        f"Fingerprint: {manifest.fingerprint}. The manifest beside this card has the digests of all files; "
        "kubealign verify recomputes them."
    )


def _model_head(
    manifest: Manifest, steps: Sequence[LineageStep], numbers: Mapping[str, float]
) -> dict[str, object]:
    own = manifest.provenance.step
    head: dict[str, object] = {"library_name": "transformers", "tags": ["kubealign", *_tags(own["params"])]}
    base = manifest.origin_of(_digest_of(own["models"].get("policy")))
    if "revision" in base:
        head["base_model"] = base["uri"]
    hub = [
        where for _, content, where in _sources(manifest, steps) if "revision" in manifest.origin_of(content)
    ]
    if hub:
        head["datasets"] = list(dict.fromkeys(hub))
    if numbers:
        metrics = [{"type": name, "value": float(value)} for name, value in numbers.items()]
        result = {"task": {"type": "text-generation"}, "metrics": metrics}
        result["dataset"] = {"name": "held-out prompts of the training data", "type": "held-out"}
        head["model-index"] = [{"name": manifest.slug, "results": [result]}]
    return head


def _data_head() -> dict[str, object]:
    return {"tags": ["kubealign"], "configs": [{"config_name": "default", "data_files": "*.parquet"}]}


def _tags(params: Mapping[str, object]) -> Iterator[str]:
    if "objective" in params:
        yield str(params["objective"])


def _sources(manifest: Manifest, steps: Sequence[LineageStep]) -> list[tuple[str, str, str]]:
    """Name, digest of the content or commit, and where it lay, of every source."""
    rows = []
    for step in steps:
        for name in _SOURCES:
            for source in step.params.get(name, []):
                content = source.get("content", {})
                word = str(content.get("sha256") or content.get("commit") or "")
                rows.append((str(source.get("name", "")), word, manifest.origin_of(word).get("uri", "")))
    return rows


def _digest_of(model: object) -> str:
    return str(model.get("digest", "")) if isinstance(model, Mapping) else ""


def _numbers(numbers: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for name, text in number_texts(numbers).items():
        yield name.replace("_", " "), text


def _columns(schema: str) -> Iterator[tuple[str, str]]:
    for column in ROWS[schema]:
        yield column.name, str(column.type)


def _settings(step: LineageStep) -> list[tuple[str, str]]:
    settings = {name: value for name, value in step.params.items() if name not in _SOURCES}
    return [*describe(settings), *describe(step.models)]


def _table(head: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(plain, row))} |" for row in rows]
    return "\n".join(lines) if len(lines) > 2 else "None."
