"""What a process and all below it write, passed on without secrets and without what moves a cursor."""

from __future__ import annotations

import os
import re
import threading

from kubealign_components.printable import for_people

_ENDS = re.compile(rb"(?<=[\n\r])")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BLOCK = 2**16
_LONGEST = 2**20
"""Bytes after which a line is passed on in pieces."""
_PATIENCE = 2.0
"""Seconds for what is still in the pipe once the process has ended; what it left running may hold it open."""


class CleanOutput:
    """A pipe in the place of a file descriptor of a child that is forked, read here line by line.

    Args:
        descriptor: of standard output or standard error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="clean-output", daemon=True)

    def take(self) -> None:
        """In the child: write into the pipe from now on."""
        os.dup2(self._writer, self._descriptor)
        os.close(self._writer)
        os.close(self._reader)

    def follow(self) -> None:
        """In the parent: pass on what comes."""
        os.close(self._writer)
        self._thread.start()

    def finish(self) -> None:
        """In the parent, when the child has ended: see that everything was passed on."""
        self._thread.join(_PATIENCE)

    def _pass_on(self) -> None:
        held = b""
        while block := os.read(self._reader, _BLOCK):
            *lines, held = _ENDS.split(held + block)
            self._write(lines)
            if len(held) > _LONGEST:
                self._write([held])
                held = b""
        self._write([held])
        os.close(self._reader)

    def _write(self, lines: list[bytes]) -> None:
        cleaned = memoryview("".join(map(clean_line, lines)).encode(errors="replace"))
        try:
            while cleaned:
                cleaned = cleaned[os.write(self._descriptor, cleaned) :]
        except OSError:  # nobody reads any more; whoever writes must not notice
            pass


def clean_line(line: bytes) -> str:
    """``line``, with its end, as logs get it."""
    text = line.decode(errors="replace")
    body = text.rstrip("\r\n")
    return for_people(_COLOURS.sub("", body)) + text[len(body) :]
