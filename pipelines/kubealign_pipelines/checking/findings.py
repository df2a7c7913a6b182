"""What is found before a run: errors, which stop it, and warnings, each with its place and its remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from kubealign_components.config import Path, Problem, text_of
from kubealign_components.errors import ConfigError, shown

PARAMETERS = "parameters"
"""The section of a run file whose names stand alone in messages, as on a form."""

A_VALUE = "a value; leave the setting out to keep its default"
"""What stands in place of a null."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text."""

    source: str
    """The file, or what was given on the command line."""
    line: int = 0
    """From 1; 0 where the source is one line."""
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, or looks wrong, with a run."""

    path: Path
    """Where it is in the run file, such as ``("parameters", "sample_n")``."""
    value: object
    """What stands there."""
    expected: str
    """What should, and what to do."""
    warning: bool = False
    """Whether the run may start all the same."""
    mark: Mark | None = None

    @property
    def name(self) -> str:
        """The setting as its user writes it."""
        path = self.path[1:] if self.path[:1] == (PARAMETERS,) and len(self.path) > 1 else self.path
        return text_of(path)

    @property
    def message(self) -> str:
        """Setting, value and what was expected."""
        if self.warning:
            return f"{self.name}={shown(self.value)}: {self.expected}"
        return str(ConfigError(self.name, self.value, self.expected))

    def __str__(self) -> str:
        level = "Warning" if self.warning else "Error"
        if self.mark is None:
            return f"{level}: {self.message}"
        if not self.mark.line:
            return f"{level}: {self.message} (from {self.mark})"
        return f"{level}: {self.mark}: {self.message}"


class BadSettings(ConfigError):
    """Settings that cannot be used: all that was found in them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        errors = [finding for finding in findings if not finding.warning]
        first = errors[0]
        super().__init__(first.name, first.value, first.expected)
        self.findings = tuple(findings)

    def __str__(self) -> str:
        return "\n".join(finding.message for finding in self.findings if not finding.warning)


def error_at(path: Path, value: object, expected: str) -> Finding:
    """A finding that stops the run."""
    return Finding(path=path, value=value, expected=expected)


def warning_at(path: Path, value: object, text: str) -> Finding:
    """A finding that does not stop the run."""
    return Finding(path=path, value=value, expected=text, warning=True)


def belongs_to(parameter: str, path: Path, value: object) -> Finding:
    """A finding of a setting that stands among others, though it is a parameter itself."""
    return error_at(path, value, f"nothing here: it is the parameter {parameter}; give it there, and once")


def from_problem(problem: Problem, path: Path) -> Finding:
    """The finding of a setting that a config refuses."""
    return error_at(path, problem.error.value, problem.error.expected)


def is_within(finding: Finding, paths: Collection[Path]) -> bool:
    """Whether the setting of ``finding``, or one around it, is at one of ``paths``."""
    return any(finding.path[:length] in paths for length in range(2, len(finding.path) + 1))


def distinct(findings: Iterable[Finding]) -> list[Finding]:
    """Every finding once: stages that share a setting refuse it together. Errors stand first."""
    seen: dict[tuple[Path, str], Finding] = {}
    for finding in findings:
        seen.setdefault((finding.path, finding.expected), finding)
    return sorted(seen.values(), key=lambda finding: finding.warning)


def require_usable(findings: Sequence[Finding]) -> None:
    """Raise :class:`BadSettings` when one of ``findings`` is an error."""
    if any(not finding.warning for finding in findings):
        raise BadSettings(findings)


def located(findings: Iterable[Finding], marks: dict[Path, Mark]) -> list[Finding]:
    """``findings`` with the mark of their setting, or of the nearest thing around it."""
    placed = []
    for finding in findings:
        lengths = range(len(finding.path), 0, -1)
        mark = next((marks[finding.path[:n]] for n in lengths if finding.path[:n] in marks), None)
        placed.append(finding if finding.mark else replace(finding, mark=mark))
    return placed
