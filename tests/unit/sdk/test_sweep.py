"""A sweep before it runs: what --grid says, what a check refuses, and what an estimate counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kfp_server_api import V2beta1Run

from kubealign.cli.main import main
from kubealign.cluster.outputs import StoredOutput, find_output
from kubealign.estimate.formulas import SHAPES
from kubealign.estimate.stages import Assumptions, estimate
from kubealign.runfile import RunFile, read_run
from kubealign_components.data.choice_rows import CHOICE
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION, MODEL, ROWS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.checking.rungs import MOST
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.offline_alignment import RULES
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.workflow_size import LIMIT, workflow_size
from support.compiled import compile_ir
from support.tiny import build_tiny_model

GIVEN: dict[str, Any] = {
    "policy": "org/model",
    "sources": [{"name": "a", "uri": "org/data"}],
    "reward_functions": ["brevity"],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"pipeline": "offline_alignment", "parameters": GIVEN}))
    return path


def told(variants: object, **given: object) -> list[str]:
    values = {**GIVEN, **given, "variants": variants}
    report = check_run("offline_alignment", values, CompileSettings(), complete=False)
    return [f"{finding.name}: {finding.expected}" for finding in report.findings]


def test_a_grid_makes_all_combinations(file: Path) -> None:
    grids = ["train_beta=0.05,0.1", "train_objective=dpo,ipo", "select_pairs_per_prompt=2"]
    run = read_run([file], grids=grids).usable()
    assert run.parameters["variants"] == [
        {"train": {"beta": beta, "objective": objective}, "select": {"pairs_per_prompt": 2}}
        for beta in (0.05, 0.1)
        for objective in ("dpo", "ipo")
    ]
    nested = read_run([file], grids=["evaluate_judge_max_length=512"]).usable()
    assert nested.parameters["variants"] == [{"evaluate": {"judge": {"max_length": 512}}}]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("sample_n=4,8", "sample is done once for all variants, and would be done again for each value"),
        ("train_bta=1", "did you mean train_beta?"),
        ("beta=1,2", "such as train_beta"),
        ("train_beta", "name=value,value with values in YAML"),
        ("train_beta=0.1,fast", "expected a number"),
        ("train_beta=[", "name=value,value with values in YAML"),
        ("train_adapter=lora", "logprobs, which is done once, works with train_adapter too"),
        ("mix_seed=1,2", "seed is one for all stages"),
        ("train_beta=0.1,0.1", "each variant once"),
        ("select_strategy=all,best_worst", "a strategy that makes pairs"),
        ("evaluate_max_new_tokens=8", "expected 1024, with which the reference completions are sampled"),
        ("evaluate_model_weight=0.5,1", "one value for all variants"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_where_it_was_written(file: Path, grid: str, words: str) -> None:
    done = CliRunner().invoke(main, ["compile", "-f", str(file), "--grid", grid, "-o", "no.yaml"])
    assert done.exit_code == 2
    assert words in done.output
    assert f"--grid {grid.partition('=')[0]}" in done.output or f"--grid='{grid}'" in done.output


def test_one_setting_is_swept_once_and_from_one_place(file: Path) -> None:
    twice = ["--grid", "train_beta=0.1", "--grid", "train_beta=0.2"]
    done = CliRunner().invoke(main, ["compile", "-f", str(file), *twice])
    assert "each setting once" in done.output
    for inner in ("max_new_tokens=8,16", "temperature=1"):
        nested = ["evaluate_sampling_options={top_p: 0.5},{top_p: 1}", f"evaluate_{inner}"]
        for grids in (nested, nested[::-1]):
            [refused] = read_run([file], grids=grids).document.findings
            assert "none inside of another" in refused.expected
            assert refused.value == grids[1]
    both = ["--set", "variants=[{train: {beta: 0.3}}]", "--grid", "train_beta=0.1"]
    done = CliRunner().invoke(main, ["compile", "-f", str(file), *both])
    assert "those of one of the two" in done.output
    done = CliRunner().invoke(main, ["sweep", "-f", str(file)])
    assert done.exit_code == 2
    assert "give --grid" in done.output


def test_a_grid_that_is_too_large_is_not_multiplied_out(file: Path) -> None:
    values = ",".join(map(str, range(10_000)))
    run = read_run([file], grids=[f"{name}={values}" for name in ("train_seed", "mix_seed", "select_seed")])
    [refused] = run.document.findings
    assert refused.expected == f"at most {MOST} variants; these values make {10_000**3}"


def test_a_grid_leaves_parameters_that_are_none_as_they_are(file: Path) -> None:
    file.write_text("pipeline: offline_alignment\nparameters: [policy]\n")
    done = CliRunner().invoke(main, ["compile", "-f", str(file), "--grid", "train_beta=0.1,0.2"])
    assert done.exit_code == 2
    assert "expected a mapping" in done.output


def test_every_variant_is_held_to_the_rules_of_a_run_by_itself() -> None:
    assert told([{"train": {"beta": 0.2}}, {}]) == []
    assert told([{"train": {"beta": -1}}]) == told([{"train": {"beta": -1}}, {"train": {"beta": 0.1}}])
    [text] = told([{"train": {"beta": 0.1}}, {"train": {"beta": 7.0}}])
    assert text.startswith("variants[1].train.beta: outside of what dpo is usually run with")
    [text] = told([{}, {"select": {"strategy": "all"}}])
    assert text.startswith("variants[1].select.strategy: a strategy that makes pairs")
    assert told([{"select": {"strategy": "all"}, "train": {"objective": "qrpo", "beta": 0.1}}]) == []
    [text] = told([{"train": {"bta": 0.1}}])
    assert text == "variants[0].train.bta: a setting of train; did you mean beta?"


def test_both_policies_are_sampled_and_rewarded_alike() -> None:
    """What `evaluate` would refuse when the model is trained is refused before anything runs."""
    [text] = told([], evaluate_options={"sampling": {"temperature": 0.3}})
    assert text.startswith("evaluate_options.sampling.temperature: 1.0, with which the reference completions")
    [text] = told([{}, {"evaluate": {"sampling": {"n": 4}}}])
    assert text.startswith("variants[1].evaluate.sampling.n: 10, with which")
    own, common = {"evaluate": {"sampling": {"n": 4}}}, {"evaluate_n": 3, "evaluate_sampling_options": {}}
    texts = told([{}, own], **common)
    assert [text.partition(":")[0] for text in texts] == ["evaluate_n", "variants[1].evaluate.sampling.n"]
    [text] = told([], evaluate_options={"reward": {"functions": ["kubealign_components.rewards:other"]}})
    assert text.startswith("evaluate_options.reward.functions: ")
    alike = {"sampling": {"memory_fraction": 0.5, "dtype": "bfloat16"}, "reward": {"over_length": "drop"}}
    assert told([], sample_options={"sampling": {"temperature": 0.3}}, evaluate_options=alike) == []
    labelled = {"sample_n": 0, "select_strategy": "labels"}
    assert told([], **labelled, evaluate_options={"sampling": {"n": 4}}) == []


def test_what_is_no_list_of_variants_is_told() -> None:
    assert any(text.startswith("variants: a list") for text in told({"train": {}}))
    assert any("variants[0]: a mapping by stage" in text for text in told([3]))
    assert any("variants[0].train: a mapping of settings" in text for text in told([{"train": 3}]))
    assert any(f"at most {MOST}" in text for text in told([{"train": {"seed": n}} for n in range(MOST + 1)]))
    assert any("none without a reward" in text for text in told([{}], sample_n=0, reward_functions=[]))
    selects = [{"select": {"strategy": "random_pairs"}}]
    assert any(text.startswith("logprobs_order: before") for text in told(selects, logprobs_order="after"))
    assert any(text.startswith("choose_max_kl: a positive") for text in told([{}], choose_max_kl=-1.0))


def test_no_variant_ends_the_sweep_for_the_others() -> None:
    for gate in ({"min_gain": 0.0}, {"require": ["gain"]}):
        [text] = [text for text in told([{}], evaluate_options=gate) if "none in a sweep" in text]
        assert text.startswith(f"evaluate_options.{next(iter(gate))}: ")
        [text] = told([{}, {"train": {"beta": 0.2}, "evaluate": gate}])
        assert text.startswith(f"variants[1].evaluate.{next(iter(gate))}: none in a sweep")
    assert told([{}], choose_min_gain=0.0) == []


def test_a_variant_that_says_what_all_have_is_one_of_them() -> None:
    once = "each variant once; with all defaults this is variants[0]"
    assert told([{"train": {"beta": 0.2}}, {}], train_beta=0.2) == [f"variants[1]: {once}"]
    assert told([{"train": {"beta": 0.1}}, {}]) == [f"variants[1]: {once}"], "which is the default"
    rates = [{"train": {"learning_rate": rate}} for rate in (1e-6, 2e-6, 1e-6)]
    assert told(rates) == [f"variants[2]: {once}"]
    batches = [{"train": {"micro_batch_tokens": tokens}} for tokens in (2048, 4096)]
    assert told(batches) == [f"variants[1]: {once}"], "no result depends on it"
    for data in ({"training_uris": ["gs://a/earlier"]}, {"withdrawn": "gs://a/withdrawn.json"}):
        assert told([{"mix": data}, {}]) == [], "which a recipe knows by what they hold"
    assert not any(
        once in text for text in told([{"train": {"bta": 1}}, {"train": {"bat": 1}}, {"x": {}}, 3])
    )


def test_variants_that_train_one_model_are_told() -> None:
    few = {"evaluate": {"max_prompts": 64}}
    [text] = told([{"train": {"beta": 0.2}}, {}, {"train": {"beta": 0.2}, **few}])
    assert text.startswith("variants[2]: trains the model of variants[0] again")
    assert told([few, {}]) == [], "the loop begins behind the training"


def test_the_seed_and_the_work_prefix_of_the_choice_have_one_way_in() -> None:
    variants = [{"train": {"beta": 0.2}}, {}]
    for name, one, other in (("seed", 1, 3), ("work", "/a", "/b")):
        for given in ({f"choose_{name}": other}, {"choose_options": {name: other}}):
            [text] = told(variants, **{name: one}, **given)
            assert text.endswith(f"nothing here: it is the parameter {name}; give it there, and once")


def test_a_limit_on_the_kl_asks_for_its_estimate() -> None:
    unestimated = {"evaluate": {"kl_prompts": 0}}
    [text] = told([{}, unestimated], choose_max_kl=1.0)
    assert text.startswith("variants[1].evaluate.kl_prompts: 1 or more, as choose_max_kl asks for the KL")
    [text] = told([{}], choose_max_kl=1.0, sample_engine="fake")
    assert text.startswith("sample_engine: vllm or transformers")
    assert told([{}, unestimated]) == told([{}], choose_max_kl=1.0) == []


def test_what_a_variant_names_is_looked_at_wherever_it_stands(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(100)))
    given = {**GIVEN, "policy": str(build_tiny_model(tmp_path / "m")), "sources": [{"uri": str(source)}]}
    missing = {"functions": ["/no/such.py:f"]}
    variants: list[dict[str, Any]] = [
        {},
        {"train": {"batch_size": 100_000}},
        {"evaluate": {"judge": {"judge": "/no/such"}}},
        {"evaluate": {"held_out_reward": missing}},
        {"evaluate": {"held_out_reward": missing, "max_prompts": 8}},
    ]
    values = {**given, "work": str(tmp_path), "validation_fraction": 0.5, "variants": variants}
    report = check_run("offline_alignment", values, CompileSettings(), here=True)
    assert [finding.name for finding in report.errors] == [
        "variants[1].train.batch_size",
        "variants[2].evaluate.judge.judge",
        "variants[3].evaluate.held_out_reward.functions[0]",
        "variants[4].evaluate.held_out_reward.functions[0]",
    ]


def test_variants_that_take_the_room_of_chunks_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    variants = [{"select": {"seed": seed}} for seed in range(2)]
    settings = CompileSettings(max_chunks=100)
    compile_pipeline(
        "offline_alignment", tmp_path / "a.yaml", settings, parameters={**GIVEN, "variants": variants}
    )
    [text] = caplog.messages
    assert text.startswith("2 variants leave room for ") and "not 100" in text
    caplog.clear()
    settings = CompileSettings(max_chunks=2)
    compile_pipeline(
        "offline_alignment", tmp_path / "b.yaml", settings, parameters={**GIVEN, "variants": variants}
    )
    assert not caplog.messages


def test_a_form_may_change_variants_but_not_where_they_begin() -> None:
    compiled = {**GIVEN, "variants": [{"train": {"beta": 0.3}}, {"train": {"beta": 0.2}}]}
    shape = RULES.shape(compiled)

    def in_pod(variants: object) -> list[str]:
        values = {**compiled, "variants": variants}
        report = check_run("offline_alignment", values, CompileSettings(), here=True, shape=shape)
        return [f"{f.name}: {f.expected}" for f in report.errors if f.name.startswith("variants")]

    assert in_pod([{"train": {"beta": 0.3}}, {"train": {"objective": "ipo"}}]) == []
    assert in_pod([{"train": {"beta": 0.3}}]) == []
    [text] = in_pod([{"train": {"beta": beta}} for beta in (0.1, 0.2, 0.3)])
    assert text == "variants: at most 2, with which the pipeline was compiled; compile it with these", (
        "its chunks have been counted for no more"
    )
    assert any("differ first in the stage" in text for text in in_pod([{"select": {"seed": 1}}]))
    assert any("differ first in the stage" in text for text in in_pod([]))


def test_the_first_swept_stage_and_all_after_it_are_in_the_loop(tmp_path: Path) -> None:
    for first, inside in (
        ("select", {"select", "mix", "train", "evaluate"}),
        ("mix", {"mix", "train", "evaluate"}),
        ("train", {"train", "evaluate"}),
        ("evaluate", {"evaluate"}),
    ):
        given = {**GIVEN, "variants": [{first: {}}, {"evaluate": {}}]}
        graph = compile_pipeline("offline_alignment", tmp_path / "p.yaml", parameters=given)
        assert {task.function for task in graph.tasks.values() if task.each == "variants"} == inside


def test_as_many_variants_as_are_allowed_fit_into_a_run(tmp_path: Path) -> None:
    variants = [{"select": {"seed": number}} for number in range(MOST)]
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters={**GIVEN, "variants": variants})
    tasks = spec["root"]["dag"]["tasks"].values()
    inputs = [task.get("inputs", {}).get("parameters", {}) for task in tasks]
    [most] = {int(one["max_chunks"]["runtimeValue"]["constant"]) for one in inputs if "max_chunks" in one}
    assert workflow_size(spec, most, variants=MOST).total <= LIMIT


def test_an_estimate_counts_every_variant_by_its_own_settings() -> None:
    def hours(**given: object) -> dict[str, float]:
        run = RunFile(parameters={**GIVEN, **given})
        stages = estimate(run, SHAPES["llama-8b"], Assumptions())
        return {stage.stage: stage.hours for stage in stages}

    alone = hours(logprobs_order="before")
    swept = hours(variants=[{"train": {"epochs": 1.0}}, {"train": {"epochs": 3.0}}], logprobs_order="before")
    assert swept["train"] == pytest.approx(4 * alone["train"])
    assert swept["evaluate"] == pytest.approx(2 * alone["evaluate"])
    assert {n: swept[n] for n in ("sample", "logprobs")} == {n: alone[n] for n in ("sample", "logprobs")}


class StoredSweep:
    """What runs of a sweep left in an object store: a model, a page and an evaluation of each beta."""

    def __init__(self, folder: Path) -> None:
        variants = [{"train": {"beta": beta}} for beta in (0.1, 0.2, 0.3)]
        self.spec, _ = compile_ir(folder, "offline_alignment", parameters={**GIVEN, "variants": variants})
        self.root = folder / "root"
        self.evaluations: dict[float, Dataset] = {}

    def execution(self, run: str, task: str, name: str) -> Path:
        return self.root / "offline-alignment" / run / task / name

    def train(self, run: str, *betas: float) -> None:
        for beta in betas:
            parents: dict[str, Dataset] = {}
            for task, output, schema in (("train", "model", MODEL), ("evaluate", "dataset", EVALUATION)):
                at = self.execution(run, task, f"execution-{beta}")
                made = derive(task, 1, {"beta": beta}, inputs=parents)
                with DatasetWriter(str(at / output), schema, made) as writer:
                    writer.commit(Stats())
                (at / "page").write_text(f"{task} {beta}")
                parents = {"model": Dataset.open(str(at / output), allow_empty=True)}
            self.evaluations[beta] = parents["model"]

    def choose(self, run: str, chosen: float | None) -> None:
        made = derive("choose", 1, {}, inputs={str(beta): one for beta, one in self.evaluations.items()})
        empty = dict.fromkeys(ROWS[CHOICE].names)
        with DatasetWriter(str(self.execution(run, "choose", "1") / "dataset"), CHOICE, made) as writer:
            for beta, one in self.evaluations.items():
                names = {"evaluation": one.manifest.fingerprint}
                writer.write_rows([empty | names | {"chosen": beta == chosen}])
            writer.commit(Stats(rows_in=3, rows_out=3))

    def find(self, name: str) -> StoredOutput:
        return find_output(V2beta1Run(run_id="r"), self.spec, str(self.root), name, lambda: ())


@pytest.fixture
def stored(tmp_path: Path) -> StoredSweep:
    return StoredSweep(tmp_path)


@pytest.mark.parametrize("name", ["model", "train.model", "evaluate.dataset", "evaluate.page"])
def test_what_a_sweep_on_a_cluster_made_is_the_chosen_variants(stored: StoredSweep, name: str) -> None:
    stored.train("r", 0.1, 0.2, 0.3)
    stored.choose("r", 0.2)
    output = stored.find(name)
    assert (output.execution, output.name) == ("execution-0.2", name.rpartition(".")[2])
    assert stored.find("choose.dataset").execution == "1"


def test_a_chosen_variant_that_the_cache_answered_is_that_of_the_run_that_made_it(
    stored: StoredSweep,
) -> None:
    stored.train("before", 0.1, 0.2)
    stored.train("r", 0.3)
    stored.choose("r", 0.2)
    for name in ("model", "evaluate.dataset"):
        output = stored.find(name)
        assert output.execution == "execution-0.2"
        assert "/before/" in output.uri


def test_the_model_of_rounds_is_the_chosen_ones(tmp_path: Path) -> None:
    parameters = {**GIVEN, "rounds": 2, "rounds_stop": "no_gain"}
    rounds = StoredSweep(tmp_path)
    rounds.spec, _ = compile_ir(tmp_path / "rounds", "offline_alignment", parameters=parameters)
    models = []
    for task in ("train", "train-round-2"):
        at = rounds.execution("r", task, "1") / "model"
        with DatasetWriter(str(at), MODEL, derive("train", 1, {"of": task})) as writer:
            models.append(writer.commit(Stats()))
    with pytest.raises(ConfigError, match=r"train-round-2\.model, train\.model"):
        rounds.find("model")
    empty = dict.fromkeys(ROWS[CHOICE].names)
    with DatasetWriter(
        str(rounds.execution("r", "choose", "1") / "dataset"), CHOICE, derive("choose", 1, {})
    ) as writer:
        for number, model in enumerate(models):
            names = {"model_fingerprint": model.manifest.fingerprint, "chosen": not number}
            writer.write_rows([empty | names])
        writer.commit(Stats(rows_in=2, rows_out=2))
    assert rounds.find("model").task == "train"


@pytest.mark.parametrize("chose", [True, False])
def test_without_a_chosen_variant_none_is_taken_for_it(stored: StoredSweep, chose: bool) -> None:
    stored.train("r", 0.1, 0.3)
    if chose:
        stored.choose("r", None)
    models = [str(stored.execution("r", "train", f"execution-{beta}") / "model") for beta in (0.1, 0.3)]
    for name in ("model", "train.model"):
        with pytest.raises(ConfigError) as refused:
            stored.find(name)
        assert all(uri in str(refused.value) for uri in models)
    assert stored.find(models[0]).uri == models[0]
