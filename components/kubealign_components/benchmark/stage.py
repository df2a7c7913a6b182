"""benchmark: standard benchmarks of both policies, and how far the aligned one has moved on each.

lm-eval (EleutherAI's Language Model Evaluation Harness) asks and scores; it runs in a process of its own,
one for each model, one after the other. Each task of each model is committed to the work prefix as it is
finished: a run that was stopped goes on with the next one, and a policy that many models are compared with is
measured once.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kubealign_components.benchmark.config import BenchmarkConfig
from kubealign_components.benchmark.gates import unmet
from kubealign_components.benchmark.process import run_harness
from kubealign_components.benchmark.records import (
    HarnessJob,
    Measured,
    PlannedGroup,
    PlannedTask,
    read_json,
    read_record,
)
from kubealign_components.benchmark.report import report_html
from kubealign_components.benchmark.results import BenchmarkComparison, BenchmarkResult
from kubealign_components.config import semantic_params
from kubealign_components.data.benchmark_rows import BENCHMARK
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.fingerprint import Provenance, derive, digest
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.models import ModelFiles, find_model, with_weights
from kubealign_components.data.origins import note_origin
from kubealign_components.data.stats import Stats
from kubealign_components.data.trained import trained_model
from kubealign_components.engines.dtypes import device_type, resolved_dtype
from kubealign_components.errors import ConfigError, EngineError, GateError
from kubealign_components.named_paths import FOLDER, kind_at, named_path
from kubealign_components.preemption import Stop, preemptible
from kubealign_components.reports.html import REPORT, copy_report, message_page, write_report
from kubealign_components.store import inside, join, name_below, scheme_of, store_for

log = logging.getLogger(__name__)

STAGE = "benchmark"
VERSION = 2


def run(
    config: BenchmarkConfig, *, model: str, output: str, report: str | None = None, model_uri: str = ""
) -> Stats:
    """Measure the policy at ``model`` and the one that it was made from on the tasks; write
    ``kubealign.benchmark/v1`` to ``output``.

    Args:
        config: the settings.
        model: directory or URI of the aligned model.
        output: URI of the dataset to make; the report lies beside its rows.
        report: path of a second copy of the report, for the Kubeflow UI.
        model_uri: what the manifest says of the model's place, where ``model`` is a copy of it.

    Raises:
        ConfigError: a task that there is not, whose documents cannot be read here, or that may not be run; a
            chat template that a model lacks.
        EngineError: lm-eval is not installed, or a model cannot be loaded.
        GateError: a metric does not keep to ``max_drop``; output and report are written before.
    """
    trained = trained_model(model, model_uri or model)
    if trained is not None and trained.ended_early:
        stats = pass_on("model", trained, stage=STAGE, version=VERSION, schema=BENCHMARK, output=output)
        write_report(message_page(trained.manifest.slug, trained.ended_early), output)
        copy_report(output, report)
        return stats
    _require_harness()
    policy = find_model(config.policy, config.revision, weights=False)
    aligned = find_model(model, weights=False)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kubealign-benchmark-")))
        stop = stack.enter_context(preemptible(STAGE))
        job = _job(config, [policy, aligned], _task_folder(config.task_folder, scratch / "tasks"))
        plan = run_harness(job, scratch, stop)
        tasks: list[PlannedTask] = plan["tasks"]
        provenance = _provenance(config, policy, aligned, tasks, trained)
        bench = _Benchmark(config, policy, aligned, tasks, plan["groups"], provenance, job, scratch)
        request = output_request(config, provenance, output, REPORT)
        stats = once(request, lambda: bench.make(output, stop))
    copy_report(output, report)
    _check_gate(config, output)
    return stats


def _check_gate(config: BenchmarkConfig, output: str) -> None:
    if not config.max_drop:
        return
    measured = Dataset.open(output, BENCHMARK).manifest.extra["results"]
    if reasons := unmet(config.max_drop, [BenchmarkResult(**one) for one in measured]):
        raise GateError(
            f"benchmarks do not keep to max_drop; the model is published, and all metrics are in "
            f"{join(output, REPORT)}. {'. '.join(reasons)}"
        )


@dataclass(frozen=True, slots=True)
class _Benchmark:
    """Two models and the tasks that they are measured on."""

    config: BenchmarkConfig
    policy: ModelFiles
    aligned: ModelFiles
    tasks: list[PlannedTask]
    groups: list[PlannedGroup]
    provenance: Provenance
    job: HarnessJob
    scratch: Path

    def make(self, output: str, stop: Stop) -> Stats:
        """Measure, compare and write."""
        reference, of_reference = self._measure(self.policy, stop)
        aligned, of_aligned = self._measure(self.aligned, stop)
        comparison = BenchmarkComparison(seed=self.config.seed, groups=self.groups, asked=self.config.tasks)
        stats = Stats()
        with DatasetWriter(output, BENCHMARK, self.provenance) as writer:
            for task in self.tasks:
                name = task["name"]
                rows = comparison.add(task, read_record(reference[name]), read_record(aligned[name]))
                writer.write_rows(rows)
                stats.rows_in += len(rows)
            for group in self.groups:
                name = group["name"]
                comparison.add_group(group, of_reference.get(name, []), of_aligned.get(name, []))
            stats.rows_out = writer.rows
            stats.counts["tasks"] = len(self.tasks)
            for result in comparison.results:
                stats.numbers |= result.numbers() if result.requested else {}
            writer.commit(stats, {"results": [asdict(result) for result in comparison.results]})
        page = report_html(
            comparison.results,
            config=self.config,
            model=self.aligned.name,
            reference=self.policy.name,
            release=version("lm-eval"),
        )
        write_report(page, output)
        return stats

    def _measure(self, model: ModelFiles, stop: Stop) -> tuple[dict[str, str], Mapping[str, list[Measured]]]:
        """Where the record of each task of ``model`` is, and its metrics by group."""
        work = join(_absolute(self.config.work or str(self.scratch)), STAGE)
        regime = {"model": model.identity(), "tokenizer": model.tokenizer_digest(), **_how(self.config)}
        records = {
            task["name"]: join(work, f"{digest({**regime, 'task': task['digest']})[:32]}.json.gz")
            for task in self.tasks
        }
        content = digest({**regime, "tasks": self.tasks, "groups": self.groups})
        of_groups = join(work, f"{content[:32]}.json.gz")
        if not all(store_for(uri).exists(uri) for uri in (*records.values(), of_groups)):
            job: HarnessJob = {
                **self.job,
                "part": "measure",
                "models": [str(with_weights(model).path)],
                "records": records,
                "groups_record": of_groups,
            }
            log.info("%s: %s", STAGE, model.name)
            run_harness(job, self.scratch, stop)
        groups: Mapping[str, list[Measured]] = read_json(of_groups)
        return records, groups


def _how(config: BenchmarkConfig) -> dict[str, object]:
    """All that a task's numbers depend on beside the task and the model."""
    return {
        "version": VERSION,
        "lm_eval": version("lm-eval"),
        "engine": config.engine,
        "dtype": resolved_dtype(config.dtype),
        "max_model_len": config.max_model_len,
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "apply_chat_template": config.apply_chat_template,
        "system_instruction": config.system_instruction,
        "seed": config.seed,
    }


