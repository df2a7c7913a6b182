"""The process that runs lm-eval: ``python -m kubealign_components.benchmark.harness FOLDER PARENT``.

It does one part of a benchmark and ends: two models are never in memory at once, and nothing else has lm-eval
and what that imports in its process. ``plan`` reads the tasks and their documents, without a model;
``measure`` runs one model on them and commits each task as it is finished.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import getsource
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubealign_components.benchmark.names import check_names
from kubealign_components.benchmark.paired import COMPARED
from kubealign_components.benchmark.records import (
    ENTRIES,
    JOB,
    REPORT,
    GroupMetric,
    HarnessJob,
    Measured,
    PlannedGroup,
    PlannedTask,
    SampleRecord,
    TaskRecord,
    commit,
    metric_key,
    read_record,
    stderr_key,
)
from kubealign_components.boundary import named, reported
from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.fingerprint import digest
from kubealign_components.error_reports import report_of
from kubealign_components.errors import ConfigError
from kubealign_components.progress import progress_bar
from kubealign_components.store import store_for
from kubealign_components.supervisor import end_with
from kubealign_components.whole_file import write_whole

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks.manager import TaskDict

log = logging.getLogger(__name__)

WHAT = "benchmark"
_RESAMPLES = 1000
"""Of lm-eval's bootstrap, for metrics that are no means."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plan(job: HarnessJob, folder: Path) -> dict[str, object]:
    """What is to be measured: the tasks with digests of what they are and ask, and the groups over them."""
    from kubealign_components.benchmark.task_index import entries_of, own_entries

    own = own_entries(job["task_folder"])
    check_names(job["tasks"], own)
    for model in job["models"] if job["apply_chat_template"] else ():
        _require_template(Path(model))
    entries = entries_of(job["tasks"], own)
    loaded = _load(job, entries)
    for name, task in loaded["tasks"].items():
        _require_allowed(name, task, allow_unsafe_code=job["allow_unsafe_code"])
    (folder / ENTRIES).write_bytes(pickle.dumps(entries))
    tasks = [_planned(name, task, job["limit"]) for name, task in loaded["tasks"].items()]
    return {"tasks": tasks, "groups": [_planned_group(group) for group in loaded.get("groups", {}).values()]}


def measure(job: HarnessJob, folder: Path) -> dict[str, object]:
    """Run one model on the tasks that have no record yet, and aggregate over groups; how many there were."""
    loaded = _load(job, pickle.loads((folder / ENTRIES).read_bytes()))
    records = job["records"]
    missing = [name for name, uri in records.items() if not store_for(uri).exists(uri)]
    model = _open_model(job) if missing else None
    with progress_bar(len(records), "tasks", WHAT) as bar:
        bar.update(len(records) - len(missing))
        for name in missing:
            assert model is not None
            record = _measured(model, name, loaded["tasks"][name], job)
            commit(records[name], record)
            bar.update(1)
    flat = {name: _as_lm_eval_has_it(read_record(uri)) for name, uri in records.items()}
    groups = {name: _metrics(group.aggregate(flat)) for name, group in loaded.get("groups", {}).items()}
    commit(job["groups_record"], groups)
    return {"measured": len(missing)}


_PARTS: Mapping[str, Callable[[HarnessJob, Path], dict[str, object]]] = {"plan": plan, "measure": measure}


def _load(job: HarnessJob, entries: Mapping[str, Any]) -> TaskDict:
    """The tasks that are asked for, with their documents."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    manager.task_index.update(entries)
    try:
        loaded = manager.load(list(job["tasks"]))
    except ConfigError:
        raise
    except Exception as error:  # readers of datasets, and code of tasks, raise anything
        raise _unreadable(error, job["tasks"]) from error
    for task in loaded["tasks"].values():
        _set_examples(task, job["num_fewshot"], job["seed"])
    return loaded


def _set_examples(task: Task, num_fewshot: int, seed: int) -> None:
    """As lm-eval's own command sets them: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot >= 0 and own != 0):
        task.set_config(key="num_fewshot", value=max(num_fewshot, 0))
    task.set_fewshot_seed(seed=seed)


