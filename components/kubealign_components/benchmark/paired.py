"""The difference between two models on the same documents, and its standard error.

Both answer the same documents, so what counts is the spread of the differences: of two models that are alike
on most documents it is far less than the standard errors of each would make it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RESAMPLES = 2000
_AT_ONCE = 2**22
"""Weights of resampled documents that are in memory together."""


def _perplexity(sums: Floats, counts: Floats) -> Floats:
    return np.exp(-sums[..., 0] / counts)


def _weighted_perplexity(sums: Floats, counts: Floats) -> Floats:  # noqa: ARG001
    return np.exp(-sums[..., 0] / sums[..., 1])


def _bits_per_byte(sums: Floats, counts: Floats) -> Floats:  # noqa: ARG001
    return -sums[..., 0] / sums[..., 1] / math.log(2)


_OF_SUMS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "perplexity": _perplexity,
    "weighted_perplexity": _weighted_perplexity,
    "bits_per_byte": _bits_per_byte,
}
"""Aggregations by lm-eval's names: of sums over documents, shape (..., parts), and their number, (...,)."""
MEAN = "mean"
COMPARED = (MEAN, *_OF_SUMS)
"""lm-eval's names of the aggregations that have a paired difference."""


def paired_error(
    aggregation: str, reference: Sequence[Any], aligned: Sequence[Any], *, seed: int
) -> float | None:
    """Standard error of the aligned model's value minus the reference's.

    Of a mean it is that of the differences, s / √n; of a perplexity that of a bootstrap over documents.

    Args:
        aggregation: lm-eval's name of it.
        reference: what lm-eval aggregates, of each document; a number, or a sum and its weight.
        aligned: of the same documents.
        seed: of the bootstrap.

    Returns:
        None where there are fewer than two documents, the aggregation is another one, or numbers are not
        finite, as those of a model that has diverged.
    """
    if len(reference) < 2 or len(reference) != len(aligned):
        return None
    if aggregation == MEAN:
        differences = np.asarray(aligned, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
        error = float(differences.std(ddof=1) / math.sqrt(len(differences)))
    elif aggregation in _OF_SUMS:
        error = _bootstrapped(_OF_SUMS[aggregation], _parts(reference), _parts(aligned), seed)
    else:
        return None
    return error if math.isfinite(error) else None


def _parts(values: Sequence[Any]) -> Floats:
    """Shape (documents, parts)."""
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _bootstrapped(
    of_sums: Callable[[Floats, Floats], Floats], reference: Floats, aligned: Floats, seed: int
) -> float:
    count = len(reference)
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    differences: list[Floats] = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, _RESAMPLES, step):
        size = min(step, _RESAMPLES - start)
        weights = generator.multinomial(count, shares, size=size).astype(np.float64)
        counts = np.full(size, float(count))
        differences.append(of_sums(weights @ aligned, counts) - of_sums(weights @ reference, counts))
    return float(np.concatenate(differences).std(ddof=1))
