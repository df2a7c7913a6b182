"""Runs a stage's process and starts it again when it dies: ``python -m kubealign_components.supervisor``.

    python -m kubealign_components.supervisor --retries 2 -m kfp.dsl.executor_main …

The module runs as ``__main__`` in a forked child, with the arguments that follow its name. A child that is
killed, or that ends with an error another attempt may not meet, is started again in the same pod: what it
had committed stays, and Kubeflow, whose releases retry different failures, need not know. Settings or data
that cannot be used end it at once, and so does being told to stop.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import runpy
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from kubealign_components.boundary import reported
from kubealign_components.clean_output import CleanOutput
from kubealign_components.errors import FINAL_CODE
from kubealign_components.lean_imports import without_scikit_learn
from kubealign_components.memory import MemoryWatch
from kubealign_components.pod_use import BEGAN_VARIABLE
from kubealign_components.preemption import EXIT_CODE

RESTART_VARIABLE = "KUBEALIGN_RESTART"
"""Environment variable of the child with how often it was started again."""
PAUSE_VARIABLE = "KUBEALIGN_RETRY_SECONDS"
"""Environment variable with the seconds before the first time; each pause is twice the one before."""
_PAUSE, _LONGEST_PAUSE = 10.0, 300.0
_INTERRUPTED = 128 + signal.SIGINT
_FUNCTION = "--function_to_execute"
"""Option of KFP's executor: the component's function, which is named like the stage."""
_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""


def supervised(command: Sequence[str], retries: int, *, torch: bool = True) -> list[str]:
    """The ``command`` of a KFP component, with its executor under a supervisor.

    Args:
        command: of the component.
        retries: how often a dead process is started again.
        torch: whether the stage may load torch.
    """
    executor = "-m kfp.dsl.executor_main"
    options = f"--retries {retries}{'' if torch else ' --without-torch'}"
    return [
        part.replace(executor, f"-m {__name__} {options} {executor}") if executor in part else part
        for part in command
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _End:
    """How a child ended."""

    code: int
    """Exit code; 128 and the signal's number where a signal ended it."""
    killed_by: int
    """The signal; 0 where it ended by itself."""
    peak: int
    """MiB of memory that it had resident at most."""


