"""Files that come with the package, or of the user's own in their place: strict YAML with a schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.resources import files

import yaml

from kubealign_components.config import require
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.json_types import JsonObject
from kubealign_components.store import store_for

HEAD = ("schema", "name", "version")
"""Members of every such file."""


def read_shipped(
    file: str, *, parameter: str, kind: str, folder: str, names: tuple[str, ...]
) -> tuple[bytes, str]:
    """The YAML file at ``file``, and what errors call it.

    Args:
        file: one of ``names``, a path, or a ``gs://`` or ``s3://`` URI.
        parameter: what errors call the parameter.
        kind: what errors call such a file.
        folder: package folder of the shipped ones.
        names: of the shipped ones.

    Raises:
        ConfigError: nothing there.
    """
    if file in names:
        file = f"{file}.yaml"
        return files(f"kubealign_components.{folder}").joinpath(file).read_bytes(), file
    try:
        return store_for(file).read(file), file
    except NotFound as error:
        expected = f"a YAML file, or a shipped {kind}: {', '.join(names)}"
        raise ConfigError(parameter, file, expected) from error


def parse_document(content: bytes, file: str, *, schema: str, members: Collection[str]) -> JsonObject:
    """The members of the YAML text ``content``, its ``name`` and ``version`` among them.

    Args:
        content: of the file.
        file: what errors call it.
        schema: what it must say that it is.
        members: what it must have beside :data:`HEAD`, and has nothing else.

    Raises:
        ConfigError: not YAML, a key that stands twice, another schema, or a missing or unknown member;
            names the file and the member.
    """
    try:
        body = yaml.load(content, Loader=_UniqueKeys)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(file, "…", f"YAML: {error}") from error
    needed = (*HEAD, *members)
    check_members(body, needed, needed, file)
    require(body["schema"] == schema, f"{file}: schema", body["schema"], repr(schema))
    version = body["version"]
    whole = isinstance(version, int) and not isinstance(version, bool) and version > 0
    require(whole, f"{file}: version", version, "a positive whole number")
    return {**body, "name": checked_text(body["name"], f"{file}: name")}


def check_members(value: object, fields: Collection[str], needed: Collection[str], where: str) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a mapping with members of ``fields`` only, and
    with all that are ``needed``."""
    require(isinstance(value, Mapping), where, value, f"a mapping with {', '.join(needed)}")
    assert isinstance(value, Mapping)
    for key in value:
        require(key in fields, f"{where}: {key}", value[key], f"no such field, only {', '.join(fields)}")
    for key in needed:
        require(value.get(key) is not None, f"{where}: {key}", value.get(key), "a value")


def checked_text(value: object, where: str) -> str:
    """``value`` without blanks around it; raises :class:`ConfigError` unless it is text."""
    require(isinstance(value, str) and bool(value.strip()), where, value, "text")
    return str(value).strip()


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may stand once: the second would silently win."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[object, object]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key, (where, _) in zip(keys, node.value):
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", where.start_mark)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
