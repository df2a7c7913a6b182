"""The rows of a benchmark."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

BENCHMARK = "kubealign.benchmark/v1"
"""One row a document of a task (and filter): what both policies gave, and their scores (``benchmark``)."""

_SCORE = pa.struct(
    [
        ("metric", pa.string()),
        ("reference", pa.float64()),  # null where the metric is no mean over documents
        ("aligned", pa.float64()),
    ]
)
BENCHMARK_ROW = pa.schema(
    [
        ("task", pa.string()),
        ("filter", pa.string()),  # lm-eval's name of how an answer is taken from a response
        ("document", pa.int64()),  # its position in the task
        ("content", pa.string()),  # the document, as JSON
        ("target", pa.string()),
        ("scores", pa.list_(_SCORE)),
        ("reference", pa.string()),  # JSON: for each request a text, or log-likelihoods in nats
        ("aligned", pa.string()),
    ]
)


class Score(TypedDict):
    """What both policies got for one document."""

    metric: str
    reference: float | None
    aligned: float | None


class BenchmarkRow(TypedDict):
    """A row of :data:`BENCHMARK`."""

    task: str
    filter: str
    document: int
    content: str
    target: str
    scores: list[Score]
    reference: str
    aligned: str
