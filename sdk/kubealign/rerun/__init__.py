"""From a dataset or model back to the run file that makes it again, and whether it then is the same.

Everything comes out of the manifest: settings from the recipe, places of models, sources and texts from the
origins beside it.
"""

from __future__ import annotations

from kubealign.rerun.comparing import check, rerun_folder
from kubealign.rerun.pipelines import offline_alignment, salmon
from kubealign.rerun.story import SALMON, Story
from kubealign_components.data.manifest import Manifest
from kubealign_components.json_types import JsonObject

__all__ = ["check", "rerun_folder", "run_file_of"]


def run_file_of(manifest: Manifest, benchmark: Manifest | None = None) -> JsonObject:
    """The run file, as plain values, of the pipeline that makes what ``manifest`` describes.

    What it does not depend on is left out: of a dataset from the middle of a pipeline, parameters that the
    run needs beside may be missing.

    Args:
        manifest: of a dataset or model.
        benchmark: of what its run was measured on beside, which nothing is made of; the run file has it, too.

    Raises:
        ConfigError: it was made by stages that are not those of one run of a pipeline, or from a place that
            the manifest does not tell.
    """
    story = Story(manifest)
    name, parameters_of = (
        ("salmon", salmon) if story.stages & SALMON else ("offline_alignment", offline_alignment)
    )
    parameters = parameters_of(story)
    if benchmark is not None:
        measured = parameters_of(Story(benchmark))
        parameters |= {own: value for own, value in measured.items() if own.startswith("benchmark_")}
    return {"pipeline": name, "parameters": parameters}
