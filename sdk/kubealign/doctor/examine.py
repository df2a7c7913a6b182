"""All checks of a cluster, one after the other, and the report that they make."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from kubealign.doctor.capacity import check_nodes, check_queue, check_quotas
from kubealign.doctor.diagnosis import CheckState, Diagnosis, Subject, unknown
from kubealign.doctor.permissions import check_permissions
from kubealign.doctor.pods import check_admission, check_images, check_pod_security, check_volumes
from kubealign.doctor.store import check_store
from kubealign.doctor.versions import check_retries, check_versions
from kubealign.errors import ClusterError
from kubealign_components import __version__

CHECKS: tuple[Callable[[Subject], Iterator[Diagnosis]], ...] = (
    check_versions,
    check_retries,
    check_store,
    check_permissions,
    check_pod_security,
    check_admission,
    check_volumes,
    check_images,
    check_queue,
    check_quotas,
    check_nodes,
)


def examine(subject: Subject) -> Iterator[Diagnosis]:
    """What each check finds; one that may not look says so."""
    for check in CHECKS:
        try:
            yield from check(subject)
        except ClusterError as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield unknown(name, str(error), "run this as someone who may read it")


def report_json(subject: Subject, findings: Sequence[Diagnosis]) -> dict[str, object]:
    """Everything that an issue about this cluster needs, without a secret's content."""
    return {
        "kubealign": __version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "pipeline": subject.run.pipeline,
        "installation": subject.run.compile.installation,
        "namespace": subject.namespace,
        "service_account": subject.account,
        "problems": sum(finding.state is CheckState.PROBLEM for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def report_lines(findings: Sequence[Diagnosis]) -> Iterator[str]:
    """A line for each finding, and one below it with what to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        yield f"{finding.state:<8} {finding.check:<{width}}  {finding.fact}"
        if finding.remedy:
            yield f"{'':<8} {'':<{width}}  → {finding.remedy}"
