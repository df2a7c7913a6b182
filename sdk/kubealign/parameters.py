"""Parameters are checked whole before anything runs: names and types, then every stage's own rules."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_pipelines.checking.findings import require_usable
from kubealign_pipelines.checking.stages import check_stages
from kubealign_pipelines.graph import Graph


def check_parameters(
    graph: Graph, values: Mapping[str, object], *, complete: bool = True
) -> dict[str, object]:
    """All parameters of ``graph`` with ``values`` over the defaults, checked against every stage.

    Args:
        graph: the compiled pipeline.
        values: by parameter name.
        complete: whether required parameters must be there, or may be given when the pipeline runs.

    Returns:
        Of the parameters that the graph has.

    Raises:
        BadSettings: unknown names, values of the wrong type, what a stage refuses, what is missing.
    """
    checked = check_stages(graph, values, complete=complete)
    require_usable(checked.findings)
    return checked.values


def whole_parameters(
    graph: Graph, given: Mapping[str, object], taken: Mapping[str, object]
) -> dict[str, object]:
    """Those by which a run can be made again: beside what the stages of ``graph`` have ``taken``, what of
    ``given`` decided which stages these are, such as the number of rounds."""
    decided = graph.rules.shape(given).keys() & given.keys()
    return {**{name: given[name] for name in sorted(decided)}, **taken}
