"""``kubealign init`` and ``completion``, and the examples in every help."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from kubealign.cli.examples import EXAMPLES, walk
from kubealign.cli.main import main
from kubealign.runfile import load_run_file
from kubealign.starter import TARGETS, TASKS, Starter
from kubealign_pipelines.checking.across import USUAL_BETA
from support.source_files import write_pairs

BUCKET = ("--policy", "org/model", "--source", "org/data", "--work", "gs://bucket/work")


def init(*words: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, words)])


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs in the folder where the user stands."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 200)
    return Path("pairs.jsonl")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("output", ["run.yaml", "elsewhere/run.yaml"])
def test_the_file_of_a_laptop_passes_the_check(
    source: Path, tiny_model: Path, task: str, output: str
) -> None:
    done = init("--task", task, "--policy", tiny_model, "--source", source, "-o", output)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(output), done.output
    checked = CliRunner().invoke(main, ["check", "-f", output, "--here", "--rows", "1"])
    assert checked.exit_code == 0, checked.output
    assert "prompt 1:" in checked.output
    text = Path(output).read_text()
    assert f"kubealign check -f {output} " in text and f"kubealign run -f {output} " in text
    assert done.output.endswith(f"kubealign run -f {output} starts it\n")
    parameters = load_run_file(Path(output)).parameters
    assert ("reward_functions" in parameters) is (task == "rewards")


@pytest.mark.parametrize("task", TASKS)
def test_the_file_of_a_cluster_passes_the_check(tmp_path: Path, task: str) -> None:
    path = tmp_path / "run.yaml"
    done = init("--for", "cluster", "--task", task, *BUCKET, "--registry", "ghcr.io/me", "-o", path)
    assert done.exit_code == 0, done.output
    for command in (["check", "-f", path], ["compile", "-f", path, "-o", tmp_path / "pipeline.yaml"]):
        tried = CliRunner().invoke(main, list(map(str, command)))
        assert tried.exit_code == 0, tried.output
    assert load_run_file(path).compile.registry == "ghcr.io/me"


@pytest.mark.parametrize(
    ("reward", "by_model"),
    [
        ("gs://bucket/rm", True),
        ("s3://bucket/rm:v2", True),
        ("./models/rm:v2", True),
        ("org/reward-model", True),
        ("brevity", False),
        ("rewards.py:short", False),
        ("/of/mine/rewards.py:short", False),
        ("package.rewards:short", False),
    ],
)
def test_a_reward_is_a_model_unless_it_is_named_as_a_function(reward: str, by_model: bool) -> None:
    starter = Starter(policy="org/model", source="org/data", reward=reward)
    parameters = yaml.safe_load(starter.text(Path("run.yaml")))["parameters"]
    given = {name: parameters[name] for name in ("reward_model", "reward_functions") if name in parameters}
    assert given == ({"reward_model": reward} if by_model else {"reward_functions": [reward]})


def test_every_line_of_settings_is_explained() -> None:
    for target in TARGETS:
        for task in TASKS:
            starter = Starter(
                target=target, task=task, policy="org/model", source="org/data", work="gs://b/w"
            )
            text = starter.text(Path("run.yaml"))
            assert max(map(len, text.splitlines())) <= 120
            assert text.count("#") > 12
            assert "dpo with a beta of {:g} to {:g},".format(*USUAL_BETA["dpo"]) in text
            assert yaml.safe_load(text)["pipeline"] == "offline_alignment"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--source=''"),
        (["--source", "a", "--for", "moon"], "'moon'"),
        (["--source", "a", "--for", "cluster"], "--work=''"),
        (["--source", "./pairs.jsonl", "--for", "cluster", "--work", "gs://b/w"], "no path of this machine"),
        (["--source", "a", "-o", "pairs.jsonl"], "expected a new file"),
        (["--source", "a", "--task", "pairs", "--reward", "brevity"], "--reward='brevity'"),
        (["--source", "a", "--work", "gs://b/w"], "--work='gs://b/w'"),
        (["--source", "a", "--registry", "ghcr.io/me"], "--registry='ghcr.io/me'"),
        (["--for", "cluster", *BUCKET, "--reward", "./reward_model"], "no path of this machine"),
    ],
)
def test_what_it_cannot_write_is_said_and_nothing_is_asked(
    source: Path, words: list[str], expected: str
) -> None:
    done = init(*words)
    assert done.exit_code == 2
    assert expected in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in Path().iterdir()] == [source.name]


def test_what_the_check_finds_is_shown(source: Path) -> None:
    done = init("--policy", "./nowhere", "--source", source)
    assert done.exit_code == 0
    assert "run.yaml:10:11: policy=" in done.output
    assert done.output.endswith("; 1 error must be put right before kubealign run -f run.yaml starts it\n")


def test_on_a_terminal_it_asks_for_what_was_not_said(source: Path, tiny_model: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kubealign.cli.main", "init", "--policy", str(tiny_model)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, f"\n\n{source}\nbrevity\n".encode())
    out, asked = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, asked
    assert "Where will it run (laptop, cluster) [laptop]" in asked
    assert "Chat model" not in asked
    assert "run.yaml is written" in out
    assert load_run_file(Path("run.yaml")).parameters["reward_functions"] == ["brevity"]


@given(st.text(min_size=1), st.one_of(st.text(), st.sampled_from(["yes", "1e3", "null", "0x10"])))
def test_whatever_is_answered_is_what_the_file_says(policy: str, registry: str) -> None:
    starter = Starter(
        target="cluster", policy=f"gs://{policy}", source="org/a", work="gs://b", registry=registry
    )
    read = yaml.safe_load(starter.text(Path("run.yaml")))
    assert read["parameters"]["policy"] == starter.policy
    assert read["compile"]["registry"] == registry


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_KUBEALIGN_COMPLETE" in done.output


def test_bash_completes_commands_and_pipelines(tmp_path: Path) -> None:
    program = tmp_path / "kubealign"
    program.write_text(f"#!{sys.executable}\nfrom kubealign.cli.main import main\n\nmain()\n")
    program.chmod(0o755)
    script = CliRunner().invoke(main, ["completion", "bash"]).output
    for typed, expected in (("com", "completion"), ("run off", "offline_alignment"), ("run --na", "--name")):
        words = f"kubealign {typed}".split(" ")
        ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _kubealign_completion kubealign"
        text = f'{script}\n{ask}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
        done = subprocess.run(
            ["bash", "-c", text],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        assert expected in done.stdout.split(), done.stderr


def test_every_help_shows_examples_of_its_command() -> None:
    listed = dict(walk(main))
    assert listed.keys() == EXAMPLES.keys()
    for words in listed:
        shown = CliRunner().invoke(main, [*words.split(), "--help"]).output
        assert "Examples:" in shown
        for example in EXAMPLES[words]:
            assert example in shown
            assert example.startswith((f"kubealign {words}", "#"))
