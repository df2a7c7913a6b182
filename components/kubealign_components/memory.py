"""What the control group of a container says of its memory: limit, peak, and who was killed for it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where a container sees its own control group (version 2)."""
_MIB = 2**20


class MemoryWatch:
    """Notices processes that are killed for memory from now on.

    Args:
        root: the control group.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._before = self._kills()

    def killed(self) -> bool:
        """Whether the kernel killed a process of this container for its memory."""
        return self._kills() > self._before

    def text(self) -> str:
        """What is known, in words: for a process that was killed by SIGKILL."""
        sizes = self._sizes()
        if self.killed():
            return (
                f"The kernel killed it for memory ({sizes}): ask for more memory, or let fewer rows, tokens "
                "or processes be in memory at once"
            )
        return f"That most often is for memory of the container or the machine ({sizes})"

    def _sizes(self) -> str:
        limit, peak = self._number("memory.max"), self._number("memory.peak")
        sizes = [
            f"its limit is {limit // _MIB} MiB" if limit else "it has no limit of its own",
            f"its peak was {peak // _MIB} MiB" if peak else "",
        ]
        return ", ".join(one for one in sizes if one)

    def _kills(self) -> int:
        for line in self._text("memory.events").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
        return 0

    def _number(self, name: str) -> int:
        text = self._text(name).strip()
        return int(text) if text.isdigit() else 0

    def _text(self, name: str) -> str:
        try:
            return (self._root / name).read_text(encoding="utf-8")
        except OSError:
            return ""
