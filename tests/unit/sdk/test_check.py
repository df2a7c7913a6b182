"""``kubealign check``, ``params --all`` and ``schema``, on run files that ship and on others."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import kubealign_pipelines
from kubealign.cli.main import main
from kubealign.runfile import read_run
from kubealign.schema import run_file_schema
from kubealign.yaml_source import read_yaml
from kubealign_components.store import register
from kubealign_components.store.faulty import SCHEME, FaultyStore
from kubealign_pipelines import PIPELINES
from support.source_files import write_pairs
from support.tiny import CHATML

SHIPPED = sorted((Path(kubealign_pipelines.__file__).parent / "params").glob("*.yaml"))
GENERATION = "{% generation %}{{ message['content'] }}{% endgeneration %}"
GIVEN_ON_THE_COMMAND_LINE = {
    "demo": ["policy", "sources[0].uri"],
    "preferences": ["policy", "sources[0].uri"],
    "salmon_demo": ["policy", "pmp_sources[0].uri"],
}


def kubealign(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path) -> Path:
    """A sound run file of a local model and local data."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""pipeline: offline_alignment
parameters:
  policy: {tiny_model}
  sources: [{{uri: {write_pairs(tmp_path / "prompts.jsonl", 60)}, name: mine}}]
  reward_functions: [kubealign_components.rewards.functions:brevity]
  sample_engine: transformers
  sample_max_new_tokens: 10
  filter_max_prompt_len: 1024
  validation_fraction: 0.3
  train_options: {{batch_size: 2}}
"""
    )
    return path


def test_a_sound_run_file_has_no_finding_and_its_first_rows_are_shown(run_file: Path) -> None:
    assert "prompt 1" not in kubealign("check", "-f", run_file, "--here", "--rows", "0").output
    done = kubealign("check", "-f", run_file, "--here")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "no errors, 0 warnings" in done.output
    assert done.output.count("prompt ") == 2
    assert "<|im_start|>|u|s|e|r" in done.output.replace("Ġ", "")


def test_what_of_a_source_is_not_read_is_told(run_file: Path) -> None:
    folder = run_file.parent / "rows"
    folder.mkdir()
    write_pairs(folder / "train.jsonl", 60)
    (folder / "more.jsonl").write_text('{"prompt": "Where?"}\n')
    rows = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([*rows, json.dumps({**json.loads(rows[0]), "margin": 2})]))
    done = kubealign(
        "check", "-f", run_file, "--here", "--rows", "0", "--set", f"sources=[{{uri: {folder}}}]"
    )
    told = " ".join(done.stderr.split())
    assert done.exit_code == 0
    assert "beside split train not read: more.jsonl" in told
    assert "of 61 rows read as preference: column_not_understood_margin 1" in told


def test_a_work_prefix_elsewhere_is_written_read_and_cleared(run_file: Path, tmp_path: Path) -> None:
    """Where the run is on this machine: who checks what a cluster runs may not be let in there."""
    faults = {1: "before"}
    store = FaultyStore(faults)
    register(SCHEME, lambda: store)
    line = ("check", "-f", run_file, "--set", f"work={SCHEME}://{tmp_path}/work")
    assert kubealign(*line, "--here").exit_code == 0
    assert store.writes == 1 and not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    refused = kubealign(*line, "--here")
    assert refused.exit_code == 2
    assert f"work='{SCHEME}://{tmp_path}/work': expected a prefix that can be written here (cannot" in (
        " ".join(refused.output.split())
    )
    assert kubealign(*line).exit_code == 0 and store.writes == 2


def test_a_held_out_reward_is_looked_at_as_the_first_one_is(run_file: Path) -> None:
    rewards = "{functions: [brevity, nowhere.py:reward], model: /no/such/model}"
    done = kubealign("check", "-f", run_file, "--here", "--set", f"evaluate_held_out_reward={rewards}")
    assert done.exit_code != 0
    assert "evaluate_held_out_reward.functions[1]='nowhere.py:reward'" in done.stderr.replace("\n", " ")
    assert "evaluate_held_out_reward.model='/no/such/model'" in done.stderr.replace("\n", " ")
    required = kubealign("check", "-f", run_file, "--here", "--set", "evaluate_require=[beyond_lenght]")
    assert required.exit_code != 0 and "did you mean beyond_length" in required.stderr.replace("\n", " ")


def test_a_judge_behind_an_endpoint_is_not_asked_before_the_run(run_file: Path) -> None:
    function = "[{{function: generative_judge, settings: {{{}: 'http://127.0.0.1:9/v1', model: judge}}}}]"
    for name in ("endpoint", "endpont"):
        given = f"reward_functions={function.format(name)}"
        done = kubealign("check", "-f", run_file, "--here", "--rows", "0", "--set", given)
        assert (done.exit_code == 0) == (name == "endpoint"), done.output
        assert ("endpont" in done.stderr) == (name == "endpont")


def test_a_model_is_looked_for_once(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached keeps a check waiting for some seconds each time that it is asked."""
    asked: list[str] = []

    def look(name: str, *_: object, **__: object) -> None:
        asked.append(name)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
    done = kubealign("check", "-f", run_file, "--set", "policy=org/unknown", "--rows", "1")
    assert done.exit_code == 0, done.output
    assert "could not be looked up" in done.output
    assert asked == ["org/unknown"]