def _provenance(
    config: BenchmarkConfig,
    policy: ModelFiles,
    aligned: ModelFiles,
    tasks: list[PlannedTask],
    trained: Dataset | None,
) -> Provenance:
    elsewhere = ("policy", "revision", "task_folder", "allow_unsafe_code")
    params = {name: value for name, value in semantic_params(config).items() if name not in elsewhere}
    measured = {task["name"]: {"version": task["version"], "digest": task["digest"]} for task in tasks}
    if config.task_folder:
        note_origin(digest(measured), config.task_folder)
    return derive(
        STAGE,
        VERSION,
        params | _how(config) | {"tasks": list(config.tasks), "measured": measured},
        inputs={} if trained is None else {"model": trained},
        models={
            "aligned": aligned.identity() | {"tokenizer": aligned.tokenizer_digest()},
            "policy": policy.identity() | {"tokenizer": policy.tokenizer_digest()},
        },
        slug=["benchmarked"],
    )


def _job(config: BenchmarkConfig, models: list[ModelFiles], folder: str) -> HarnessJob:
    settings: dict[str, Any] = {"dtype": resolved_dtype(config.dtype), "max_model_len": config.max_model_len}
    if config.engine == "vllm":
        settings |= {
            "seed": config.seed,
            "tensor_parallel_size": config.tensor_parallel_size,
            "memory_fraction": config.memory_fraction,
        }
    else:
        settings |= {"batch_size": config.batch_size, "device": device_type()}
    return {
        "part": "plan",
        "tasks": list(config.tasks),
        "task_folder": folder,
        "models": [str(model.path) for model in models],
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "seed": config.seed,
        "apply_chat_template": config.apply_chat_template,
        "system_instruction": config.system_instruction,
        "allow_unsafe_code": config.allow_unsafe_code,
        "engine": config.engine,
        "model_settings": settings,
        "records": {},
        "groups_record": "",
    }


def _task_folder(source: str, scratch: Path) -> str:
    """The folder ``source`` on this machine; an empty name of none.

    Raises:
        ConfigError: it is none, or holds nothing.
    """
    if not source:
        return ""
    if scheme_of(source) == "file":
        path = named_path(source)
        if kind_at(path) != FOLDER:
            raise ConfigError("task_folder", source, "a folder with tasks in lm-eval's YAML, or a URI of one")
        return str(path.resolve())
    store = store_for(source)
    for entry in store.list(source):
        target = inside(scratch, name_below(entry.uri, source))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(entry.uri))
    if not scratch.exists():
        raise ConfigError(
            "task_folder", source, "a URI below which tasks in lm-eval's YAML lie; nothing does"
        )
    return str(scratch)


def _absolute(work: str) -> str:
    """The work prefix, for a process in another folder."""
    return str(named_path(work).resolve()) if scheme_of(work) == "file" else work


def _require_harness() -> None:
    try:
        version("lm-eval")
    except PackageNotFoundError as error:
        raise EngineError(
            "lm-eval is not installed here; pip install 'kubealign[benchmark,models]', or run the stage in "
            "the image kubealign/sample, which has it"
        ) from error
