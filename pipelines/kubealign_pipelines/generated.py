"""Functions of components that are written here, not by hand."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping


def defined(name: str, source: str, about: str, names: Mapping[str, object]) -> Callable[..., object]:
    """The function ``name`` of ``source``, for ``dsl.component``.

    Args:
        name: of the function.
        source: that defines it. It is executed: a user's words may stand in it as literals alone.
        about: what it is of, for tracebacks.
        names: what ``source`` refers to.
    """
    file = f"<{about} {hash(source):x}>"
    # KFP ships a component's source, which it asks Python for.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Callable[..., object]] = {}
    exec(compile(source, file, "exec", dont_inherit=True), dict(names), made)
    return made[name]
