"""What the server answers: the list of runs, one run, its pages and lineage, and runs beside each other."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from kubealign.cli.console import duration
from kubealign.compare.page import compare_page
from kubealign.compare.runs import compared
from kubealign.lineage import last_made
from kubealign.local.runs import RUNNING, RunInfo
from kubealign.ui.folder import page_of, paths_in, run_in, runs_in
from kubealign.ui.live import live_page
from kubealign_components.errors import ConfigError, KubeAlignError, NotFound
from kubealign_components.reports.html import render
from kubealign_components.reports.lineage import to_html

STORED = "sandbox allow-scripts"
"""What a page from the disk may do: nothing with the other pages, whoever wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    policy: str = ""
    """Content security beside that of every page."""
    location: str = ""
    """Where to look instead."""


class Site:
    """The pages of a folder of runs.

    Args:
        folder: an output folder, or a folder of those.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawing = threading.Lock()  # matplotlib's settings are one for all threads

    def reply(self, target: str) -> Reply:
        """The answer to a request for ``target``, path and query as the browser sent them."""
        try:
            with self._drawing:
                return self._reply(target)
        except NotFound as error:
            return _message(404, str(error))
        except (ConfigError, ValueError) as error:  # also an address that is none
            return _message(400, str(error))
        except (KubeAlignError, OSError) as error:
            return _message(500, str(error))
        except Exception as error:  # a damaged run must not take the others' pages away
            return _message(500, f"this page cannot be made: {type(error).__name__}: {error}")

    def _reply(self, target: str) -> Reply:
        address = urlsplit(target)
        parts = [unquote(part) for part in address.path.split("/")][1:]
        if parts == [""]:
            return _page(list_page(runs_in(self._folder)))
        if parts == ["compare"]:
            return _page(compare_page(compared(self._runs(parse_qs(address.query).get("run", [])))))
        if len(parts) < 2 or parts[0] != "run":
            raise NotFound(f"{address.path}: no such page")
        [run] = self._runs(parts[1:2])
        return self._of_run(parts[1], run, parts[2:])

    def _runs(self, names: Sequence[str]) -> list[RunInfo]:
        """The runs of those names, and no others, read now."""
        paths = paths_in(self._folder)
        if missing := [name for name in names if name not in paths]:
            raise NotFound(f"{', '.join(missing)}: no such run")
        return [run_in(self._folder, paths[name]) for name in names]

    def _of_run(self, name: str, run: RunInfo, rest: Sequence[str]) -> Reply:
        if not rest:
            return Reply(status=301, body=b"", location=f"/run/{quote(name, safe='')}/")
        if rest == ["lineage"]:
            return _page(to_html(last_made(run).manifest))
        if rest == ["now"] or (rest == [""] and (run.state == RUNNING or not run.folder.summary.is_file())):
            return _page(live_page(name, run))
        names = [run.folder.summary.name] if rest == [""] else rest
        return Reply(status=200, body=page_of(run, self._folder, *names), policy=STORED)


def list_page(runs: Mapping[str, RunInfo]) -> str:
    """The runs, newest first, to look at and to compare."""
    rows = [(name, quote(name, safe=""), run.state, _facts(run)) for name, run in runs.items()]
    return render("kubealign/ui/list.html", runs=rows)


def _facts(run: RunInfo) -> list[str]:
    numbers = run.results.get("evaluation", {})
    seconds, kl = run.results.get("seconds"), numbers.get("kl_per_completion")
    return [
        str(run.results.get("pipeline", "")),
        f"{run.began:%Y-%m-%d %H:%M}",
        "" if seconds is None else duration(seconds),
        _gain(numbers),
        "" if kl is None else f"{kl:.3g}",
    ]


def _gain(numbers: Mapping[str, float]) -> str:
    if "reward_gain" not in numbers:
        return ""
    bounded = "reward_gain_low" in numbers
    interval = f" [{numbers['reward_gain_low']:+.3g}, {numbers['reward_gain_high']:+.3g}]" if bounded else ""
    return f"{numbers['reward_gain']:+.3g}{interval}"


def _page(text: str) -> Reply:
    return Reply(status=200, body=text.encode())


def _message(status: int, text: str) -> Reply:
    page = render("kubealign/ui/message.html", title="This cannot be shown", text=text)
    return Reply(status=status, body=page.encode())
