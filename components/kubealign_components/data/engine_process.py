"""One engine process of a pod: ``python -m kubealign_components.data.engine_process FOLDER PARENT``."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from kubealign_components.boundary import named, reported
from kubealign_components.data.engine_processes import JOB, REPORT
from kubealign_components.error_reports import report_of
from kubealign_components.supervisor import end_with
from kubealign_components.whole_file import write_whole


def work(folder: Path) -> int:
    """Finish the results that the job in ``folder`` is about, and leave what came of it; the exit code."""
    run, config, share = pickle.loads((folder / JOB).read_bytes())
    code = 0
    try:
        report: dict[str, object] = {"reused_rows": run(config, chunk=share).reused_rows}
    except Exception as error:  # the boundary of the process: whoever raised it
        what = f"engine process {share.number + 1}"
        code = reported(error, what)
        report = {"error": report_of(named(error, what))}
    write_whole(folder / REPORT, json.dumps(report))
    return code


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    sys.exit(work(Path(sys.argv[1])))
