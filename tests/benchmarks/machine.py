"""What the machine can do, and what a way takes of it: matrix products, memory, a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

MATRIX = 2048

# Nothing but figures is printed; set before the libraries that read it are imported.
os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def device() -> str:
    """Where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def matmul_flops(dtype: torch.dtype, products: int = 8) -> Callable[[], float]:
    """A way that multiplies square matrices and gives the floating-point operations it did."""
    one, other = (torch.randn(MATRIX, MATRIX, device=device()).to(dtype) for _ in "ab")

    def multiply() -> float:
        for _ in range(products):
            result = one @ other
        float(result[0, 0])  # waits for the device
        return 2.0 * MATRIX**3 * products

    return multiply


def peak_of(run: Callable[[], Any]) -> int:
    """Most bytes that ``run`` held above what was held before it: device memory, or this process's own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """What ``script``, run with ``arguments``, prints as JSON in its last line."""
    command = [sys.executable, script, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def require_same(what: str, apart: float, limit: float, dtype: str) -> None:
    """Stop when peer and project did not compute the same in float32; bfloat16 rounds in its own ways."""
    if dtype == "float32" and not apart <= limit:
        raise SystemExit(
            f"{what} differ by {apart:.2g}, more than {limit:g}: not the same thing was measured"
        )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
