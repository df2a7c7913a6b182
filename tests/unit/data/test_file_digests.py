"""Digests of files are kept, and never those of other bytes."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from kubealign_components.data import file_digests
from kubealign_components.data.cache import CACHE
from kubealign_components.data.file_digests import kept_digest

LARGE = 2**20


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read; an empty cache, in which files count as settled at once."""
    read: list[Path] = []
    compute = file_digests.file_digest

    def counted(path: Path) -> str:
        read.append(path)
        return compute(path)

    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "file_digest", counted)
    monkeypatch.setattr(file_digests, "_SETTLED", -1.0)
    return read


def in_a_new_process(path: Path) -> str:
    file_digests._digest.cache_clear()
    return kept_digest(path)


def test_a_large_file_is_read_once(hashed: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * LARGE)
    (tmp_path / "link").symlink_to(path)
    expected = sha256(b"w" * LARGE).hexdigest()
    assert in_a_new_process(path) == in_a_new_process(path) == in_a_new_process(tmp_path / "link") == expected
    assert hashed == [path]


def test_other_bytes_have_their_own_digest_whatever_time_the_file_shows(
    hashed: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * LARGE)
    before, times = in_a_new_process(path), path.stat()
    path.write_bytes(b"v" * LARGE)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert in_a_new_process(path) == sha256(b"v" * LARGE).hexdigest() != before
    assert len(hashed) == 2


def test_what_has_just_changed_is_read_again(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of whole seconds a second change may not be seen."""
    monkeypatch.setattr(file_digests, "_SETTLED", 60.0)
    path = tmp_path / "weights"
    path.write_bytes(b"w" * LARGE)
    assert in_a_new_process(path) == in_a_new_process(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("kept", ["", "0" * 63, "z"])
def test_a_damaged_or_unwritable_cache_does_no_harm(
    hashed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * LARGE)
    expected = in_a_new_process(path)
    for file in (tmp_path / "cache" / file_digests.KIND).iterdir():
        file.write_text(kept)
    assert in_a_new_process(path) == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "cache"))
    assert in_a_new_process(path) == expected
    assert len(hashed) == 3
