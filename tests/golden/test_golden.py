"""Compiled pipelines and the table of stages are what is under version control."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from golden.update import COMPILED, STAGES, TABLE_OF_STAGES, compiled, kept, table_of_stages, with_table
from kubealign_pipelines import PIPELINES


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_pipeline_is_the_golden_one(name: str) -> None:
    assert compiled(name) == kept(name), "run `make golden` and look at the difference"


def test_the_table_of_stages_is_up_to_date() -> None:
    text = TABLE_OF_STAGES.read_text()
    assert with_table(text, table_of_stages()) == text, "run `make golden`"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_same_files(stage: str) -> None:
    folder = TABLE_OF_STAGES.parent / "kubealign_components" / stage
    files = {path.name for path in folder.iterdir()}
    assert files >= {"__init__.py", "stage.py", "component.py"}
    assert (folder / "__init__.py").read_text() == ""


def test_no_stage_is_without_resources() -> None:
    components = TABLE_OF_STAGES.parent / "kubealign_components"
    assert {path.parent.name for path in components.glob("*/component.py")} == set(STAGES)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_compiling_takes_under_three_seconds_and_no_model_library(pipeline: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from kubealign.cli.main import main\n"
        f"main(['compile', {pipeline!r}, '-o', {str(tmp_path / 'p.yaml')!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets', 'deepspeed', 'peft', 'accelerate', 'trl'}\n"
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: what is measured is the work, not what else this machine does.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 3
