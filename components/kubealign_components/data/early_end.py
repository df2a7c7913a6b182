"""What was not made because a round, or a variant of a sweep, ended early.

Who ends early publishes a dataset of its kind without rows, whose manifest says why. A stage that is given
one works on nothing and publishes one as well, with the same reason: every task of a graph ends well, and
whoever chooses in the end learns what became of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kubealign_components.data.dataset import Dataset, DatasetWriter, why_empty
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import ENDED_EARLY
from kubealign_components.data.stats import Stats


def end_early(
    reason: str,
    *,
    stage: str,
    version: int,
    schema: str,
    output: str,
    inputs: Mapping[str, Dataset],
    params: Mapping[str, object] | None = None,
    models: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Stats:
    """Publish at ``output`` that nothing was made there, and why; counts of nothing.

    Args:
        reason: in words.
        stage: that ends early.
        version: of the stage.
        schema: kind of what it would have made.
        output: URI of that.
        inputs: by role, what the end was decided by.
        params: settings that it was decided by.
        models: identities of models, by role.
        extra: what else the manifest is to say.
    """
    said = {**(params or {}), ENDED_EARLY: reason}
    # Rounds that are looked at together may each have stayed near another policy.
    made = derive(stage, version, said, inputs=inputs, models=models, settled=("reference",))
    stats = Stats()
    with DatasetWriter(output, schema, replace(made, ended_early=reason)) as writer:
        writer.commit(stats, extra)
    return stats


def pass_on(
    role: str,
    ended: Dataset,
    *,
    stage: str,
    version: int,
    schema: str,
    output: str,
    params: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Stats:
    """Publish at ``output`` that nothing was made there, since nothing was made of the input ``ended``.

    Args:
        role: of the input.
        ended: that ended early, or has no rows.
        stage: that has nothing to work on.
        version: of the stage.
        schema: kind of what it would have made.
        output: URI of that.
        params: settings of the stage, where these tell what it would have made from what others would have.
        extra: what else the manifest is to say.
    """
    manifest = ended.manifest
    last = f"{manifest.provenance.step['stage']} left no rows: {why_empty(manifest)}"
    return end_early(
        ended.ended_early or last,
        stage=stage,
        version=version,
        schema=schema,
        output=output,
        inputs={role: ended},
        params=params,
        extra=extra,
    )


def brings_nothing(dataset: Dataset, *, sweep: bool) -> bool:
    """Whether the stage that is given ``dataset`` has nothing to work on: it ended early, or has no rows,
    with which a variant of a ``sweep`` ends, and any other run fails."""
    return bool(dataset.ended_early) or (sweep and not dataset.rows)
