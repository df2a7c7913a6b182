"""Every HTML page of KubeAlign: one shell, one style, and templates that escape what they show.

A page is whole in itself: its policy forbids every request, and all that it needs stands in it. Templates lie
beside what they show (``evaluate/report.html``) and extend ``reports/shell.html``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import escape

from kubealign_components.printable import shortened
from kubealign_components.store import join, put, store_for
from kubealign_components.whole_file import write_whole

T = TypeVar("T")

REPORT = "report.html"
"""A page beside the rows that it is about."""
CLIP = 4000
"""Most characters of one text on a page."""
BUDGET = 1_200_000
"""Most bytes of all texts on a page, as they stand there."""


def render(template: str, **values: object) -> str:
    """A page.

    Args:
        template: package, path and name, such as ``kubealign_components/evaluate/report.html``.
        values: what the template shows; plain text is escaped.
    """
    return _environment().get_template(template).render(**values)


def message_page(title: str, text: str) -> str:
    """A page that says ``text`` alone."""
    return render("kubealign_components/reports/message.html", title=title, text=text)


def clipped(text: str) -> str:
    """``text``, cut where it is longer than :data:`CLIP`, which is said."""
    return shortened(text, CLIP)


def messages_text(messages: str | Iterable[Mapping[str, object]], *, roles: bool = True) -> str:
    """Messages as a reader sees them, cut where they are long.

    Args:
        messages: as JSON text or as objects, with role, content and what else there is, such as tool calls.
        roles: whether to say who speaks.
    """
    listed = json.loads(messages) if isinstance(messages, str) else messages
    return clipped("\n".join((f"{m['role']}: " if roles else "") + _content(m) for m in listed))


def fitting(entries: Iterable[T], texts: Callable[[T], Iterable[str]]) -> list[T]:
    """The first of ``entries`` that :data:`BUDGET` has room for.

    Args:
        entries: what a page shows, each once.
        texts: the texts of an entry.
    """
    kept, size = list[T](), 0
    for entry in entries:
        size += sum(len(escape(text).encode()) for text in texts(entry))
        if size > BUDGET:
            break
        kept.append(entry)
    return kept


def write_report(text: str, output: str) -> None:
    """Write a page beside the dataset at ``output``, in the place of one that an earlier attempt left."""
    put(join(output, REPORT), text.encode())


def copy_report(output: str, copy: str | None) -> None:
    """Write the page beside the dataset at ``output`` to the path ``copy``, too, for the Kubeflow UI."""
    if copy is not None:
        Path(copy).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(copy), store_for(output).read(join(output, REPORT)).decode())


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    rest = {k: v for k, v in message.items() if k not in ("role", "content") and v}
    plain = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return plain + (f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else "")


def _source(template: str) -> str:
    package, _, path = template.partition("/")
    return (files(package) / path).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clipped"] = clipped
    environment.filters["spoken"] = messages_text
    environment.globals["parts"] = environment.get_template("kubealign_components/reports/parts.html").module
    return environment