class _Supervisor:
    """Starts attempts one after another.

    Args:
        module: to run.
        arguments: of it.
        retries: how often a dead attempt is followed by another.
    """

    def __init__(self, module: str, arguments: Sequence[str], retries: int) -> None:
        self._module, self._arguments, self._retries = module, list(arguments), retries
        self._child = 0
        self._stopped = False

    def run(self) -> int:
        """Run to the end; the exit code of the last attempt."""
        signal.signal(signal.SIGTERM, self._stop)
        os.environ[BEGAN_VARIABLE] = str(time.time())
        threading.Thread(target=_stop_without_reader, name="reader", daemon=True).start()
        pause = float(os.environ.get(PAUSE_VARIABLE) or _PAUSE)
        for restart in range(self._retries + 1):
            memory = MemoryWatch()
            end = self._attempt(restart)
            if self._stopped or end.code in (0, FINAL_CODE, EXIT_CODE, _INTERRUPTED):
                return EXIT_CODE if self._stopped and end.killed_by else end.code
            _say(_end_text(end, memory))
            if restart < self._retries:
                _say(
                    f"attempt {restart + 1} of {self._retries + 1} failed; the next one begins in {pause:g} s"
                )
                if self._interrupted(pause):
                    return EXIT_CODE
                pause = min(2 * pause, _LONGEST_PAUSE)
        return end.code

    def _attempt(self, restart: int) -> _End:
        parent = os.getpid()
        outputs = [CleanOutput(descriptor) for descriptor in (1, 2)]
        with warnings.catch_warnings():
            # From Python 3.12 on it warns of threads, which may hold locks; ours waits in poll without any.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            # Held back until both know what to do with it: the child would take it for its parent's.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            self._child = os.fork()
        if not self._child:
            for output in outputs:
                output.take()
            _become(self._module, self._arguments, restart, parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for output in outputs:
            output.follow()
        if self._stopped:  # before the fork
            self._pass_on()
        _, status, usage = os.wait4(self._child, 0)
        self._child = 0
        for output in outputs:
            output.finish()
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 128 + killed_by if killed_by else os.WEXITSTATUS(status)
        return _End(code=code, killed_by=killed_by, peak=usage.ru_maxrss // 1024)

    def _stop(self, *_: object) -> None:
        self._stopped = True
        self._pass_on()

    def _pass_on(self) -> None:
        if self._child:
            os.kill(self._child, signal.SIGTERM)

    def _interrupted(self, seconds: float) -> bool:
        """Wait; whether this process was told to stop meanwhile."""
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return self._stopped


def _become(module: str, arguments: Sequence[str], restart: int, parent: int) -> None:
    """In the child: run ``module`` and leave with a code that says whether another attempt can help."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with(parent)
    if restart:
        os.environ[RESTART_VARIABLE] = str(restart)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        # A stage was told to stop, or another program says itself how it ended. KFP's executor never does: in
        # a stage any other exit is that of something which it runs.
        if end.code == EXIT_CODE or _FUNCTION not in arguments:
            raise
        sys.exit(reported(end, _stage(arguments)))
    except Exception as error:  # the boundary of the process: whoever raised it
        sys.exit(reported(error, _stage(arguments)))
    sys.exit(0)


def _stage(arguments: Sequence[str]) -> str:
    """What KFP's executor was asked to run."""
    named = list(arguments).index(_FUNCTION) + 1 if _FUNCTION in arguments else len(arguments)
    return arguments[named] if named < len(arguments) else "the stage"


def end_with(parent: int) -> None:
    """Get SIGTERM when the parent is gone: whoever kills the supervisor means the stage."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _stop_without_reader() -> None:
    """Send this process SIGTERM when whoever started it, and reads its output, has gone."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # an error is told without being asked for
    if any(event & select.POLLERR for _, event in output.poll()):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _end_text(end: _End, memory: MemoryWatch) -> str:
    """How an attempt that counts as dead ended, in words."""
    if end.killed_by == signal.SIGKILL:
        return f"the stage's process was killed (SIGKILL); it had up to {end.peak} MiB. {memory.text()}"
    if end.killed_by:
        return f"the stage's process was ended by {signal.Signals(end.killed_by).name}"
    return f"the stage's process ended with exit code {end.code}, as said above"


def _say(text: str) -> None:
    sys.stderr.write(f"supervisor: {text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Run what ``arguments`` ask for; the exit code."""
    parser = argparse.ArgumentParser(prog="kubealign_components.supervisor", description=__doc__)
    parser.add_argument("--retries", type=int, default=0, help="how often a dead process is started again")
    parser.add_argument("--without-torch", action="store_true", help="as where it is not installed")
    parser.add_argument(
        "-m", dest="module", required=True, help="module to run; what follows are its arguments"
    )
    # Cut here: argparse would take the module's first options for its own.
    end = arguments.index("-m") + 2 if "-m" in arguments else len(arguments)
    options, rest = parser.parse_args(arguments[:end]), arguments[end:]
    signal.signal(signal.SIGINT, _leave_to_the_child)
    without_scikit_learn()
    if options.without_torch:
        # Where it is installed, transformers loads it for a tokenizer: 340 MiB of no use to a stage of rows.
        sys.modules["torch"] = None  # type: ignore[assignment]
        # And would say, at the end of logs that are read for another reason, that it was not found.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return _Supervisor(options.module, rest, options.retries).run()


def _leave_to_the_child(_: int, __: FrameType | None) -> None:
    """Ctrl-C reaches both: the child's end tells."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
