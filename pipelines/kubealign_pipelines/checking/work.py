"""The work prefix at second 0: a run that cannot write there loses what it has computed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

from kubealign_components.errors import KubeAlignError
from kubealign_components.named_paths import FILE, kind_at, named_path, nearest
from kubealign_components.store import join, scheme_of, store_for
from kubealign_components.store.base import TEMPORARY
from kubealign_pipelines.checking.findings import PARAMETERS, Finding, error_at, warning_at
from kubealign_pipelines.checking.outside import WORK
from kubealign_pipelines.checking.reach import in_time, unserved
from kubealign_pipelines.checking.stages import LATER, Checked


def check_work(checked: Checked, *, here: bool) -> Iterator[Finding]:
    """A finding where the work prefix is none, or cannot be written on this machine.

    With a range of draws there has to be one: what was drawn first would be drawn once more, and an engine
    that gives other tokens in another batch would not give it again.

    Args:
        checked: the settings.
        here: whether the run is on this machine.
    """
    work = str(checked.values.get(WORK, LATER))
    if work != LATER and (expected := _problem(work, here=here)):
        yield error_at((PARAMETERS, WORK), work, expected)
    elif work != LATER and here and scheme_of(work) != "file":
        yield from _tried(work)
    elif not work and checked.of("draw_more"):
        uri = "a URI, with a range for sample_n: there further draws find the first ones of a prompt"
        yield error_at((PARAMETERS, WORK), work, uri)


def _tried(work: str) -> Iterator[Finding]:
    """A finding where an object cannot be written, read and removed below a prefix of another machine."""
    answer = in_time(lambda: (_refusal(work),))
    if isinstance(answer, str):
        yield warning_at((PARAMETERS, WORK), work, f"could not be tried from here ({answer})")
    elif answer[0]:
        yield error_at((PARAMETERS, WORK), work, f"a prefix that can be written here ({answer[0]})")


def _refusal(work: str) -> str:
    store, uri, said = store_for(work), join(work, f"{TEMPORARY}check-{uuid.uuid4().hex}"), b"kubealign check"
    try:
        store.publish(uri, said)
        read = store.read(uri)
        store.delete(uri)
    except KubeAlignError as error:
        return str(error)
    return "" if read == said else f"what was written to {uri} is read as other bytes"


def _problem(work: str, *, here: bool) -> str:
    expected = "a folder, or a gs://, s3:// or minio:// prefix, where finished rows are kept"
    if "\0" in work or (here and not work.strip()):
        return expected
    if other := unserved(work):
        return other
    if scheme_of(work) != "file":
        return "" if work.partition("://")[2].strip("/") else f"{expected}; this one names no bucket"
    if not here:
        return ""
    existing = nearest(named_path(work))
    if kind_at(existing) == FILE:
        return f"{expected}; {existing} is a file"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{expected}; {existing} cannot be written to"
