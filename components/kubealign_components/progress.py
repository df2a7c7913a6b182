"""Progress bars for long work: one line that updates on a terminal, a line a minute in a pod log."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, description: str) -> tqdm[Any]:
    """A bar over ``total`` units; call ``update(k)`` as work finishes, or use it as a context.

    ``KUBEALIGN_PROGRESS_SECONDS`` sets how often a bar that is not on a terminal is written.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=f" {unit}",
        desc=description,
        mininterval=0.5 if interactive else float(os.environ.get("KUBEALIGN_PROGRESS_SECONDS", "30")),
        dynamic_ncols=interactive,
    )
