"""Compiling imports no client of a server, and kfp is whole for whoever asks."""

from __future__ import annotations

import subprocess
import sys

COMPILE = """
import kubealign.cli.main
import sys
from pathlib import Path
import tempfile
from kubealign_pipelines.compiler import compile_pipeline
compile_pipeline("salmon", Path(tempfile.mkdtemp()) / "p.yaml")
heavy = {"kfp.client", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
WHOLE = """
import kubealign_pipelines, os
assert "_KFP_RUNTIME" not in os.environ
import kfp
assert kfp.Client.__name__ == "Client" and kfp.components.load_component_from_file and kfp.dsl.pipeline
try:
    kfp.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiling_imports_no_client() -> None:
    run(COMPILE)


def test_kfp_is_whole_for_whoever_asks() -> None:
    run(WHOLE)
