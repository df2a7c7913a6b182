"""Pipelines and stages of a user's own: what is understood, and what is refused with file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from kfp import dsl

from kubealign.cli.main import main
from kubealign.cluster.kube import Kubernetes
from kubealign.doctor.diagnosis import Subject
from kubealign.runfile import load_run_file
from kubealign.schema import run_file_schema
from kubealign_components.errors import ConfigError, Unexpected
from kubealign_components.own_stage import packed, read_stage
from kubealign_components.raised import where
from kubealign_pipelines import build, rules
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.own_stages import own_stage
from kubealign_pipelines.resources import CompileSettings
from support.datasets import MakeDataset
from support.documents import PAGE, leave_own_pipeline, shown_file
from support.tiny import prompt_row

STAGE = """\
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Config:
    {field}

def run(config, *, rows, output):
    pass
"""
SOUND = STAGE.format(field="a: int = 1")
PIPE = """\
from kfp import dsl

@dsl.container_component
def in_container():
    return dsl.ContainerSpec(image="busybox", command=["true"])

@dsl.component(base_image="busybox", install_kfp_package=False)
def in_python(options: dict) -> int:
    return len(options)

@dsl.component(base_image="busybox", install_kfp_package=False)
def reading(rows: dsl.Input[dsl.Dataset]):
    pass

def pipe(place):
    {before}

    @dsl.pipeline(name={name!r})
    def pipeline(sample_options: dict = {{}}, reward_functions: dict = {{}}, reward_model: str = "none"):
        {task}

    return pipeline
"""
IMPORTING = 'reading(rows=dsl.importer("gs://b/rows", dsl.Dataset).output)'
"""A pipeline of parts as KFP has them."""


def leave_pipe(
    folder: Path, *, name: str = "pipe", task: str = "in_python(options=sample_options)", before: str = "pass"
) -> str:
    """The file of a pipeline in ``folder``, which is made."""
    folder.mkdir(exist_ok=True)
    path = folder / "pipe.py"
    path.write_text(PIPE.format(name=name, task=task, before=before))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, a run file, and some prompts."""
    leave_own_pipeline(tmp_path, tiny_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kubealign(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_the_page_shows_twenty_lines_and_forty() -> None:
    for name, most in (("my_pipeline.py", 20), ("short_prompts.py", 40)):
        lines = [line for line in shown_file(PAGE, name).splitlines()[1:] if line.strip()]
        assert len(lines) <= most


def test_its_graph_is_compiled_with_settings_and_the_module(folder: Path) -> None:
    done = kubealign("compile", "-f", "mine.yaml", "-o", "compiled.yaml")
    assert done.exit_code == 0, done.output
    assert "my-pipeline, 7 tasks" in done.output
    spec, platform = yaml.safe_load_all((folder / "compiled.yaml").read_text())
    executors = spec["deploymentSpec"]["executors"]
    own = executors["exec-short-prompts"]["container"]
    assert own["resources"]["resourceMemoryLimit"] == "3Gi"
    assert packed((folder / "short_prompts.py").read_text()) in "".join(own["command"] + own["args"])
    assert "exec-short-prompts" in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_its_settings_have_names_and_are_checked(folder: Path) -> None:
    assert kubealign("check", "-f", "mine.yaml", "--here").exit_code == 0
    shown = kubealign("params", "my_pipeline.py", "--all")
    assert "sample_top_p" in shown.output
    assert "Longest prompt that stays, in words." in shown.output
    for given, expected in {
        "most_words=0": "most_words=0: expected a positive number",
        "most_word=3": "did you mean most_words",
        "sample_n=-1": "sample_n=-1",
        "sample_top_k=1": "sample_top_k",
        "zzz=1": f"`kubealign params {folder / 'my_pipeline.py'} --all` lists all settings",
        "compile.stages.short_promts.memory=1Gi": "short_promts",
        "policy=nowhere": "policy='nowhere'",
    }.items():
        refused = kubealign("check", "-f", "mine.yaml", "--here", "--set", given)
        assert refused.exit_code == 2, given
        assert expected in refused.output
        assert "Traceback" not in refused.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "a Python file that is there"),
        ("def pipe(:\n", "SyntaxError: invalid syntax, line 1"),
        ("import json\n\njson.loads('{')\n", "line 3"),
        ("import nowhere_at_all\n", "No module named 'nowhere_at_all', line 1"),
        ("x = 1\n", "a function pipe(place)"),
        ("def pipe(place):\n    return 1\n", "a pipeline that pipe(place) returns"),
        (
            "def pipe(place):\n    x = 1\n    return x.task\n",
            "no attribute 'task', line 3",
        ),
        ("RULES = 1\ndef pipe(place):\n    pass\n", "kubealign_pipelines.Rules"),
    ],
)
def test_a_file_that_makes_no_pipeline_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "pipe.py"
    if text is not None:
        path.write_text(text)
    done = kubealign("compile", str(path), "-o", str(tmp_path / "out.yaml"))
    assert done.exit_code == 2, done.output
    assert expected in done.output
    assert "Traceback" not in done.output


