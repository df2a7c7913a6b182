"""YAML as people write run files: values, and the line and column of each.

Beside what YAML itself refuses, names that are given twice are findings, ``5e-7`` is a number, and dates,
``1:30`` and ``010``, which YAML 1.1 takes for sixties and eights, are text. What aliases expand to is
bounded, as are depth and size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml

from kubealign_components.config import Path
from kubealign_pipelines.checking.findings import Finding, Mark

MAX_BYTES = 2**20
"""Largest run file."""
MAX_NODES = 50_000
"""Most values of a run file, aliases counted as often as they are used."""
MAX_DEPTH = 40
"""Deepest nesting of a run file."""

_REMEDIES = {
    "could not find expected ':'": "; write a name, a colon, a space and a value",
    "mapping values are not allowed": "; put a value that holds a colon in quotes, and one name on each line",
    "cannot start any token": "; put a value that begins with @, ` or % in quotes",
    "another document": "; write one document: no second --- line",
    "<document start>": "; write one document: no second --- line, and no lines of JSON",
    "did not find expected key": "; indent what belongs together alike",
    "did not find expected '-' indicator": "; begin each item of the list with a dash, indented alike",
    "did not find expected ',' or": "; close the bracket, and part what is in it by commas",
    "found unexpected end of stream": "; close the quotes",
    "found unknown escape character": "; use single quotes where a backslash is meant",
    "found undefined alias": "; put a value that begins with * in quotes",
}
"""What helps, by a part of what the parser says."""
_MERGE = "tag:yaml.org,2002:merge"
_COMPILED = re.compile(r"^(pipelineInfo|deploymentSpec):", re.MULTILINE)


class _Loader(yaml.CSafeLoader):
    """Resolves scalars: a number may go without its point, and a date is text."""


_SURPRISING = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _SURPRISING]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(slots=True)
class Document:
    """A text that was read."""

    values: object = None
    marks: dict[Path, Mark] = field(default_factory=dict)
    """Where every value, and where every name of a mapping stands."""
    findings: list[Finding] = field(default_factory=list)


class _TooMuch(Exception):
    """The text says more than the limits allow."""


def read_yaml(text: str, source: str) -> Document:
    """The values of ``text`` and where they stand; what is wrong with it is among the findings."""
    document = Document()
    try:
        _require_bounded(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            document.values = None if node is None else _Reading(loader, source, document).value(node, ())
        finally:
            loader.dispose()
    except _TooMuch as error:
        document.findings.append(_finding(source, str(error), Mark(source, 1, 1)))
    except yaml.MarkedYAMLError as error:
        unfinished = error.context == "while scanning a simple key"
        position = (error.context_mark if unfinished else None) or error.problem_mark or error.context_mark
        mark = Mark(source, position.line + 1, position.column + 1) if position else Mark(source, 1, 1)
        reason, mark = _reason(error, text.splitlines(), mark)
        document.findings.append(_finding(source, f"a YAML file ({reason})", mark))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        document.findings.append(_finding(source, f"a YAML file ({reason})", Mark(source, 1, 1)))
    return document


def is_compiled_pipeline(text: str) -> bool:
    """Whether ``text`` is what ``kubealign compile`` writes, not what it reads."""
    return _COMPILED.search(text) is not None


def merge(first: Document, second: Document) -> Document:
    """``second`` over ``first``: mappings are joined, everything else is replaced."""
    findings = [*first.findings, *second.findings]
    if not (isinstance(first.values, Mapping) and isinstance(second.values, Mapping)):
        return Document(second.values, second.marks, findings)
    marks = dict(first.marks)
    values = joined(first.values, second.values, marks)
    return Document(values, marks | second.marks, findings)


def forget(marks: dict[Path, Mark], path: Path) -> None:
    """Take out of ``marks`` what stands at ``path``, and what is in it."""
    for child in [p for p in marks if p[: len(path)] == path]:
        del marks[child]


def joined(
    base: Mapping[str, object],
    over: Mapping[str, object],
    marks: dict[Path, Mark] | None = None,
    path: Path = (),
) -> dict[str, object]:
    """``over`` in the place of ``base``, mapping by mapping; ``marks`` lose those of what is replaced, which
    stands at ``path``."""
    both = dict(base)
    for name, value in over.items():
        below = (*path, name)
        before = both.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            both[name] = joined(before, value, marks, below)
        else:
            forget(marks or {}, below)
            both[name] = value
    return both


class _Reading:
    """Makes values of nodes, and notes where they stand."""

    def __init__(self, loader: _Loader, source: str, document: Document) -> None:
        self.loader, self.source, self.document = loader, source, document
        self.nodes = 0

    def value(self, node: yaml.Node, path: Path) -> object:
        """The value of ``node``, which stands at ``path``."""
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooMuch(f"at most {MAX_NODES:,} values, those of aliases counted, {MAX_DEPTH} deep")
        self.document.marks.setdefault(path, self._mark(node))
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise yaml.MarkedYAMLError(
                problem=f"{node.tag} is no type of a run file", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, position)) for position, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        given: dict[str, object] = {}
        for key, item in node.value:
            if key.tag == _MERGE:
                given = self._merged(item, path) | given
        own: set[str] = set()
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, path, "a name before the colon, not a list or a mapping")
            elif key.tag != _MERGE and key.value in own:
                line = self.document.marks[(*path, key.value)].line
                expected = f"every name once; line {line} has it already, remove one of them"
                self._refuse(key, (*path, key.value), expected)
            elif key.tag != _MERGE:
                own.add(key.value)
                self._put(given, key, item, path)
        return given

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, object]:
        """What ``<<`` brings into the mapping at ``path``: of a list the first mapping wins."""
        given: dict[str, object] = {}
        for one in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            value = self.value(one, path)
            given |= value if isinstance(value, Mapping) else {}
        return given

    def _put(self, given: dict[str, object], key: yaml.ScalarNode, item: yaml.Node, path: Path) -> None:
        below = (*path, key.value)
        if key.value in given:  # merged into the mapping, which says otherwise
            forget(self.document.marks, below)
        self.document.marks[below] = self._mark(key)
        given[key.value] = self.value(item, below)
        self.document.marks[below] = (
            self._mark(key) if isinstance(item, yaml.CollectionNode) else self._mark(item)
        )

    def _refuse(self, node: yaml.Node, path: Path, expected: str) -> None:
        self.document.findings.append(
            Finding(path=path, value=_text(node), expected=expected, mark=self._mark(node))
        )

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _require_bounded(text: str) -> None:
    """Raise :class:`_TooMuch` before anything that recurses has seen the text."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise _TooMuch(f"a run file of at most {MAX_BYTES:,} bytes")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _TooMuch(f"values that are nested at most {MAX_DEPTH} deep")


