"""What Kubeflow cannot carry to a pod as a parameter or a setting, whatever stages make of it.

Sources: Argo's templates (``util/template``), where ``{{`` begins a variable in every text of a Workflow, and
Linux (``MAX_ARG_STRLEN``), on which KFP's driver gets all parameters as one argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kubealign_components.config import Path
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, error_at

MOST = 120_000
"""Bytes of all parameters as JSON: an argument may have 131,072, and holds a little more than them."""
_VARIABLE = "text without {{, which Argo takes for the beginning of a variable"


def check_carried(values: Mapping[str, object]) -> Iterator[Finding]:
    """Findings on the parameters ``values``."""
    yield from check_texts((PARAMETERS,), values)
    sizes = {name: len(json.dumps(value, default=str)) for name, value in values.items()}
    if sum(sizes.values()) > MOST:
        largest = max(sizes, key=lambda name: sizes[name])
        expected = f"parameters of {MOST:,} bytes in all (this has {sizes[largest]:,}): put it into a file"
        yield error_at((PARAMETERS, largest), values[largest], expected)


def check_texts(path: Path, value: object) -> Iterator[Finding]:
    """Findings on texts in ``value``, which stands at ``path``."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from check_texts((*path, str(name)), item)
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from check_texts((*path, position), item)
    elif isinstance(value, str) and "{{" in value:
        yield error_at(path, value, _VARIABLE)
