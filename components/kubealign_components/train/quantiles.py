"""By which rule the quantile rewards of a training dataset were counted."""

from __future__ import annotations

from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import DataError
from kubealign_components.training.config import INCLUSIVE
from kubealign_components.training.regime import nearest_steps


def quantile_rule(dataset: Dataset) -> str:
    """How the quantile rewards of ``dataset`` were counted, from the nearest ``select`` of its recipe; the
    published rule where there is none.

    Raises:
        DataError: by several rules, so that one number means several things.
    """
    manifest = dataset.manifest
    steps = nearest_steps("select", manifest.fingerprint, manifest.recipe)
    rules = sorted({str(step["params"]["quantile"]) for step in steps}) or [INCLUSIVE]
    if len(rules) > 1:
        raise DataError(
            f"{dataset.uri}: its quantile rewards were counted by {' and '.join(rules)}; train with qrpo on "
            "selections of one rule"
        )
    return rules[0]
