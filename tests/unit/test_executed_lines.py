"""Marks say of a program the lines that a tracer sees, and never one more."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from support.executed_lines import MarkedSource

PROGRAM = '''"""Text."""
from __future__ import annotations
import functools
class Part:
    """Text."""
    name: str
    size = 1
    @functools.cache
    def grown(self):
        """Text."""
        return self.size + 1
def kind(value):
    match value:
        case 1:
            return "one"
        case str():
            text = value
            return text
    return "other"
def read(value):
    seen = [value]
    try:
        if not value:
            raise ValueError
        elif value > 5:
            large = True
        else:
            large = False
    except ValueError:
        return None
    finally:
        seen.append(0)
    for one in seen:
        if one:
            continue
        large = large or one
    else:
        with memoryview(b"x") as view:
            size = len(view)
    while seen:
        seen.pop()
    async def later(): return 1
    return large, size
'''
CALLS = ("", "read(7)", "read(0)", "read(3)", "kind(1)", "kind('x')", "kind(2.5)", "Part().grown()")


def traced(program: str) -> set[int]:
    lines: set[int] = set()

    def note(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != "<program>":
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return note

    code, before = compile(program, "<program>", "exec"), sys.gettrace()
    sys.settrace(note)
    try:
        exec(code, {"__name__": "program"})
    finally:
        sys.settrace(before)
    return lines


def marked(program: str) -> set[int]:
    source = MarkedSource(program)
    seen = bytearray(len(source.lines))
    exec(compile(source.tree, "<program>", "exec"), {"__name__": "program", "__executed__": seen})
    return {line for lines, reached in zip(source.lines, seen) if reached for line in lines}


@pytest.mark.parametrize("call", CALLS)
def test_lines_are_those_of_a_tracer(call: str) -> None:
    expected = traced(PROGRAM + call)
    handler = {14, 16} if call.startswith("kind") else set()  # reached, and left without a match
    texts = {1, 2, 5, 10}  # which are no statements, or cannot have a mark before them
    assert expected - handler - texts == marked(PROGRAM + call) - handler - texts


def test_an_import_of_the_future_counts_where_nothing_follows_it() -> None:
    assert marked('"""Text."""\nfrom __future__ import annotations\n') == {2}


def test_a_run_that_raises_counts_no_line_too_many() -> None:
    program = "before = 1\ndef fail():\n    first = 1\n    second = 1 / 0\n    third = 1\n"
    program += "try:\n    fail()\nexcept ZeroDivisionError:\n    after = 1\n"
    assert marked(program) == {1, 2, 6, 7, 8, 9}
    assert traced(program) == {1, 2, 3, 4, 6, 7, 8, 9}
