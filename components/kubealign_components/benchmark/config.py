"""Settings of ``benchmark``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubealign_components.benchmark.names import check_names
from kubealign_components.config import execution, require, require_choice
from kubealign_components.engines.dtypes import DTYPES

ENGINES = ("transformers", "vllm")
AS_THE_TASK_SAYS = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """Settings of ``benchmark``."""

    policy: str
    """Model directory, URI or hub id of the policy that the aligned model was made from."""
    tasks: tuple[str, ...]
    """Names of tasks, groups or tags of lm-eval, such as arc_easy or mmlu, or of the task folder."""
    task_folder: str = ""
    """Folder or URI of tasks of one's own, as YAML of lm-eval; paths in ``data_files`` are looked up from it.
    Python functions that a task names there are run."""
    revision: str | None = None
    """Branch, tag or commit of the policy's hub id."""
    limit: int = 0
    """Most documents of each task, the first ones; 0 for all, which alone gives a task's own number."""
    num_fewshot: int = AS_THE_TASK_SAYS
    """Examples before each question; -1 for what each task says. A task that insists on none gets none."""
    apply_chat_template: bool = False
    """Whether the models read each question as a turn of a chat. Published numbers of base models are
    without, those of chat models often with it."""
    system_instruction: str = ""
    """What stands before each question, as the system's turn under a chat template."""
    engine: str = "transformers"
    """transformers, or vllm, which lm-eval takes on GPUs alone and is faster there."""
    dtype: str = "auto"
    """Of weights and activations: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32)."""
    max_model_len: int = 0
    """Most tokens that a model reads and writes together; 0 for what it was made for. Longer questions lose
    their beginning."""
    seed: int = 0
    """Of the choice of examples, and of tasks that sample."""
    allow_unsafe_code: bool = False
    """Whether tasks may be run that run what the models write, such as humaneval: do so in a sandbox only."""
    max_drop: Mapping[str, float] = field(default_factory=dict, metadata={"execution": True})
    """Fail the run, after model and pages are published, where a metric may have got worse by more than this:
    by the name of a task or group, for all of its metrics, or of one metric, such as arc_easy_acc. The whole
    95 % interval of the difference must keep to it, so a small margin takes many documents."""
    batch_size: int = execution(16)
    """Sequences that transformers reads at once."""
    tensor_parallel_size: int = execution(1)
    """GPUs that vLLM spreads a model over."""
    memory_fraction: float = execution(0.9)
    """Share of each GPU's memory that vLLM may take."""
    work: str = execution("")
    """Work prefix: tasks that were finished there before, with these settings on these models, are taken."""

    def __post_init__(self) -> None:
        require(bool(self.tasks), "tasks", self.tasks, "at least one name of a task, such as arc_easy")
        check_names(self.tasks, complete=not self.task_folder)
        require_choice("engine", self.engine, ENGINES)
        require_choice("dtype", self.dtype, DTYPES)
        require(self.limit >= 0, "limit", self.limit, "a number of documents, or 0 for all")
        shots = "a number of examples, or -1 for what each task says"
        require(self.num_fewshot >= AS_THE_TASK_SAYS, "num_fewshot", self.num_fewshot, shots)
        require(self.max_model_len >= 0, "max_model_len", self.max_model_len, "0 or a number of tokens")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        for name, most in self.max_drop.items():
            of_tasks = any(name == task or name.startswith(f"{task}_") for task in self.tasks)
            names = "the name of one of tasks, or of a metric of it, such as arc_easy_acc"
            require(of_tasks, "max_drop", name, names)
            require(most >= 0, f"max_drop[{name}]", most, "0 or more, in the units of the metric")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number of sequences")
        gpus = self.tensor_parallel_size
        require(gpus > 0, "tensor_parallel_size", gpus, "a positive number of GPUs")
        share = self.memory_fraction
        require(0 < share <= 1, "memory_fraction", share, "a share above 0 and up to 1")
