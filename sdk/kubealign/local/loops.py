"""A fault of kfp's local runner mended: what a loop takes from other tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def loop_inputs_kept() -> Iterator[None]:
    """In this block each iteration of a loop gets what the loop takes from other tasks.

    kfp 2.17 puts the loop's item in the place of every input that is another task's output: a worker gets
    its chunk for the name of its model.
    """
    from kfp.local.orchestrator import task_spec_utils

    before = task_spec_utils.create_parameter_loop_iteration_task_spec

    def kept(task: Any, item: Any, name: str) -> Any:
        made = before(task, item, name)
        for key, value in task.inputs.parameters.items():
            if value.HasField("task_output_parameter"):
                made.inputs.parameters[key].CopyFrom(value)
        return made

    task_spec_utils.create_parameter_loop_iteration_task_spec = kept
    try:
        yield
    finally:
        task_spec_utils.create_parameter_loop_iteration_task_spec = before
