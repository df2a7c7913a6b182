"""What the first task of a run does: the check of ``kubealign check``, with the values that the run has."""

from __future__ import annotations

import sys

from kubealign_components.config import from_mapping
from kubealign_components.data.leftovers import collect
from kubealign_components.json_types import JsonObject
from kubealign_pipelines.checking.findings import require_usable
from kubealign_pipelines.checking.outside import identify
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.first_check import OWN
from kubealign_pipelines.resources import CompileSettings


def check(parameters: JsonObject) -> str:
    """Check the parameters of a run, say what looks wrong, and raise on what is; then clear the work prefix
    of what the dead have left.

    Args:
        parameters: of the pipeline, and the component's own inputs beside them; None for one that the
            compiled graph does not have.

    Returns:
        what the run will find at the places that its parameters name.

    Raises:
        BadSettings: all that cannot be used.
    """
    pipeline, compiled, shape = (parameters[name] for name in OWN)
    settings = from_mapping(CompileSettings, compiled, "compile")
    values = {name: value for name, value in parameters.items() if name not in OWN and value is not None}
    report = check_run(pipeline, values, settings, shape=shape)
    for finding in report.findings:
        sys.stderr.write(f"{finding}\n")
    require_usable(report.findings)
    if work := values.get("work"):
        collect(str(work))
    identity = identify(report.checked)
    sys.stderr.write(f"check: {len(values)} parameters, no errors; data and models are {identity}\n")
    return identity
