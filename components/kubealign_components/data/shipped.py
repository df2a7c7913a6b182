"""Files that come with the package, or of the user's own in their place."""

from __future__ import annotations

from importlib.resources import files

from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.store import store_for


def read_shipped(
    place: str, *, parameter: str, kind: str, folder: str, names: tuple[str, ...]
) -> tuple[bytes, str]:
    """The YAML file at ``place``, and what errors call it.

    Args:
        place: one of ``names``, a path, or a ``gs://`` or ``s3://`` URI.
        parameter: what errors call the parameter.
        kind: what errors call such a file.
        folder: package folder of the shipped ones.
        names: of the shipped ones.

    Raises:
        ConfigError: nothing there.
    """
    if place in names:
        name = f"{place}.yaml"
        return files(f"kubealign_components.{folder}").joinpath(name).read_bytes(), name
    try:
        return store_for(place).read(place), place
    except NotFound as error:
        expected = f"a YAML file, or a shipped {kind}: {', '.join(names)}"
        raise ConfigError(parameter, place, expected) from error
