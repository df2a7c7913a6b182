"""What one variant of a sweep has of its own: by stage, options that count before all else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from kubealign_components.config import GROUPS, OPTIONS, from_parameters
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.errors import DataError

if TYPE_CHECKING:
    from kfp.dsl import Artifact

T = TypeVar("T")

VARIANT = "variant"
"""A component's argument that holds it."""


def from_variant(cls: type[T], parameters: Mapping[str, object], stage: str) -> T:
    """The config ``cls`` of ``stage`` from what its component was called with, a variant over all.

    Raises:
        ConfigError: as :func:`kubealign_components.config.from_parameters`.
    """
    own = _mapping(_mapping(parameters.get(VARIANT)).get(stage))
    options = options_over(cls, _mapping(parameters.get(OPTIONS)), own)
    return from_parameters(cls, {**parameters, OPTIONS: options}, stage)


def options_over(cls: type, base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """The options ``base`` of the config ``cls`` with those of ``own`` in their place, group by group."""
    groups = getattr(cls, GROUPS, {}).keys() & base.keys()
    joined = {
        name: {**_mapping(base[name]), **value} if name in groups and isinstance(value, Mapping) else value
        for name, value in own.items()
    }
    return {**base, **joined}


def name_variant(artifact: Artifact, variant: Mapping[str, object]) -> None:
    """Say in the metadata of ``artifact`` which ``variant`` it is of: nobody promises an order of what a loop
    makes, and what two variants make may be the same to the last byte."""
    if variant:
        artifact.metadata[VARIANT] = canonical_json(dict(variant))


def named_variants(artifacts: Sequence[Artifact]) -> list[dict[str, object]]:
    """What each variant has of its own that one of ``artifacts`` is of; one of them may have nothing.

    Raises:
        DataError: several do not say of which they are, and would be trained further as one that is none.
    """
    named: list[dict[str, object]] = [json.loads(one.metadata.get(VARIANT) or "{}") for one in artifacts]
    if (silent := named.count({})) > 1:
        raise DataError(
            f"{silent} of {len(named)} evaluations do not say in their metadata which variant they are of, "
            "expected all but one at most: what brought them here has lost it; run the sweep without halving"
        )
    return named


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