def _unreadable(error: Exception, tasks: Sequence[str]) -> ConfigError:
    """What is said of a task that cannot be made: whose it is, and which data it wants."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError) and text.startswith("Duplicate task"):
        return ConfigError("tasks", ", ".join(tasks), f"tasks that do not hold each other ({text})")
    from lm_eval.api.task import Task

    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    task = next((owner for owner in frames if isinstance(owner, Task)), None)
    path = getattr(task, "DATASET_PATH", None)
    if task is None or path is None:
        return ConfigError("tasks", ", ".join(tasks), f"tasks that can be loaded ({text:.500})")
    subset = getattr(task, "DATASET_NAME", None)
    data = f"{path} ({subset})" if subset else path
    remedy = (
        "it is read by code of the dataset's own, which no release of datasets runs any more; take a task "
        "whose dataset is in Parquet"
        if "script" in text.lower()
        else "fetch it once where the hub can be reached, into the HF_HOME that this stage has, or name a "
        "task_folder with a task whose data_files lie beside it"
    )
    return ConfigError(
        "tasks", task.task_name, f"a task whose dataset {data} can be read here ({text:.500}); {remedy}"
    )


def _require_allowed(name: str, task: Task, *, allow_unsafe_code: bool) -> None:
    if getattr(task, "UNSAFE_CODE", False) and not allow_unsafe_code:
        raise ConfigError(
            "tasks",
            name,
            "a task that does not run what the model writes, or allow_unsafe_code, in a sandbox",
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError("tasks", name, "a task of text alone; this one shows the model images or sound")


def _require_template(model: Path) -> None:
    if not load_tokenizer(model).chat_template:
        raise ConfigError(
            "apply_chat_template",
            True,
            f"false: {model.name} has no chat template; save one with its tokenizer",
        )


def _planned(name: str, task: Task, limit: int) -> PlannedTask:
    config = task.config.to_dict(keep_callable=True)
    metadata = dict(config.pop("metadata", None) or {})
    metadata.pop("config_source", None)
    documents = task.eval_docs
    count = min(limit, len(documents)) if limit else len(documents)
    asked = list(islice(documents, count))
    examples = list(task.sampler.df) if config.get("num_fewshot") and hasattr(task, "sampler") else None
    content = json.dumps([config, metadata, asked, examples], sort_keys=True, default=described)
    return {
        "name": name,
        "version": str(task.VERSION),
        "digest": digest(content),
        "output_type": str(task.OUTPUT_TYPE),
        "num_fewshot": int(config.get("num_fewshot") or 0),
        "documents": count,
        "higher_is_better": dict(task.higher_is_better()),
        "aggregation": _aggregations(task),
    }


def described(value: object) -> object:
    """What is hashed of ``value``, which JSON does not have: a function's source, or else a text without an
    address, which would be another one in each process."""
    if isinstance(value, partial):
        return [described(value.func), value.args, value.keywords]
    try:
        return getsource(value)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return _ADDRESS.sub("", str(value))


def _aggregations(task: Task) -> dict[str, str]:
    """lm-eval's name of how each metric is aggregated; empty where it is none that is compared in pairs."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {AGGREGATION_REGISTRY[name]: name for name in COMPARED}
    return {metric: names.get(function, "") for metric, function in task.aggregation().items()}


def _planned_group(group: Any) -> PlannedGroup:
    metrics: list[GroupMetric] = [
        {"metric": one.metric, "weight_by_size": bool(one.weight_by_size)}
        for one in group.aggregate_metric_list or ()
    ]
    tasks = [task.task_name for task in group.get_all_tasks()]
    return {"name": group.name, "version": str(group.version), "tasks": tasks, "metrics": metrics}


def _open_model(job: HarnessJob) -> LM:
    model, settings = Path(job["models"][0]), job["model_settings"]
    if job["engine"] == "vllm":
        from kubealign_components.benchmark.models import open_vllm

        return open_vllm(model, **settings)
    from kubealign_components.benchmark.models import open_transformers

    return open_transformers(model, **settings)


def _measured(model: LM, name: str, task: Task, job: HarnessJob) -> TaskRecord:
    """What ``model`` does on one task, whichever were done before."""
    from lm_eval.evaluator import evaluate

    _seed(job["seed"])
    chat = job["apply_chat_template"]
    results: Any = evaluate(
        lm=model,
        task_dict={"tasks": {name: task}},
        limit=job["limit"] or None,
        bootstrap_iters=_RESAMPLES,
        system_instruction=job["system_instruction"] or None,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=job["allow_unsafe_code"],
    )
    numbers = results["results"][name]
    samples = [_sample(sample) for sample in results["samples"][name]]
    return {"metrics": _metrics(numbers), "samples": samples, "documents": int(numbers["sample_len"])}


def _sample(sample: Mapping[str, Any]) -> SampleRecord:
    return {
        "document": int(sample["doc_id"]),
        "filter": str(sample["filter"]),
        "content": json.dumps(sample["doc"], sort_keys=True, ensure_ascii=False, default=str),
        "target": sample["target"]
        if isinstance(sample["target"], str)
        else json.dumps(sample["target"], default=str),
        "responses": json.dumps(sample["resps"], ensure_ascii=False, default=str),
        "scores": json.loads(json.dumps({name: sample[name] for name in sample["metrics"]}, default=_plain)),
    }


def _plain(value: Any) -> object:
    """What JSON has in the place of a number of NumPy or torch."""
    return value.item() if hasattr(value, "item") else str(value)


def _number(value: object) -> float | None:
    """lm-eval says N/A where there is none; of a model that has diverged it may be no finite one."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _as_lm_eval_has_it(record: TaskRecord) -> dict[str, Any]:
    flat: dict[str, Any] = {"sample_len": record["documents"]}
    for one in record["metrics"]:
        value = math.nan if one["value"] is None else one["value"]
        flat[metric_key(one["metric"], one["filter"])] = value
        flat[stderr_key(one["metric"], one["filter"])] = "N/A" if one["stderr"] is None else one["stderr"]
    return flat


def _metrics(numbers: Mapping[str, Any]) -> list[Measured]:
    """The metrics among what lm-eval says of a task or group."""
    keys = [key.split(",", 1) for key in numbers if "," in key and "_stderr," not in key]
    return [
        {
            "metric": metric,
            "filter": name,
            "value": _number(numbers[metric_key(metric, name)]),
            "stderr": _number(numbers.get(stderr_key(metric, name))),
        }
        for metric, name in keys
    ]


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def work(folder: Path) -> int:
    """Do the job in ``folder``, and leave what came of it; the exit code."""
    job: HarnessJob = json.loads((folder / JOB).read_bytes())
    # One chunk of a bootstrap needs no pool, and a process with a model on a GPU cannot be forked.
    os.environ["DISABLE_MULTIPROC"] = "1"
    if job["allow_unsafe_code"]:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    code = 0
    try:
        report = _PARTS[job["part"]](job, folder)
    except Exception as error:  # the boundary of the process: whoever raised it
        code = reported(error, WHAT)
        report = {"error": report_of(named(error, WHAT))}
    write_whole(folder / REPORT, json.dumps(report))
    return code


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    sys.exit(work(Path(sys.argv[1])))
