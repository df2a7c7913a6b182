"""Where errors end: one line each on standard error, whoever raised them, and no traceback."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from kubealign.cli.options import show_findings
from kubealign.cli.terminal import counted, say
from kubealign.errors import RunStopped
from kubealign_components.errors import ConfigError, KubeAlignError
from kubealign_pipelines.checking.findings import BadSettings

UNUSABLE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: as Ctrl-C, and as little an error of anybody's."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, where Python takes handlers: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Boundary(click.Group):
    """Commands whose errors are told in words; what nobody expected leaves its traceback in a file."""

    def invoke(self, context: click.Context) -> object:
        """Run the command, and turn what it raises into a message and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # texts hold what not every terminal can show
        try:
            with _terminable():
                return super().invoke(context)
        except BadSettings as error:
            show_findings(error.findings)
            _say_how_many(error)
            context.exit(UNUSABLE)
        except ConfigError as error:
            say(f"Error: {error}", err=True)
            context.exit(UNUSABLE)
        except RunStopped as error:
            say(f"Error: {error}", err=True)
            context.exit(error.exit_code)
        except KubeAlignError as error:
            say(f"Error: {error}", err=True)
            context.exit(FAILED)
        except BrokenPipeError:
            # What reads our output has gone; Python would complain again when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(FAILED)
        except OSError as error:
            say(f"Error: {_of_system(error)}", err=True)
            context.exit(FAILED)
        except KeyboardInterrupt as interrupt:
            say("Interrupted; finished rows are kept and a new run takes them up.", err=True)
            context.exit(TERMINATED if isinstance(interrupt, _Terminated) else INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            say(f"Error: {_unexpected(context, error)}", err=True)
            context.exit(FAILED)


def _say_how_many(error: BadSettings) -> None:
    warnings = sum(finding.warning for finding in error.findings)
    errors = len(error.findings) - warnings
    if len(error.findings) > 1:
        say(f"{counted(errors, 'error')}, {counted(warnings, 'warning')}", err=True)


def _of_system(error: OSError) -> str:
    """What the operating system refused, of which file, and what helps."""
    reason = error.strerror or str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{reason}; name another place, make room there, or change its permissions"


def _unexpected(context: click.Context, error: Exception) -> str:
    """An error of nobody's, whose traceback is kept in a file for a report."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="backslashreplace", prefix="kubealign-", suffix=".log", delete=False
    ) as log:
        traceback.print_exception(error, file=log)
    reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
    command = context.invoked_subcommand or context.info_name
    return f"{command} stopped on {type(error).__name__}: {reason}; the traceback is in {log.name}"