def test_a_file_that_changes_is_read_again(folder: Path) -> None:
    path = folder / "my_pipeline.py"
    assert "most_words" in graph_of(build(str(path)), str(path)).parameters
    path.write_text(path.read_text().replace("most_words: int = 6", "most_words: int = 7, unused: str = ''"))
    assert graph_of(build(str(path)), str(path)).parameters["most_words"].default == 7
    assert rules(str(path)).choices == ()
    with pytest.raises(ConfigError, match="one of offline_alignment, salmon"):
        rules("nothing_that_is_there")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("filter.py", SOUND, "like no stage that there is"),
        ("two words.py", SOUND, "called like a function"),
        ("own.txt", "", "a Python file"),
        ("own.py", "x = 1\n", "Config, a dataclass"),
        (
            "own.py",
            SOUND.replace("def run", "def ran"),
            "run(config, *, dataset, output)",
        ),
        (
            "own.py",
            SOUND.replace("*, rows,", "rows, *,"),
            "inputs and output by name",
        ),
        ("own.py", STAGE.format(field="rows: int = 1"), "settings with other names"),
        ("own.py", STAGE.format(field="a: set = 1"), "own.Config.a"),
        ("own.py", "1 / 0\n", "ZeroDivisionError: division by zero, line 1"),
        ("own.py", STAGE.format(field="options: str = ''"), "than options"),
        ("own.py", STAGE.format(field="a: str = 'of {{name}}'"), "text without {{"),
        ("own.py", f"# {Random(0).randbytes(50_000).hex()}\n", "a module of at most 65536 bytes"),
    ],
)
def test_a_module_that_is_no_stage_is_refused(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        own_stage(tmp_path / name)
    assert expected in str(refused.value)


def test_a_module_is_as_large_as_it_is_packed(tmp_path: Path) -> None:
    (tmp_path / "large_stage.py").write_text(f"# {'é' * 70_000}\n{SOUND}")
    carried = own_stage(tmp_path / "large_stage.py").component_spec.implementation.container
    assert len("".join(carried.command)) < 5_000


def test_a_module_may_say_what_argo_would_take_for_a_variable(
    tmp_path: Path, make_dataset: MakeDataset
) -> None:
    raising = '"""Of {{ é }}."""\n    raise RuntimeError("{{ é }}")'
    (tmp_path / "braces.py").write_text(SOUND.replace("pass", raising))
    component = own_stage(tmp_path / "braces.py")
    container = component.component_spec.implementation.container
    carried = "".join(map(str, [*container.command, *container.args]))
    assert "{{" not in carried.replace("{{$}}", "")
    made = make_dataset([prompt_row("p")])
    outputs = {
        "dataset": dsl.Dataset(uri=str(tmp_path / "out")),
        "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        "report": dsl.HTML(uri=str(tmp_path / "page")),
    }
    with pytest.raises(Unexpected, match=r"braces failed: RuntimeError: \{\{ é \}\}, line 9"):
        component.python_func(rows=dsl.Dataset(uri=made.uri), **outputs)


def test_settings_of_every_type_are_parameters(tmp_path: Path) -> None:
    fields = """a: str
    b: bool = True
    c: float = 0.5
    d: tuple[int, ...] = (1, 2)
    e: dict[str, int] = __import__("dataclasses").field(default_factory=dict)
    f: int = 3"""
    (tmp_path / "typed_stage.py").write_text(STAGE.format(field=fields))
    inputs = own_stage(tmp_path / "typed_stage.py").component_spec.inputs
    shown = {name: (one.type, one.default) for name, one in inputs.items() if name != "rows"}
    assert shown == {
        "a": ("String", None),
        "b": ("Boolean", True),
        "c": ("Float", 0.5),
        "d": ("List", [1, 2]),
        "e": ("Dict", {}),
        "f": ("Integer", 3),
    }


def test_what_a_stage_raises_is_told_with_its_line() -> None:
    stage = read_stage(SOUND.replace("pass", "{}['x']"), "broken")
    with pytest.raises(KeyError) as raised:
        stage.run(None, rows=None, output="")
    assert where(raised.value, "broken.py") == "KeyError: 'x', line 8"


@pytest.mark.parametrize("task", ["in_container()", IMPORTING])
def test_a_task_that_is_not_of_python_is_named(tmp_path: Path, task: str) -> None:
    path = leave_pipe(tmp_path, task=task)
    for command in (["check", path], ["compile", path, "-o", str(tmp_path / "out.yaml")], ["params", path]):
        done = kubealign(*command)
        assert done.exit_code == 2, done.output
        assert f"'pipe: {'importer' if 'importer' in task else 'in-container'}'" in done.output
        assert "expected tasks of Python" in done.output
        assert "Traceback" not in done.output


LOOPING = """\
from kfp import dsl

@dsl.component(base_image="busybox", install_kfp_package=False)
def listed() -> list:
    return [1, 2]

@dsl.component(base_image="busybox", install_kfp_package=False)
def one(item: int):
    pass

def pipe(place):
    @dsl.pipeline(name="pipe")
    def pipeline(given: list = [1, 2]):
        with dsl.ParallelFor({items}) as item:
            one(item=item)

    return pipeline
"""


@pytest.mark.parametrize("items", ["given", "[1, 2]", "listed().output"])
def test_a_loop_over_whatever_there_is_is_compiled(tmp_path: Path, items: str) -> None:
    path = tmp_path / "pipe.py"
    path.write_text(LOOPING.format(items=items))
    done = kubealign("compile", str(path), "-o", str(tmp_path / "out.yaml"))
    assert done.exit_code == 0, done.output


def test_a_component_of_ones_own_may_call_an_argument_options(tmp_path: Path) -> None:
    path = leave_pipe(tmp_path)
    done = kubealign("compile", path, "-o", str(tmp_path / "out.yaml"), "--set", "sample_options={a: 1}")
    assert done.exit_code == 0, done.output
    assert kubealign("params", path, "--all").exit_code == 0


def test_rules_are_those_of_the_file_whatever_its_pipeline_is_called(tmp_path: Path) -> None:
    rules_of = "from kubealign_pipelines import Choice, Rules\nRULES = Rules(choices=(Choice(name={0!r}, "
    rules_of += "values=('a',), meaning=''),))\n"
    paths = [leave_pipe(tmp_path / name, name="offline-alignment") for name in ("one", "two", "none")]
    for path, choice in zip(paths, ("first", "second")):
        Path(path).write_text(rules_of.format(choice) + Path(path).read_text())
    graphs = [graph_of(build(path), path) for path in paths]
    assert [[choice.name for choice in graph.rules.choices] for graph in graphs] == [
        ["first"],
        ["second"],
        [],
    ]
    assert [graph.rules.one_of for graph in graphs] == [()] * 3


def test_a_parameter_called_variants_is_no_sweep_in_a_pipeline_without_that_rule(tmp_path: Path) -> None:
    path = Path(leave_pipe(tmp_path, task="in_python(options=variants)"))
    text = path.read_text().replace("options: dict)", "options: list)")
    path.write_text(text.replace("sample_options: dict = {}", "variants: list = [], choose_size: int = 1"))
    for shape in (None, {}):
        values = {"variants": [{"size": 1}]}
        assert check_run(str(path), values, CompileSettings(), here=True, shape=shape).findings == []


def test_a_function_may_import_what_lies_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "beside_the_pipe.py").write_text("NAME = 'late'\n")
    path = leave_pipe(tmp_path, before="import beside_the_pipe")
    before = list(sys.path)
    assert graph_of(build(path), path).name == "pipe"
    assert sys.path == before


def test_schema_and_doctor_know_the_stages_of_ones_own(folder: Path) -> None:
    schema = run_file_schema("my_pipeline.py")
    jsonschema.validate(yaml.safe_load((folder / "mine.yaml").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"compile": {"stages": {"short_promts": {"memory": "8Gi"}}}}, schema)
    stages = dict(Subject(Kubernetes(), load_run_file(folder / "mine.yaml")).stages)
    assert stages.keys() == {"import_prompts", "filter", "sample", "merge", "rewards", "short_prompts"}
    assert stages["short_prompts"].memory == "3Gi"


def test_a_run_without_artifacts_and_with_other_rewards_ends_well(tmp_path: Path) -> None:
    path = leave_pipe(tmp_path)
    words = ["run", path, "--set", "reward_functions={a: 1}", "-o", str(tmp_path / "runs"), "--name", "one"]
    done = subprocess.run(
        [sys.executable, "-m", "kubealign.cli.main", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Summary: " in done.stdout and "Made:" not in done.stdout
    assert (tmp_path / "runs" / "runs" / "one" / "summary.html").is_file()
