"""The check of a run file: what the stages say, and what only this machine and the estimate know."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kubealign.estimate.formulas import GIB
from kubealign.runfile import RunFile, Sourced
from kubealign_components.errors import KubeAlignError
from kubealign_components.named_paths import nearest
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, distinct, require_usable, warning_at
from kubealign_pipelines.checking.models import policy_folder
from kubealign_pipelines.checking.run import Report, check_run
from kubealign_pipelines.checking.stages import Checked

log = logging.getLogger(__name__)

MIB = 2**20
DISK_FACTOR = 3
"""Bytes that a run leaves for each byte of the policy's weights: a model in float32, and a checkpoint."""


def check(
    sourced: Sourced, *, complete: bool = True, here: bool = False, output: Path | None = None
) -> Report:
    """Everything that can be known of a run before it starts, with the place of each finding.

    Args:
        sourced: the run file, of which pipeline and parameters can be used.
        complete: whether required parameters must be there.
        here: whether the run is on this machine.
        output: the folder that it will write to.
    """
    run = sourced.run
    assert run is not None
    report = _looked_at(run, complete=complete, here=here, output=output)
    findings = report.findings
    if not report.errors and not sourced.document.findings:
        checked = report.checked
        findings += _disk(run, checked, output or Path.cwd()) if here else _memory(run, report)
    return replace(report, findings=distinct(sourced.located(findings)), given=dict(run.parameters))


def require_runnable(run: RunFile, output: Path) -> None:
    """Raise :class:`BadSettings` where a run on this machine is certain to fail; log what may be wrong.

    Args:
        run: what is to run here.
        output: the folder that it will write to.
    """
    report = _looked_at(run, complete=True, here=True, output=output)
    require_usable(report.findings)
    for finding in (*report.findings, *_disk(run, report.checked, output)):
        log.warning("%s", finding)


def _looked_at(run: RunFile, *, complete: bool, here: bool, output: Path | None) -> Report:
    # A run on this machine keeps its work beside its folder unless told otherwise.
    own = {"work": str((output or Path.cwd()).absolute() / "work")} if here else {}
    report = check_run(
        run.pipeline,
        run.parameters,
        run.compile,
        complete=complete,
        here=here,
        process=here and run.local.runner == "process",
        assumed=own,
    )
    # Where the run's own folder cannot be made, that is told by its name when the run begins.
    shown = not here or "work" in run.parameters
    return replace(report, findings=[f for f in report.findings if shown or f.path != (PARAMETERS, "work")])


def _memory(run: RunFile, report: Report) -> Iterator[Finding]:
    """Warnings on stages that do not fit into a GPU of 80 GiB, where the policy's shape can be read."""
    policy = str(run.parameters.get("policy", ""))
    folder = policy_folder(report.checked, policy)
    if folder is None:
        return
    from kubealign.estimate.stages import Assumptions, estimate, shape_from_config

    try:
        assumed = Assumptions()
        stages = estimate(run, shape_from_config(folder.config), assumed, report.graph)
    except (KubeAlignError, KeyError, TypeError):
        return
    for stage in stages:
        if not stage.fits:
            text = (
                f"{stage.title} needs {stage.memory.total / GIB:.0f} GiB a GPU by the estimate, more than "
                f"{assumed.gpu_memory:g}; see kubealign estimate"
            )
            yield warning_at((PARAMETERS, "policy"), policy, text)


def _disk(run: RunFile, checked: Checked, output: Path) -> Iterator[Finding]:
    """A warning where the disk has no room for what the run leaves."""
    policy = str(run.parameters.get("policy", ""))
    folder = policy_folder(checked, policy)
    if folder is None:
        return
    weights = folder.weight_bytes
    existing = nearest(output)
    free = shutil.disk_usage(existing).free
    if free < DISK_FACTOR * weights:
        text = f"{free / MIB:,.0f} MiB are free in {existing}; a run of this policy leaves about "
        yield warning_at((PARAMETERS, "policy"), policy, f"{text}{DISK_FACTOR * weights / MIB:,.0f} MiB")