def test_graph_and_tokenizer_are_built_once(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many stages have the policy, for its rows that are shown, and for the estimate."""
    built: list[str] = []

    def counted(module: str, name: str) -> None:
        whole = getattr(importlib.import_module(module), name)

        def count(*arguments: object) -> object:
            built.append(name)
            return whole(*arguments)

        monkeypatch.setattr(f"{module}.{name}", count)

    counted("kubealign_pipelines.checking.models", "TokenizerFiles")
    for module in ("kubealign_pipelines.checking.run", "kubealign.estimate.stages"):
        counted(module, "graph_of")
    assert kubealign("check", "-f", run_file).exit_code == 0
    assert sorted(built) == ["TokenizerFiles", "graph_of"]


def test_first_rows_are_the_tokens_that_filter_makes(
    run_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Under an own template, on a model without one: what a text spells of a control token is apart."""
    policy = tmp_path / "untemplated"
    shutil.copytree(tiny_model, policy)
    (policy / "chat_template.jinja").unlink()
    loud = CHATML.replace("message['role']", "message['role'] | upper").replace("assistant", "ASSISTANT")
    (tmp_path / "own.jinja").write_text(loud)
    row = {"prompt": "Say <|im_end|>", "chosen": "<|im_end|>", "rejected": "No."}
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps(row | {"prompt": f"{row['prompt']} {n}"}) + "\n" for n in range(60))
    )
    own = ("--set", f"policy={policy}", "--set", f"filter_options={{chat_template: {tmp_path}/own.jinja}}")
    done = kubealign("check", "-f", run_file, "--here", "--rows", "1", *own)
    assert done.exit_code == 0, done.output
    prompt, chosen, rejected = done.output.splitlines()[-4:-1]
    assert "|U|S|E|R|" in prompt and prompt.count("|<|im_end|>|") == 1
    assert chosen == "  chosen: <|||i|m|_|e|n|d|||>|<|im_end|>"
    assert rejected == "  rejected: N|o|.|<|im_end|>"


def test_a_template_that_only_pods_see_is_not_shown(run_file: Path) -> None:
    there = ("--set", "filter_options={chat_template: /only-there/own.jinja}")
    said = "filter_options.chat_template='/only-there/own.jinja': "
    for rows in (0, 2):
        done = kubealign("check", "-f", run_file, "--rows", rows, *there)
        assert done.exit_code == 0, done.output
        assert "prompt 1" not in done.output and "no errors, 1 warning" in done.output
        assert f"{said}a file with a chat template (Jinja); it was not found here" in done.output
    done = kubealign("check", "-f", run_file, "--here", *there)
    assert done.exit_code == 2 and f"{said}expected a file with a chat template" in done.output


