"""Withdrawals at second 0: a stage that cannot read one would end hours into a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from kubealign_components.data.withdrawals import WITHDRAWN, read_withdrawal
from kubealign_components.errors import ConfigError
from kubealign_components.store import scheme_of
from kubealign_pipelines.checking.findings import Finding, error_at
from kubealign_pipelines.checking.reach import in_time, unserved
from kubealign_pipelines.checking.stages import LATER, Checked
from kubealign_pipelines.checking.volumes import is_below

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


def check_withdrawals(checked: Checked, *, readable: bool, unseen: Collection[str] = ()) -> Iterator[Finding]:
    """A finding for each setting that names a withdrawal which is none, or which pods cannot read.

    Args:
        checked: the settings.
        readable: whether the stages see what is seen here: on this machine, or in a pod of the run.
        unseen: folders that are not mounted here, but in pods of the run.
    """
    for stage in checked.stages:
        uri = getattr(stage.config, WITHDRAWN, "")
        if not uri or uri == LATER or is_below(uri, unseen):
            continue
        if expected := _problem(uri, readable=readable):
            yield error_at(stage.path((WITHDRAWN,)), uri, expected)


def without_unread(config: C) -> C:
    """``config`` of a stage that is tried, without a withdrawal that cannot be read on this machine."""
    uri = getattr(config, WITHDRAWN, "")
    unread = bool(uri) and (scheme_of(uri) != "file" or bool(_problem(uri, readable=True)))
    return replace(config, **{WITHDRAWN: ""}) if unread else config


def _problem(uri: str, *, readable: bool) -> str:
    if other := unserved(uri):
        return other
    if scheme_of(uri) == "file" and not readable:
        remote = "the gs://, s3:// or minio:// URI of a withdrawal, or a path on a volume of the pods"
        return f"{remote}: they do not see this machine's files"

    def ask() -> str:
        try:
            read_withdrawal(uri)
        except ConfigError as error:
            return error.expected
        return ""

    return in_time(ask) if scheme_of(uri) == "file" else ""
