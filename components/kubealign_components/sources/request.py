"""What a stage that reads sources is asked for, told before it reads a row of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubealign_components.config import gates_of, semantic_params
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.finished import OutputRequest
from kubealign_components.sources.source import SourceReader

if TYPE_CHECKING:
    from kubealign_components.data.finished import WorkConfig

_PLACES = ("sources", "policy", "revision")


def requested(
    stage: str,
    version: int,
    config: WorkConfig,
    readers: Sequence[SourceReader],
    *,
    output: str,
    **used: object,
) -> OutputRequest:
    """The output that ``config`` asks for, by settings and content of the sources.

    A dataset's fingerprint is known only when its sources have been read: the recipe says what format they
    turned out to have. This key is of the same things as they are before. Without a work prefix nothing is
    looked at.

    Args:
        stage: the stage.
        version: of the stage.
        config: its settings.
        readers: of the sources, in the order of the settings.
        output: URI of the dataset to make.
        used: what else the rows depend on, by name.
    """
    own = {name: value for name, value in semantic_params(config).items() if name not in _PLACES}

    def key(readers: Sequence[SourceReader]) -> str:
        return digest([stage, version, own, list(map(_read_by, readers)), gates_of(config), used])

    return OutputRequest(
        work=config.work,
        stage=stage,
        key=key(readers) if config.work else "",
        output=output,
        key_now=lambda: key([SourceReader(reader.config) for reader in readers]),
    )


def _read_by(reader: SourceReader) -> dict[str, object]:
    """Content and settings of a source, wherever it lies."""
    return reader.own_settings() | {"content": reader.content()}
