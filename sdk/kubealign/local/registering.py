"""The model of a run that ended here goes into the registry that its run file names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubealign_components.data.dataset import Dataset
from kubealign_components.evaluate.verdict import verdict

if TYPE_CHECKING:
    from kubealign.local.results import Results
    from kubealign_pipelines.registration import RegistrySettings


def register_here(results: Results, registry: RegistrySettings) -> str:
    """Register the model of ``results``; says in a sentence what became of it.

    A registry that does not answer is asked once: who waits here can ask again.

    Args:
        results: of a run that made a model.
        registry: which one, and under which name.
    """
    from kubealign_components.registry.after_run import register_or_say
    from kubealign_components.registry.versions import registration

    what = registration(
        Dataset.open(str(results.model), allow_empty=True),
        name=registry.name,
        author=registry.author,
        evaluation=results.evaluation,
        description=verdict(results.evaluation),
    )
    return register_or_say(what, registry.server, registry.ca_cert, target=str(results.folder))
