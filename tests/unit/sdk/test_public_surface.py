"""``kubealign.__all__`` is the public surface, and importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kubealign


def test_every_public_name_is_there() -> None:
    assert kubealign.__all__ == sorted(kubealign.__all__)
    for name in kubealign.__all__:
        assert getattr(kubealign, name).__doc__, name
    with pytest.raises(AttributeError, match="'nothing'"):
        kubealign.nothing  # noqa: B018


def test_help_loads_no_library_of_models_or_data() -> None:
    program = (
        "import sys\nfrom kubealign.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'pyarrow', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lineage" in done.stdout
