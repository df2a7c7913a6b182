"""The graph on a run's page beside that of the pipeline which ran: both by the names of tasks."""

from __future__ import annotations

from kubealign import Results
from kubealign_components.data.dataset import Dataset
from support.compiled import Artifacts, read_ir
from support.pages import Page

Edges = set[tuple[str, str]]


def drawn_edges(run: Results, page: Page) -> Edges:
    """The edges of the graph on ``page``, each once, from the task of one box to that of the other."""
    made = [output for output in run.outputs if output.type in ("system.Dataset", "system.Model")]
    tasks = {Dataset.open(str(o.path), allow_empty=True).manifest.fingerprint: o.task for o in made}
    edges = [(tasks[parent], tasks[child]) for parent, child in page.edges]
    assert len(edges) == len(set(edges))
    return set(edges)


def compiled_edges(run: Results) -> Edges:
    """The edges of the pipeline that ran, among what the evaluation hangs on."""
    spec, _ = read_ir(run.folder / "pipeline.yaml")
    return Artifacts(spec).edges("evaluate")
