"""Where what a process raises ends: whatever it was, its last line names the stage, the file and a remedy."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from kubealign_components.errors import FINAL, FINAL_CODE, EngineError, KubeAlignError, StoreError, Unexpected

_FULL = "free space there, or name another place"
_DENIED = "change its permissions, or name another place"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOENT: "see that it is there for the whole run",
    errno.ENOTDIR: "name a place whose folders are folders",
    errno.EISDIR: "name a file",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files on this machine",
    errno.ENOMEM: "ask for more memory",
    errno.EIO: "look after the disk",
}
_MEMORY = "ask for more memory, or let fewer rows or tokens be in memory at once (batch sizes, token budgets)"
_LONGEST = 300


def reported(error: BaseException, what: str) -> int:
    """Write down what ended this process: the traceback, and last the error in words; gives the exit code.

    Args:
        error: that reached the end of the process.
        what: ran, such as the stage's name.
    """
    traceback.print_exception(error)
    end = named(error, what)
    if end is not error:
        sys.stderr.write(f"{type(end).__module__}.{type(end).__qualname__}: {end}\n")
    sys.stderr.flush()
    return FINAL_CODE if isinstance(end, FINAL) else 1


def named(error: BaseException, what: str) -> KubeAlignError:
    """``error`` as one of ours: itself where it is."""
    if isinstance(error, KubeAlignError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        file = f"{error.filename!r}: " if error.filename is not None else ""
        remedy = _REMEDIES.get(error.errno, "the traceback in the log says where")
        return StoreError(f"{what}: {file}{os.strerror(error.errno)}; {remedy}")
    if _is_of_memory(error):
        return EngineError(f"{what}: out of memory ({_first_line(error)}); {_MEMORY}")
    if isinstance(error, SystemExit):
        return Unexpected(
            f"{what}: something that it runs called sys.exit({error.code!r}); a function of yours has to "
            "return, or to raise what is wrong"
        )
    return Unexpected(
        f"{what}: {type(error).__name__}: {_first_line(error)}; the traceback in the log says where. Mend it "
        "if that is code of yours, else report it with the traceback"
    )


def _is_of_memory(error: BaseException) -> bool:
    # torch has a class of its own, which is not imported for this.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:_LONGEST]
