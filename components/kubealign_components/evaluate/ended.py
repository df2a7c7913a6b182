"""What stands in place of an evaluation that there is none of."""

from __future__ import annotations

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.early_end import end_early
from kubealign_components.data.schemas import EVALUATION
from kubealign_components.data.stats import Stats
from kubealign_components.reports.html import copy_report, message_page, write_report


def without_comparison(model: Dataset, reason: str, version: int, output: str, report: str | None) -> Stats:
    """Publish at ``output`` that ``model`` is compared with nothing, and for which ``reason``.

    Args:
        model: the aligned one, or what stands in its place.
        reason: in words.
        version: of the stage.
        output: URI of the evaluation that there is none of; the page lies beside it.
        report: path of a second copy of the page.
    """
    stats = end_early(
        reason, stage="evaluate", version=version, schema=EVALUATION, output=output, inputs={"model": model}
    )
    write_report(message_page(model.manifest.slug, reason), output)
    copy_report(output, report)
    return stats
