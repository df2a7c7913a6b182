"""Withdrawals at second 0: a stage that cannot read one would end hours into a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from kubealign_components.data.withdrawals import WITHDRAWN, read_withdrawal
from kubealign_components.errors import ConfigError
from kubealign_components.store import scheme_of
from kubealign_pipelines.checking.findings import Finding, error_at
from kubealign_pipelines.checking.reach import in_time, unserved
from kubealign_pipelines.checking.stages import LATER, Checked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


def check_withdrawals(checked: Checked, *, here: bool, mounted: tuple[str, ...] = ()) -> Iterator[Finding]:
    """A finding for each setting that names a withdrawal which is none, or which pods cannot read.

    Args:
        checked: the settings.
        here: whether the run is on this machine.
        mounted: folders that only the pods see.
    """
    for stage in checked.stages:
        uri = getattr(stage.config, WITHDRAWN, "")
        if not uri or uri == LATER or uri.startswith(mounted or ("\0",)):
            continue
        if expected := _problem(uri, here=here):
            yield error_at(stage.path((WITHDRAWN,)), uri, expected)


def without_unread(config: C) -> C:
    """``config`` of a stage that is tried, without a withdrawal that cannot be read on this machine."""
    uri = getattr(config, WITHDRAWN, "")
    unread = bool(uri) and (scheme_of(uri) != "file" or bool(_problem(uri, here=True)))
    return replace(config, **{WITHDRAWN: ""}) if unread else config


def _problem(uri: str, *, here: bool) -> str:
    if other := unserved(uri):
        return other
    if scheme_of(uri) == "file" and not here:
        return "the gs://, s3:// or minio:// URI of a withdrawal: pods do not see this machine's files"

    def ask() -> str:
        try:
            read_withdrawal(uri)
        except ConfigError as error:
            return error.expected
        return ""

    return in_time(ask) if scheme_of(uri) == "file" else ""
