"""What the process that runs lm-eval is told, and what it leaves, as JSON."""

from __future__ import annotations

import gzip
import json
from typing import Any, TypedDict

from kubealign_components.store import put, store_for

JOB, ENTRIES, REPORT = "job.json", "entries.pickle", "report.json"
"""Files of the process: what it is to do, the tasks as lm-eval finds them, and what came of it."""


class HarnessJob(TypedDict):
    """What one process is to do."""

    part: str
    """plan or measure."""
    tasks: list[str]
    """Names that were asked for."""
    task_folder: str
    """Path on this machine; empty for none."""
    models: list[str]
    """Model directories: those that are to be compared, or the one that is measured."""
    limit: int
    num_fewshot: int
    seed: int
    apply_chat_template: bool
    system_instruction: str
    allow_unsafe_code: bool
    engine: str
    model_settings: dict[str, Any]
    """Arguments of ``models.py``."""
    records: dict[str, str]
    """Where the result of each task is committed, by its name, in the order in which they are run."""
    groups_record: str
    """Where, after them, the metrics of the groups over them are."""


class PlannedTask(TypedDict):
    """A task, without a model."""

    name: str
    version: str
    digest: str
    """SHA-256 of its settings, the documents that are asked, and those that examples are drawn from."""
    output_type: str
    num_fewshot: int
    documents: int
    """How many are asked."""
    higher_is_better: dict[str, bool | None]
    """By metric; None where lm-eval does not know."""
    aggregation: dict[str, str]
    """lm-eval's name of each metric's aggregation, where it is one that is compared in pairs; else empty."""


class GroupMetric(TypedDict):
    """How a group aggregates a metric of its tasks."""

    metric: str
    weight_by_size: bool


class PlannedGroup(TypedDict):
    """A group of tasks."""

    name: str
    version: str
    tasks: list[str]
    metrics: list[GroupMetric]


class Measured(TypedDict):
    """A metric of one model on a task or group."""

    metric: str
    filter: str
    value: float | None
    stderr: float | None
    """None where lm-eval knows none."""


class SampleRecord(TypedDict):
    """What one model did with one document."""

    document: int
    """Its position."""
    filter: str
    content: str
    """The document as JSON."""
    target: str
    responses: str
    """JSON: for each request what the model gave, a text or log-likelihoods in nats."""
    scores: dict[str, Any]
    """By metric; a number where the metric is a mean of them."""


class TaskRecord(TypedDict):
    """What one model did on one task."""

    metrics: list[Measured]
    samples: list[SampleRecord]
    documents: int


def read_json(uri: str) -> Any:
    """What :func:`commit` left at ``uri``."""
    return json.loads(gzip.decompress(store_for(uri).read(uri)))


def read_record(uri: str) -> TaskRecord:
    """The record of a task at ``uri``."""
    record: TaskRecord = read_json(uri)
    return record


def commit(uri: str, content: object) -> None:
    """Write ``content`` to ``uri``, whole or not at all."""
    put(uri, gzip.compress(json.dumps(content).encode(), mtime=0))


def metric_key(metric: str, name_of_filter: str) -> str:
    """As lm-eval names a value."""
    return f"{metric},{name_of_filter}"


def stderr_key(metric: str, name_of_filter: str) -> str:
    """As lm-eval names a standard error."""
    return f"{metric}_stderr,{name_of_filter}"
