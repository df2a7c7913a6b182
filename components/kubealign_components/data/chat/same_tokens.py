"""Whether one model reads the token ids that were made for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubealign_components.config import require
from kubealign_components.data.chat import DeferredTemplate, stored_settings
from kubealign_components.data.models import ModelFiles

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset


def require_tokens(model: ModelFiles, dataset: Dataset, field: str) -> dict[str, str]:
    """The identity of ``model``, which must read the dataset's token ids as its policy does.

    Args:
        model: another one than the dataset's policy.
        dataset: with token ids.
        field: the setting that an error names.

    Raises:
        ConfigError: its tokenizer or its template is another one.
    """
    for name, own in DeferredTemplate(model, stored_settings(dataset)).identity.items():
        expected = dataset.manifest.identity.get(name)
        require(
            name == "policy" or own == expected,
            field,
            model.name,
            f"a model with the policy's {name}: this one's has digest {own[:12]}, the dataset's "
            f"{str(expected)[:12]}",
        )
    return model.identity()
