"""Finished outputs in a work prefix: a stage that is to make what was made before takes it instead.

``finished/<stage>/<key>/`` below the work prefix holds records, one for each place where this very output
stands; nothing is kept there a second time. The key says all that the output depends on. Who takes an output
holds every byte of it to its manifest first, weights in a store by the versions that their digests were
recorded with; a record of something that is damaged, gone or another thing is removed, and the output is made
again. Local files get a second name, objects are copied by their store.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kubealign_components.config import gates_of
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, digest
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.data.origins import USE_OF_PODS
from kubealign_components.data.shards import copy_object, digest_at
from kubealign_components.data.stats import Stats
from kubealign_components.data.weight_records import copy_record, objects_below, recorded_weights
from kubealign_components.errors import CorruptDataset, NotFound, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.named_paths import named_path
from kubealign_components.store import inside, join, put, scheme_of, store_for

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class WorkConfig(DataclassInstance, Protocol):
        """Settings of a stage with a work prefix."""

        @property
        def work(self) -> str:
            """URI of the work prefix; empty for none."""


log = logging.getLogger(__name__)

FINISHED = "finished"
"""Folder of the records below a work prefix."""
FILES = "files"
"""What a model's manifest calls the digests of its files."""
_REQUEST = "request"
"""What a manifest calls the key under which its output was asked for, where that is no fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputRequest:
    """An output that may be finished already."""

    work: str
    """URI of the work prefix; empty where nothing is to be taken or recorded."""
    stage: str
    key: str
    """SHA-256 of all that the output depends on, and of what may fail the stage."""
    output: str
    """URI of the dataset or model to make."""
    provenance: Provenance | None = None
    """Of the output; None where it is known only when the sources have been read."""
    pages: tuple[str, ...] = ()
    """Names of the files that the stage writes beside its rows."""
    key_now: Callable[[], str] | None = None
    """Gives the key as it is by now, where what it was made of can change while the stage reads it."""

    @property
    def folder(self) -> str:
        """Where its records lie."""
        return join(self.work, FINISHED, self.stage, self.key[:32])

    @property
    def note(self) -> dict[str, str]:
        """What the manifest must say, or else nobody can tell that it is this output."""
        return {_REQUEST: self.key} if self.work and self.provenance is None else {}

    def fits(self, manifest: Manifest) -> bool:
        """Whether ``manifest`` is that of this output."""
        if self.provenance is not None:
            right = manifest.fingerprint == self.provenance.fingerprint
        else:
            right = manifest.extra.get(_REQUEST) == self.key
        return right and manifest.provenance.step["stage"] == self.stage

    def check(self, manifest: Manifest) -> None:
        """Raise :class:`CorruptDataset` unless ``manifest`` is that of this output."""
        if not self.fits(manifest):
            raise CorruptDataset(f"it is another one, {manifest.slug!r} ({manifest.fingerprint[:12]})")


def output_request(
    config: WorkConfig,
    provenance: Provenance,
    output: str,
    *pages: str,
    checked: object = None,
) -> OutputRequest:
    """What a stage with the settings ``config`` is to make, where its provenance is known beforehand.

    Args:
        config: the settings.
        provenance: of the output.
        output: URI of the dataset or model to make.
        pages: names of the files that the stage writes beside its rows.
        checked: what the stage looks at before it goes on, though no row depends on it.
    """
    return OutputRequest(
        work=config.work,
        stage=provenance.step["stage"],
        key=digest([provenance.fingerprint, gates_of(config), checked]),
        output=output,
        provenance=provenance,
        pages=pages,
    )


def once(
    request: OutputRequest, make: Callable[[], Stats], less: Callable[[], Stats | None] = lambda: None
) -> Stats:
    """Give ``request.output`` what was finished before, or else let ``make`` make it; the counts.

    Args:
        request: for the output.
        make: makes it.
        less: makes it of what was finished for more rows; None where it cannot.

    Raises:
        KubeAlignError: what ``make`` raises; nothing is recorded then.
    """
    made = take_finished(request)
    if made is None:
        made = less() or make()
        record_finished(request)
    return made


def take_finished(request: OutputRequest) -> Stats | None:
    """Bring what was finished before to ``request.output``; its counts, None where there is none."""
    if not request.work:
        return None
    for record in list(_records(request)):
        made = _taken(request, *record)
        if made is not None:
            _record(request)
            return Stats.from_json(made.manifest.stats)
    return None


def finished_elsewhere(request: OutputRequest) -> Dataset | None:
    """What was finished before for ``request``, whole, where it stands, or as the shards have it of a dataset
    of which rows are deleted; None where there is none."""
    beneath: Dataset | None = None
    for record, content in list(_records(request)) if request.work else ():
        origin = recorded_output(record, content["output"])
        try:
            made = Dataset.open(origin, allow_empty=True)
            made.check_sizes()
            if (undeleted := _undeleted(request, made)) is not None:
                beneath = undeleted
                continue
            request.check(made.manifest)
        except (NotFound, CorruptDataset, StoreError) as error:
            log.warning("what %s names cannot be taken: %s", record, error)
        else:
            return made
    return beneath


def _undeleted(request: OutputRequest, made: Dataset) -> Dataset | None:
    """The output of ``request`` where ``made`` is this without some rows."""
    undeleted = made.undeleted()
    return undeleted if undeleted is not None and request.fits(undeleted.manifest) else None


def record_finished(request: OutputRequest) -> None:
    """Record ``request.output``, which stands now and is that of ``request``, or has this beneath it, unless
    what it was made of has changed meanwhile."""
    if request.work and (request.key_now is None or request.key_now() == request.key):
        _record(request)


def _records(request: OutputRequest) -> Iterator[tuple[str, JsonObject]]:
    """URI and content of each record; one that cannot be read goes."""
    store = store_for(request.folder)
    for entry in list(store.list(request.folder)):
        try:
            content = json.loads(store.read(entry.uri))
            if not isinstance(content, dict) or not isinstance(content.get("output"), str):
                raise ValueError(f"it holds {content!r:.80}")
        except NotFound:
            continue
        except ValueError as error:
            _forget(entry.uri, str(error))
            continue
        yield entry.uri, content


def _taken(request: OutputRequest, record: str, content: JsonObject) -> Dataset | None:
    """The output as it was taken from where ``record`` says that it stands; None where it cannot be."""
    origin = recorded_output(record, content["output"])
    try:
        made = Dataset.open(origin, allow_empty=True)
        if _undeleted(request, made) is not None:
            return None
        request.check(made.manifest)
        digests = _verify(made, request, content.get("pages"))
    except (NotFound, CorruptDataset) as error:
        _forget(record, f"{origin}: {error}")
        return None
    except StoreError as error:
        log.warning("what %s names cannot be read now: %s", record, error)
        return None
    try:
        adopted = made if _same_uri(origin, request.output) else _adopted(request, made, digests)
    except NotFound as error:  # removed meanwhile
        log.warning("%s went while it was taken, and is made again: %s", origin, error)
        return None
    log.info("%s was finished before: %s is taken from %s", request.stage, made.manifest.slug, origin)
    return adopted


def _verify(made: Dataset, request: OutputRequest, pages: object) -> dict[str, str]:
    """Hold all that belongs to ``made`` to its digests; gives those of its files and pages, by name. Where it
    is damaged in the very place that is wanted, it loses its manifest, or it would pass for made.

    Raises:
        CorruptDataset, NotFound: something is damaged, or gone; names it.
    """
    recorded = pages if isinstance(pages, Mapping) else {}
    digests = _files(made) | {page: recorded.get(page, "") for page in request.pages}
    weights = recorded_weights(made.uri, objects_below(made.uri)) if _files(made) else {}
    try:
        made.verify()
        for name, expected in digests.items():
            uri = join(made.uri, str(inside(Path(), name)))
            if (weights[name].sha256 if name in weights else digest_at(uri)) != expected:
                raise CorruptDataset(f"{uri} is damaged")
    except (NotFound, CorruptDataset):
        if _same_uri(made.uri, request.output):
            store_for(made.uri).delete(join(made.uri, MANIFEST))
        raise
    return digests


def _adopted(request: OutputRequest, made: Dataset, digests: Mapping[str, str]) -> Dataset:
    """``made`` at the output that is wanted: its files, which have these digests, its rows, its manifest."""
    for name, expected in digests.items():
        source, target = join(made.uri, name), join(request.output, name)
        if not copy_object(source, target) and digest_at(target) != expected:
            store_for(target).delete(target)  # of an attempt that never finished
            copy_object(source, target)
    if _files(made):
        copy_record(made.uri, request.output)
    with DatasetWriter(request.output, made.manifest.schema, _provenance(request, made.manifest)) as writer:
        writer.adopt(made)
        return writer.commit(Stats.from_json(made.manifest.stats), made.manifest.extra)


def _provenance(request: OutputRequest, manifest: Manifest) -> Provenance:
    """Inputs and places are those of this run; what it was made with is what it was made with."""
    if request.provenance is None:
        return manifest.provenance
    ours, name = request.provenance, manifest.fingerprint
    before = manifest.origins.get(name, {})
    made_with = {member: before[member] for member in ("versions", USE_OF_PODS) if member in before}
    origins = ours.origins | {name: ours.origins[name] | made_with}
    return replace(manifest.provenance, parents=ours.parents, origins=origins)


def _record(request: OutputRequest) -> None:
    """Leave a record of the output that now stands. Where that fails there is none, and nothing else."""
    output = _as_recorded(request.output, request.folder, request.work)
    try:
        pages = {name: digest_at(join(request.output, name)) for name in request.pages}
        content = canonical_json({"output": output, "pages": pages}).encode()
        put(join(request.folder, f"{digest(output)[:32]}.json"), content)
    except (StoreError, NotFound) as error:
        log.warning("%s cannot be recorded as finished: %s", request.output, error)


def recorded_output(record: str, output: str) -> str:
    """Where the ``output`` of the record at the URI ``record`` stands: the way there is from the folder that
    the record lies in, whatever links led to it."""
    if scheme_of(output) != "file" or Path(output).is_absolute() or scheme_of(record) != "file":
        return output
    return os.path.normpath(named_path(record).parent.resolve() / output)


def _as_recorded(output: str, folder: str, work: str) -> str:
    """``output`` as a record in ``folder`` has it: by the way there from the record where both lie in the
    folder that the work prefix is in, so that it can be moved or copied as a whole."""
    if scheme_of(output) != "file":
        return output
    path = named_path(output).resolve()
    if scheme_of(work) == "file" and path.is_relative_to(named_path(work).resolve().parent):
        return os.path.relpath(path, named_path(folder).resolve())
    return str(path)


def _forget(record: str, why: str) -> None:
    log.warning("a finished output cannot be taken, and is made again: %s", why)
    store_for(record).delete(record)


def _files(made: Dataset) -> dict[str, str]:
    """SHA-256 of a model's files by name; none of a dataset that is no model."""
    files = made.manifest.extra.get(FILES)
    return dict(files) if isinstance(files, dict) else {}


def _same_uri(one: str, other: str) -> bool:
    if scheme_of(one) != "file" or scheme_of(other) != "file":
        return one.rstrip("/") == other.rstrip("/")
    return Path(one.removeprefix("file://")).resolve() == Path(other.removeprefix("file://")).resolve()
