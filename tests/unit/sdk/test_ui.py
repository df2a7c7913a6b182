"""Runs in the browser: what a name leads to, and what no request reaches."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.local.live import read_state
from kubealign.local.runs import LOCK, RunInfo, read_run
from kubealign.ui.live import step_charts
from kubealign.ui.server import Server
from support.datasets import MakeDataset
from support.pages import Page
from support.run_folders import add_run

SECRET = "<!doctype html>the secret"


class Browser:
    """Asks a server, and follows nothing."""

    def __init__(self, server: Server) -> None:
        self.port = server.server_port

    def ask(
        self, target: str, *, host: str = "localhost", method: str = "GET"
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host)
        connection.endheaders()
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, text, reply.headers

    def page(self, target: str) -> str:
        status, text, _ = self.ask(target)
        assert status == 200, text
        return text


@pytest.fixture
def folder(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    """An output folder with two runs that have pages, and a secret beside it."""
    output = tmp_path / "out"
    for name, reward in (("dpo", 0.5), ("qrpo", 0.25)):
        run = add_run(
            output, name, make_dataset, aligned={"a": reward, "b": reward}, parameters={"beta": reward}
        )
        (run / "summary.html").write_text(f"<!doctype html>summary of {name}")
        (run / "reports").mkdir()
        (run / "reports" / "01-filter.html").write_text(f"<!doctype html>filter of {name}")
    (tmp_path / "secret.html").write_text(SECRET)
    return output


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    with Server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Browser(server)
        finally:
            server.shutdown()
            thread.join()


def test_the_list_leads_to_every_run_its_pages_lineage_and_comparison(browser: Browser) -> None:
    text = browser.page("/")
    links = re.findall(r'href="([^"]+)"', text)
    assert sorted(links) == ["/run/dpo/", "/run/dpo/lineage", "/run/qrpo/", "/run/qrpo/lineage"]
    assert "+0.5" in text and "+0.25" in text
    assert browser.page("/run/dpo/").endswith("summary of dpo")
    assert browser.page("/run/dpo/reports/01-filter.html").endswith("filter of dpo")
    assert len(Page(browser.page("/run/dpo/lineage")).edges) == 1
    compared = Page(browser.page("/compare?run=dpo&run=qrpo"))
    assert ["beta", "0.5", "0.25"] in compared.rows
    status, _, headers = browser.ask("/run/dpo")
    assert (status, headers["Location"]) == (301, "/run/dpo/")


def test_a_page_reads_the_runs_that_it_is_about(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a thousand runs is not read for a picture of one."""
    names: list[str] = []

    def noting(path: Path) -> RunInfo:
        names.append(path.name)
        return read_run(path)

    monkeypatch.setattr("kubealign.ui.folder.read_run", noting)
    browser.page("/run/dpo/")
    assert names == ["dpo"]
    browser.page("/compare?run=qrpo&run=dpo")
    assert names == ["dpo", "qrpo", "dpo"]


@pytest.mark.parametrize(
    "target",
    [
        "/run/dpo/../../secret.html",
        "/run/dpo/../../../secret.html",
        "/run/dpo/%2e%2e/%2e%2e/%2e%2e/secret.html",
        "/run/dpo/..%2f..%2f..%2fsecret.html",
        "/run/dpo/..%5c..%5c..%5csecret.html",
        "/run/dpo/%252e%252e/%252e%252e/%252e%252e/secret.html",
        "/run/../../secret.html",
        "/run/..%2F..%2F/secret.html",
        "/run/%2e%2e/secret.html",
        "/run/./dpo/",
        "/run//etc/passwd",
        "//etc/passwd",
        "/secret.html",
        "/run/dpo/reports/linked.html",
        "/run/dpo/elsewhere/secret.html",
        "/run/linked/secret.html",
        "/run/dpo/reports/01-filter.html%00",
        "/run/dpo/%00",
        "/run/dpo/parameters.yaml",
        "/run/dpo/results.json",
        "/run/dpo/reports",
        "/run/dpo/reports/",
        "/run/dpo/reports/01-filter.html/",
        "/run/nothing/",
        "/compare?run=..%2f..&run=dpo",
    ],
)
def test_no_request_reaches_what_is_not_a_page_of_a_run(folder: Path, browser: Browser, target: str) -> None:
    run = folder / "runs" / "dpo"
    (run / "reports" / "linked.html").symlink_to(folder.parent / "secret.html")
    (run / "elsewhere").symlink_to(folder.parent)
    outside = folder.parent / "outside"
    (outside / "logs").mkdir(parents=True)
    (outside / "pipeline.yaml").write_text("")
    (outside / "secret.html").write_text(SECRET)
    (folder / "runs" / "linked").symlink_to(outside)
    status, text, _ = browser.ask(target)
    assert status in (400, 404)
    assert SECRET not in text and "root:" not in text
    assert Page(text).loaded == []