def test_rows_are_shown_as_the_pinned_revision_has_them(
    run_file: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny"
    for revision, name in (("a" * 40, "USER"), ("b" * 40, "PINNED")):
        snapshot = repository / "snapshots" / revision
        shutil.copytree(tiny_model, snapshot)
        (snapshot / "chat_template.jinja").write_text(CHATML.replace("message['role']", f"'{name}'"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    policy = ("--set", "policy=org/tiny", "--rows", 1)
    assert "|U|S|E|R|" in kubealign("check", "-f", run_file, *policy).output
    pinned = kubealign("check", "-f", run_file, *policy, "--set", f"filter_options={{revision: {'b' * 40}}}")
    assert "|P|I|N|N|E|D|" in pinned.output, pinned.output


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (CHATML.replace("{{ message['content'] }}", GENERATION), ""),
        (CHATML.replace("message['content']", "message['content'][0]['text']"), ""),
        ("{{ raise_exception('no system') if messages[0].role != 'system' else '' }}" + CHATML, ""),
        ("hello", "it shows no text of the messages"),
        (CHATML.replace("add_generation_prompt", "false"), "has no generation prompt"),
    ],
    ids=["generation", "parts", "system", "empty", "no prompt"],
)  # fmt: skip
def test_templates_are_tried_as_the_stages_try_them(
    template: str, problem: str, run_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(tiny_model, policy)
    (policy / "chat_template.jinja").write_text(template)
    done = kubealign("check", "-f", run_file, "--here", "--set", f"policy={policy}")
    assert (done.exit_code, problem in done.output + done.stderr) == (2 if problem else 0, True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_run_files_pass_but_for_what_is_given_on_the_command_line(path: Path) -> None:
    done = kubealign("check", "-f", path, "--json")
    findings = json.loads(done.output)
    errors = [finding["setting"] for finding in findings if finding["level"] == "error"]
    assert errors == GIVEN_ON_THE_COMMAND_LINE.get(path.stem, [])
    assert done.exit_code == (2 if errors else 0)
    assert all(finding["line"] for finding in findings)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_run_files_compile_as_they_are(path: Path, tmp_path: Path) -> None:
    done = kubealign("compile", "-f", path, "-o", tmp_path / "p.yaml")
    assert done.exit_code == 0, done.output


def test_files_are_merged_in_order_and_assignments_stand_above_them(run_file: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("parameters:\n  sample_n: 5\n  train_options: {epochs: 2}\ncompile: {retries: 7}\n")
    run = read_run([run_file, over], "", ["train_epochs=3", "compile.retries=4", "sources.0.name=a"]).usable()
    assert run.parameters["sample_n"] == 5
    assert run.parameters["train_options"] == {"batch_size": 2, "epochs": 2}
    assert (run.parameters["train_epochs"], run.parameters["sources"][0]["name"]) == (3, "a")
    assert run.compile.retries == 4
    done = kubealign("check", "-f", run_file, "-f", over, "--set", "compile.parallelism=0")
    assert done.exit_code == 2
    assert f"{over}:3:27: train_options.epochs=2" in done.stderr
    assert "compile.parallelism=0: expected a positive number" in done.stderr


def test_whole_numbers_are_numbers_and_so_is_a_power_of_ten_without_a_point(
    run_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pipeline.yaml"
    numbers = ["--set", "train_epochs=3", "--set", "train_learning_rate=5e-7", "--set", "sample_n=4.0"]
    done = kubealign("compile", "-f", run_file, *numbers, "-o", out)
    assert done.exit_code == 0, done.output + done.stderr
    declared = next(yaml.safe_load_all(out.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert declared["train_epochs"]["defaultValue"] == 3.0
    assert isinstance(declared["train_epochs"]["defaultValue"], float)
    assert declared["train_learning_rate"]["defaultValue"] == 5e-7
    assert declared["sample_n"]["defaultValue"] == 4


def test_findings_end_a_command_with_2_and_leave_nothing(run_file: Path, tmp_path: Path) -> None:
    for command in ("run", "compile", "submit"):
        out = [] if command == "submit" else ["-o", tmp_path / "out.yaml"]
        done = kubealign(command, "-f", run_file, "--set", "sample_n=1", "--set", "train_beta=-1", *out)
        assert done.exit_code == 2, command
        assert "sample_n=1: expected 2 or more" in done.stderr
        assert "train_beta=-1.0: expected a positive number" in done.stderr
        assert not (tmp_path / "out.yaml").exists()


@pytest.mark.parametrize("place", ["file/run", "/proc/nothing/here"])
def test_a_place_that_cannot_be_written_is_one_line(run_file: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / place if not place.startswith("/") else Path(place)
    done = kubealign("compile", "-f", run_file, "-o", output / "pipeline.yaml")
    assert done.exit_code == 2
    assert done.stderr.startswith(
        f"Error: --output='{output / 'pipeline.yaml'}': expected a file in a folder "
    )
    assert len(done.stderr.splitlines()) == 1


def test_what_nobody_expected_keeps_its_traceback_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake of ours\nsecond line")

    monkeypatch.setattr("kubealign.schema.run_file_schema", broken)
    done = kubealign("schema", "salmon")
    assert done.exit_code == 1
    assert "schema stopped on RuntimeError: a mistake of ours; the traceback is in " in done.stderr
    log = Path(done.stderr.strip().rpartition(" ")[2])
    assert "in broken" in log.read_text()
    log.unlink()


def test_checking_takes_no_model_library(run_file: Path) -> None:
    program = (
        "import sys\nfrom kubealign.cli.main import main\n"
        f"main(['check', '-f', {str(run_file)!r}, '--here', '--rows', '1'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets'}\n"
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_setting_is_listed_with_its_meaning(pipeline: str) -> None:
    listed = json.loads(kubealign("params", pipeline, "--all", "--json").output)
    assert [one["name"] for one in listed if not one["meaning"]] == []
    names = {one["name"]: one for one in listed}
    adapter = names["train_adapter" if pipeline == "offline_alignment" else "reward_model_adapter"]
    assert adapter["choices"] == ["lora", "none", "qlora"]
    assert names["train_max_grad_norm"]["default"] == 100000.0
    assert names["train_schedule"]["choices"] == ["constant", "cosine", "linear"]
    assert names["train_schedule"]["place"] == "train_options.schedule"
    assert names["sources[].uri"]["required"]
    table = kubealign("params", pipeline, "--all").output
    assert "max_grad_norm" in table.replace("\n", "")


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return {pipeline: run_file_schema(pipeline) for pipeline in PIPELINES}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_run_files_are_valid_by_the_schema(path: Path, schemas: dict[str, Any]) -> None:
    values = read_yaml(path.read_text(), path.name).values
    jsonschema.Draft202012Validator.check_schema(schemas[values["pipeline"]])
    jsonschema.validate(values, schemas[values["pipeline"]])


@pytest.mark.parametrize(
    "change",
    [
        {"complie": {}},
        {"parameters": {"sample_temprature": 1.0}},
        {"parameters": {"sample_options": {"sampling": {"topp": 0.9}}}},
        {"parameters": {"sample_options": {"top_p": 0.9}}},
        {"parameters": {"train_options": {"batchsize": 8}}},
        {"parameters": {"sources": [{"url": "a", "name": "b"}]}},
        {"parameters": {"train_objective": "dpoo"}},
        {"parameters": {"sample_n": "three"}},
        {"parameters": {"sample_n": {"from": 4, "too": 16}}},
        {"parameters": {"logprobs_order": "befor"}},
        {"compile": {"stages": {"sampel": {"cpu": 1}}}},
        {"compile": {"stages": {"sample": {"memroy": "1Gi"}}}},
        {"local": {"runner": "podman"}},
    ],
    ids=str,
)
def test_misspelt_run_files_are_not(change: dict[str, Any], schemas: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"pipeline": "offline_alignment"} | change, schemas["offline_alignment"])


@pytest.mark.parametrize("n", [8, {"from": 4, "to": 16}, {"from": 4, "to": 16, "within": 0.1}], ids=str)
def test_a_number_and_a_range_of_samples_are_by_the_schema(n: object, schemas: dict[str, Any]) -> None:
    run = {"pipeline": "offline_alignment", "parameters": {"sample_n": n}}
    jsonschema.validate(run, schemas["offline_alignment"])


plain = st.recursive(
    st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text("abc:#- '\"\n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=5), plain, max_size=4))
def test_what_yaml_writes_is_read_back_with_a_mark_for_every_value(values: dict[str, Any]) -> None:
    document = read_yaml(yaml.safe_dump(values), "f")
    assert document.findings == []
    assert document.values == values
    assert all((name,) in document.marks for name in values)


def test_a_held_out_reward_with_a_part_of_the_first_one_is_refused(run_file: Path) -> None:
    rewards = "{functions: [{function: brevity, weight: 2}]}"
    settings = ("--set", "reward_functions=[brevity]", "--set", f"evaluate_held_out_reward={rewards}")
    done = kubealign("check", "-f", run_file, "--here", *settings)
    assert done.exit_code != 0
    assert "evaluate_held_out_reward='brevity': expected another reward" in done.stderr.replace("\n", " ")
