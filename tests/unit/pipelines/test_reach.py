"""What is asked of others costs no more than its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kubealign_components.named_paths import nearest

ASKING = """
import time
from kubealign_pipelines.checking import reach

reach.PATIENCE = 0.1
print(reach.in_time(lambda: "an answer"))
print(reach.in_time(lambda: 1 / 0))
print(reach.in_time(lambda: time.sleep(600)))
"""


def test_who_gives_no_answer_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["an answer", "division by zero", "no answer in 0.1 s"], done.stderr


def test_the_nearest_folder_is_found_for_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert nearest(tmp_path / "file") == tmp_path / "file"
    for missing in ("new", "new/below", "x" * 300, "file\0"):
        assert nearest(tmp_path / missing) == tmp_path
