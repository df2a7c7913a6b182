"""Files of the command line and of reports are whole or not there, however their writing ends."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kubealign_components.whole_file import whole_file, write_whole

RUN = """
pipeline: offline_alignment
parameters: {policy: org/m, sources: [{name: a, uri: org/d}], reward_functions: [brevity], work: s3://b/w}
"""


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half of")
        raise RuntimeError
    assert path.read_text() == "before"
    write_whole(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_and_links_are_honoured(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    before = os.umask(0o077)
    try:
        write_whole(link, "x")
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_one_line_and_leaves_no_cut_pipeline(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    ended = subprocess.run(
        [sys.executable, "-m", "kubealign.cli.main", "compile", "-f", "run.yaml", "-o", "pipeline.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
        timeout=120,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
