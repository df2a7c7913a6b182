"""What the manifest of a trained model says, for stages that are given the model's files."""

from __future__ import annotations

import logging

from kubealign_components.data.choice_rows import ChoiceRow
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import DataError, NotFound

log = logging.getLogger(__name__)


def trained_model(model: str, uri: str) -> Dataset | None:
    """The model as KubeAlign's manifest has it, or what stands in its place where its training, or a stage
    before that, ended early; None, with a warning, of a model from elsewhere.

    Args:
        model: directory or URI.
        uri: what a manifest is to say of its place, where ``model`` is a copy of it.
    """
    try:
        return Dataset(uri, Dataset.open(model, MODEL, allow_empty=True).manifest)
    except NotFound:
        log.warning("%s has no manifest: its training data is not known", model)
        return None


def chosen_row(choice: Dataset) -> ChoiceRow:
    """The row of ``choice`` (``kubealign.choice/v1``) whose model was chosen.

    Raises:
        DataError: none was chosen.
    """
    for row in choice.iter_rows(of=ChoiceRow):
        if row["chosen"]:
            return row
    raise DataError(f"{choice.uri} has no chosen model: expected a choice of one that keeps to the limits")
