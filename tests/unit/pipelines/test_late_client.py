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
heavy = {"kfp.client", "kubernetes", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
WHOLE = """
import kubealign_pipelines.resources, os
assert "_KFP_RUNTIME" not in os.environ
import kfp
assert kfp.Client.__name__ == "Client" and kfp.components.load_component_from_file and kfp.dsl.pipeline
from kfp import kubernetes as of_kfp
import kubernetes
assert of_kfp.node_affinity.client.V1Pod is kubernetes.client.V1Pod, "what it holds is the client, late"
try:
    kfp.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""


def run(program: str) -> tuple[int, str]:
    """Exit code, and what was written beside the output."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_compiling_imports_no_client() -> None:
    code, errors = run(COMPILE)
    assert code == 0, errors


def test_kfp_is_whole_for_whoever_asks() -> None:
    code, errors = run(WHOLE)
    assert code == 0, errors