def test_an_output_that_lies_elsewhere_is_not_read(folder: Path, browser: Browser) -> None:
    file = folder / "runs" / "dpo" / "results.json"
    content = json.loads(file.read_text())
    for output in content["outputs"]:
        elsewhere = folder.parent / "elsewhere" / output["task"]
        elsewhere.parent.mkdir(exist_ok=True)
        (folder / "runs" / "dpo" / output["path"]).rename(elsewhere)
        output["path"] = f"../../../elsewhere/{output['task']}"
    file.write_text(json.dumps(content))
    assert browser.ask("/run/dpo/lineage")[0] == 404
    assert (
        "tell a"
        not in browser.page("/compare?run=dpo&run=qrpo").partition("qrpo</h3>")[0].partition("dpo</h3>")[2]
    )


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost@evil", "10.0.0.1"]
)
def test_pages_of_another_name_read_nothing_here(browser: Browser, host: str) -> None:
    status, text, _ = browser.ask("/", host=host)
    assert status == 403 and "dpo" not in text


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST"])
def test_this_machine_goes_by_its_names(browser: Browser, host: str) -> None:
    assert browser.ask("/", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(folder: Path, browser: Browser, method: str) -> None:
    before = sorted(folder.rglob("*"))
    status, _, headers = browser.ask("/run/dpo/", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert sorted(folder.rglob("*")) == before


def test_answers_forbid_requests_framing_and_reading_by_others(browser: Browser) -> None:
    for target in ("/", "/run/dpo/", "/nothing"):
        _, _, headers = browser.ask(target)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
    assert "sandbox allow-scripts" in browser.ask("/run/dpo/")[2]["Content-Security-Policy"]
    status, text, headers = browser.ask("/", method="HEAD")
    assert status == 200 and text == "" and int(headers["Content-Length"]) > 1000


def test_mistakes_are_told_on_a_page(browser: Browser) -> None:
    assert "expected 2 to 8 runs" in browser.ask("/compare?run=dpo")[1]
    assert browser.ask("/compare")[0] == 400
    status, text, _ = browser.ask("/compare?run=dpo&run=%3Cscript%3Ealert(1)%3C/script%3E")
    assert status == 404 and "<script>alert" not in text
    assert browser.ask("http://[::1/x")[0] == 400


def test_a_run_under_way_is_shown_as_it_stands(folder: Path, browser: Browser) -> None:
    run = folder / "runs" / "qrpo"
    task = {
        "title": "train <b>",
        "state": "running",
        "seconds": 12.0,
        "detail": "3/40 steps",
        "log": "001-train.log",
    }
    (run / "progress.json").write_text(json.dumps({"tasks": [task], "left": 90.0}))
    steps = [f"train: step {i}, loss {1 / i:.4g}, learning rate {i}e-06" for i in range(1, 6)]
    (run / "logs" / "1" / "001-train.log").write_text(
        "\n".join(["    [KFP Executor 2026] Got executor_input:", "    {", "    }", *steps])
    )
    (run / "results.json").unlink()
    with (run / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = browser.page("/run/qrpo/")
        page = Page(text)
        assert ["train <b>", "running", "12.0 s", "3/40 steps"] in page.rows
        assert page.charts == ["train: loss", "train: learning rate"]
        assert "About 1 min 30 s left" in page.text and "step 5, loss 0.2" in page.text
        assert "connect-src 'self'" in text and 'id="renew"' in text
        assert "running" in browser.page("/")
    assert 'id="renew"' not in browser.page("/run/qrpo/now")


def test_folders_of_output_folders_are_shown_by_path(tmp_path: Path, make_dataset: MakeDataset) -> None:
    for name in ("first", "second"):
        add_run(tmp_path / "runs" / name, "x", make_dataset, aligned={"a": 1.0})
    with Server(tmp_path / "runs", 0) as server:
        text = server.site.reply("/").body.decode()
        assert "/run/first%2Fx/" in text and "/run/second%2Fx/" in text
        assert server.site.reply("/run/first%2Fx/").status == 200
        assert server.site.reply("/compare?run=first%2Fx&run=second%2Fx").status == 200


def test_a_state_that_is_not_whole_is_none(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"tasks": [{}], "left": 1}', '{"tasks": 3, "left": 1}'):
        (tmp_path / "progress.json").write_text(text)
        assert read_state(tmp_path / "progress.json") == {"tasks": [], "left": 0.0}


def test_curves_are_drawn_of_what_is_told_by_step() -> None:
    drawn = list(step_charts(["train: step 1, loss 0.5, grad norm 1e-05", "noise", "train: step x, loss 1"]))
    assert [Page(chart).charts for chart in drawn] == [["train: loss"], ["train: grad norm"]]


def test_the_command_says_where_and_refuses_a_port_that_is_taken(folder: Path, browser: Browser) -> None:
    run = CliRunner().invoke(main, ["ui", str(folder), "--port", str(browser.port), "--no-open"])
    assert run.exit_code == 2 and "expected a free port" in run.output
    run = CliRunner().invoke(main, ["ui", str(folder / "nothing")])
    assert run.exit_code == 1 and "no such folder" in run.output