def _finding(source: str, expected: str, mark: Mark) -> Finding:
    return Finding(path=("run file",), value=source, expected=expected, mark=mark)


def _reason(error: yaml.MarkedYAMLError, lines: Sequence[str], mark: Mark) -> tuple[str, Mark]:
    """What the parser says and what helps, and where: a line may be wrong because of the one before it."""
    reason = " ".join(filter(None, [error.context, error.problem])).replace("\n", " ")
    here = lines[mark.line - 1] if mark.line <= len(lines) else ""
    before = lines[mark.line - 2] if 1 < mark.line <= len(lines) + 1 else ""
    if here.lstrip(" ").startswith("\t"):
        return f"{reason}; indent with spaces, not with tabs", mark
    if "mapping values are not allowed" in reason and before.strip() and here.count(":") == 1:
        if ": " in before:
            return f"{reason}; indent this line as the one before it", mark
        column = 1 + len(before) - len(before.lstrip())
        remedy = "; write a name, a colon, a space and a value on this line"
        return f"{reason}{remedy}", replace(mark, line=mark.line - 1, column=column)
    return reason + next((help_ for said, help_ in _REMEDIES.items() if said in reason), ""), mark


def _text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    return "mapping" if isinstance(node, yaml.MappingNode) else "sequence"
