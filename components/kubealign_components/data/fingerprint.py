"""What a dataset is made of: the recipe, its fingerprint and its readable slug.

A *step* names a stage, its version, its semantic settings, the models it used and the fingerprints
of its inputs. Its fingerprint is the SHA-256 of its canonical JSON, so a fingerprint pins every
step before it. A *recipe* is the map from fingerprint to step of a dataset and all its ancestors:
one manifest tells the whole story, also when the ancestors are gone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from kubealign_components.data.origins import Origin, origin_of
from kubealign_components.errors import CorruptDataset
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset


class Step(TypedDict):
    """One stage's part in a dataset, as its fingerprint is made of it."""

    stage: str
    version: int
    params: JsonObject
    models: JsonObject
    inputs: dict[str, str]


Recipe = dict[str, Step]


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def source_json(value: object) -> str:
    """JSON as :func:`canonical_json`, keys in the order of ``value``: for what is kept, not hashed."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where rows come from: everything of a manifest that is known before the rows are made."""

    fingerprint: str
    """SHA-256 of the last step."""
    recipe: Recipe
    """Every step that led here, by fingerprint."""
    slug: str
    """Readable name that grows stage by stage."""
    parents: tuple[dict[str, str], ...] = ()
    """The inputs: name, URI, fingerprint and schema."""
    identity: dict[str, str] = field(default_factory=dict)
    """Digests of the policy, tokenizer and template that the token ids belong to."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Of every step that led here, by fingerprint: where models and sources lay, and what it ran with."""
    ended_early: str = ""
    """Why there are no rows, where a stage ended before it made any (:mod:`.early_end`)."""

    @property
    def step(self) -> Step:
        """The last step."""
        return self.recipe[self.fingerprint]

    @property
    def work_key(self) -> str:
        """Digest of the last step without its inputs: what one row's result depends on beside the row."""
        return self.results_key(())

    def results_key(self, unread: Collection[str]) -> str:
        """:attr:`work_key` without the settings ``unread``, which results do not depend on; ``a.b`` is
        setting ``b`` of group ``a``."""
        step = {k: v for k, v in self.step.items() if k != "inputs"}
        return digest(step | {"params": _without(self.step["params"], unread)})


def derive(
    stage: str,
    version: int,
    params: Mapping[str, object],
    *,
    inputs: Mapping[str, Dataset] | None = None,
    models: Mapping[str, object] | None = None,
    identity: Mapping[str, str] | None = None,
    settled: Collection[str] = (),
    slug: Sequence[str] = (),
) -> Provenance:
    """Provenance of what ``stage`` makes from ``inputs``.

    Args:
        stage: the stage's name.
        version: raised whenever the stage's rows change for the same settings.
        params: semantic settings, see :func:`kubealign_components.config.semantic_params`.
        inputs: the input datasets by role.
        models: identities of models, tokenizers, templates and reward functions by role.
        identity: digests that rows of a dataset must share (policy, tokenizer, template).
        settled: names of digests in which inputs may differ: ``identity`` alone says what they are.
        slug: words to append to the slug of the first input.

    Raises:
        CorruptDataset: two inputs carry different identities.
    """
    inputs = inputs or {}
    step: Step = {
        "stage": stage,
        "version": version,
        "params": dict(params),
        "models": dict(models or {}),
        "inputs": {name: dataset.manifest.fingerprint for name, dataset in inputs.items()},
    }
    fingerprint = digest(step)
    recipe: Recipe = {}
    origins = {fingerprint: origin_of(_named(step))}
    merged = dict(identity or {})
    for dataset in inputs.values():
        recipe.update(dataset.manifest.recipe)
        origins = dataset.manifest.origins | origins
        theirs = {name: value for name, value in dataset.manifest.identity.items() if name not in settled}
        merged = _agree(merged, theirs, dataset.uri)
    recipe[fingerprint] = json.loads(canonical_json(step))
    first = [next(iter(inputs.values())).manifest.slug] if inputs else []
    return Provenance(
        fingerprint=fingerprint,
        recipe=recipe,
        slug="-".join(filter(None, [*first, *map(slug_word, slug)])),
        parents=tuple(
            {"name": n, "uri": d.uri, "fingerprint": d.manifest.fingerprint, "schema": d.manifest.schema}
            for n, d in inputs.items()
        ),
        identity=merged,
        origins=origins,
    )


def check_recipe(fingerprint: str, recipe: Recipe, where: str) -> None:
    """Raise :class:`CorruptDataset` unless every fingerprint of ``recipe`` is that of its step."""
    if fingerprint not in recipe:
        raise CorruptDataset(f"{where}: the recipe has no step {fingerprint[:12]}, its own fingerprint")
    for name, step in recipe.items():
        actual = digest(step)
        if actual != name:
            raise CorruptDataset(
                f"{where}: step {step.get('stage')!r} is filed under {name[:12]} but its content has "
                f"fingerprint {actual[:12]}; the manifest was edited, make the dataset again"
            )


def slug_word(text: str) -> str:
    """``text`` reduced to what is safe in a file name and a label: lower case, digits, dots, underscores."""
    return re.sub(r"[^a-z0-9._]+", "_", text.lower()).strip("_.")


def _without(params: Mapping[str, object], names: Collection[str], group: str = "") -> dict[str, object]:
    return {
        name: _without(value, names, f"{group}{name}.") if isinstance(value, Mapping) else value
        for name, value in params.items()
        if f"{group}{name}" not in names
    }


def _named(value: object) -> Iterator[str]:
    """Every text in ``value``, which may be a digest, and the digest of every text, list and mapping: what a
    step holds whole, such as the text of a template, came from somewhere, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _named(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _named(member)
    else:
        return
    yield digest(value)


def _agree(ours: dict[str, str], theirs: Mapping[str, str], uri: str) -> dict[str, str]:
    for name, value in theirs.items():
        if ours.setdefault(name, value) != value:
            raise CorruptDataset(
                f"{uri}: its {name} has digest {value[:12]}, the other inputs have {ours[name][:12]}; "
                "rows of different models, tokenizers or templates cannot be used together"
            )
    return ours
