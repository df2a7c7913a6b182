"""Texts of others, as terminals, logs and errors show them."""

import io
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from kubealign.cli.console import PlainConsole
from kubealign.cli.main import main
from kubealign.local.watcher import Watcher, reason_of
from kubealign_components.printable import for_people, has_secret, printable, redacted

TITLE = "\x1b]0;owned\x07"
CLEAR = "\x1b[2J"
PASTE = "\x1b]52;c;cm0gLXJm\x1b\\"


@given(st.text())
def test_nothing_that_is_shown_moves_a_cursor_or_turns_the_writing(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E for c in shown)
    assert printable(shown) == shown
    shown.encode()  # no halves of pairs are left


@pytest.mark.parametrize("text", ["plain", "tab\there\nand there", "naïve 日本語 👩‍👩‍👧 فارسی", "C:\\x1b"])
def test_what_people_write_stays(text: str) -> None:
    assert for_people(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:TOPSECRET@bucket/a and on", "s3://…@bucket/a and on"),
        ("https://:pass@host/x", "https://…@host/x"),
        ("https://host/x?a=1&X-Amz-Signature=abc123&b=2", "https://host/x?a=1&X-Amz-Signature=…&b=2"),
        ("token hf_" + "a" * 30 + ".", "token …."),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_secrets_of_known_forms_are_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert has_secret(text) == (text != shown)
    assert not has_secret(shown) or "=…" in shown


def test_secrets_of_the_environment_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "correct-horse")
    monkeypatch.setenv("A_PASSWORD", "of-a-file\n")
    assert for_people("Bearer of-a-file, and " + repr("of-a-file\n")) == "Bearer …, and '…\\n'"
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("OTHER_PASSWORD", "short")
    monkeypatch.setenv("HARMLESS", "a-long-word-of-no-secret")
    text = "the server said correct-horse-battery, short and a-long-word-of-no-secret"
    assert redacted(text) == "the server said …, short and a-long-word-of-no-secret"


def test_tables_and_markup_show_control_characters() -> None:
    written = io.StringIO()
    console = PlainConsole(file=written, force_terminal=True, color_system="standard", width=100)
    table = Table(title=f"of {CLEAR}")
    table.add_column("a")
    table.add_row(f"x{TITLE}y")
    console.print(table)
    console.print(f"[bold]row[/] {PASTE}", soft_wrap=True)
    shown = written.getvalue()
    assert "x\\x1b]0;owned\\x07y" in shown
    for evil in (TITLE, CLEAR, PASTE):
        assert evil not in shown
    assert "\x1b[1mrow" in shown  # what the console itself says of style is let be
    widths = {len(line) for line in shown.splitlines() if line.startswith(("┏", "└"))}
    assert len(widths) == 1


def test_errors_of_commands_show_control_characters() -> None:
    result = CliRunner().invoke(main, ["show", f"/nowhere/{CLEAR}"])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "\\x1b[2J" in result.output


def test_errors_of_commands_show_no_password() -> None:
    result = CliRunner().invoke(main, ["show", "elsewhere://KEY:TOPSECRET@bucket/rows"])
    assert result.exit_code != 0
    assert "elsewhere" in result.output
    assert "TOPSECRET" not in result.output


def test_logs_and_reasons_of_a_local_run_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    watcher = Watcher(tmp_path, on_event=lambda run: None, on_line=lambda run, line: None)

    def log(message: str) -> None:
        watcher.filter(logging.LogRecord("kfp", logging.INFO, "", 0, message, (), None))

    log("Executing task 'rewards'")
    watcher.stream.write(
        f"kubealign_components.errors.EngineError: f says {TITLE} and wJalrXUtnFEMI, mend it\n"
    )
    log("Task 'rewards' finished with status FAILURE")
    assert reason_of(watcher.runs[0]) == "f says \\x1b]0;owned\\x07 and …, mend it"
    text = watcher.runs[0].log.read_text()
    assert "\x1b" not in text
    assert "wJalrXUtnFEMI" not in text
