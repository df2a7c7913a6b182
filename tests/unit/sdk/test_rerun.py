"""Run files from manifests alone: the settings in them make the same dataset again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from kubealign.rerun import run_file_of
from kubealign.run_paths import send_code
from kubealign_components.clean_pmp.stage import CleanPmpConfig
from kubealign_components.clean_pmp.stage import run as clean_pmp
from kubealign_components.config import from_mapping, from_parameters
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.origins import note_origin
from kubealign_components.data.schemas import COMPLETIONS, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.engines.judge import JudgeSpec, PairJudge
from kubealign_components.engines.own_code import find_code
from kubealign_components.engines.rewards import (
    Rewarder,
    RewardFunctionSpec,
    RewardSpec,
    chosen_principles,
    function_params,
    principles_identity,
    reward_params,
)
from kubealign_components.errors import ConfigError
from kubealign_components.images import IMAGE_VARIABLE
from kubealign_components.import_prompts.stage import ImportConfig
from kubealign_components.import_prompts.stage import run as import_prompts
from kubealign_components.judge.stage import JudgeConfig
from kubealign_components.judge.stage import run as judge_run
from kubealign_components.rank.stage import RankConfig
from kubealign_components.rank.stage import run as rank_run
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as rewards_run
from kubealign_components.rl_prompts.stage import RlPromptsConfig
from kubealign_components.rl_prompts.stage import run as rl_prompts
from support.tiny import prompt_row

OWN = """
schema: kubealign.principles/v1
name: own
version: 1
principles:
  - {name: Brief, positive: The response is brief., negative: The response is long.}
"""
POLICY = "a" * 64


def manifest_of(provenance: object) -> Manifest:
    kept = ("fingerprint", "recipe", "slug", "origins")
    return Manifest(schema=TOKENIZED, rows=0, shards=(), **{name: getattr(provenance, name) for name in kept})


def parameters_of(manifest: Manifest) -> Mapping[str, object]:
    parameters = run_file_of(manifest)["parameters"]
    assert isinstance(parameters, Mapping)
    return json.loads(json.dumps(parameters))


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_imported_prompts_are_told_with_every_setting(tmp_path: Path) -> None:
    uri = write(tmp_path / "own.jsonl", [{"frage": f"question {i}"} for i in range(20)])
    source = {"name": "s", "uri": uri, "columns": {"frage": "prompt"}, "max_rows": 5}
    given = {"sources": [source], "seed": 4, "options": {"max_rows": 3}}
    import_prompts(from_parameters(ImportConfig, given, "import"), output=str(tmp_path / "first"))
    manifest = Dataset.open(str(tmp_path / "first")).manifest
    told = parameters_of(manifest)
    again = {"sources": told["sources"], "seed": told["seed"], "options": told["import_options"]}
    import_prompts(from_parameters(ImportConfig, again, "import"), output=str(tmp_path / "again"))
    assert Dataset.open(str(tmp_path / "again")).manifest.fingerprint == manifest.fingerprint


def test_human_preferences_are_told_as_salmon_has_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"{i}, gladly.", "rejected": "No."} for i in range(20)]
    source = {"name": "human", "uri": write(tmp_path / "pairs.jsonl", rows), "max_rows": 9}
    given = {"sources": [source], "max_rows": 7, "seed": 2, "options": {"validation_fraction": 0.4}}
    clean_pmp(from_parameters(CleanPmpConfig, given, "clean_pmp"), output=str(tmp_path / "first"))
    manifest = Dataset.open(str(tmp_path / "first")).manifest
    told = parameters_of(manifest)
    assert run_file_of(manifest)["pipeline"] == "salmon"
    again = {
        "sources": told["pmp_sources"],
        "max_rows": told["pmp_max_rows"],
        "seed": told["seed"],
        "options": told["pmp_options"],
    }
    clean_pmp(from_parameters(CleanPmpConfig, again, "clean_pmp"), output=str(tmp_path / "again"))
    assert Dataset.open(str(tmp_path / "again")).manifest.fingerprint == manifest.fingerprint


def test_prompts_for_reinforcement_learning_are_told(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} and {n + 1}?", "answer": str(2 * n + 1)} for n in range(12)]
    source = {"name": "sums", "uri": write(tmp_path / "sums.jsonl", rows), "kind": "any"}
    given = {
        "policy": str(tiny_model),
        "sources": [source | {"question_type": "reasoning"}],
        "max_tokens": 99,
        "options": {"min_tokens": 3},
    }
    rl_prompts(from_parameters(RlPromptsConfig, given, "rl_prompts"), output=str(tmp_path / "first"))
    manifest = Dataset.open(str(tmp_path / "first")).manifest
    told = parameters_of(manifest)
    again = {
        "policy": str(tiny_model),
        "sources": told["rl_sources"],
        "max_tokens": told["rl_prompts_max_tokens"],
        "options": told["rl_prompts_options"],
    }
    rl_prompts(from_parameters(RlPromptsConfig, again, "rl_prompts"), output=str(tmp_path / "again"))
    assert Dataset.open(str(tmp_path / "again")).manifest.fingerprint == manifest.fingerprint


def filtered(**params: object) -> Manifest:
    settings = {"max_seq_len": 512, "max_prompt_len": 128, "min_completions": 0, **params}
    return manifest_of(derive("filter", 1, settings, models={"policy": {"digest": POLICY}}))


def test_every_stage_is_told_the_commit_of_a_policy_from_the_hub() -> None:
    note_origin(POLICY, "org/policy", "c0ffee")
    told = parameters_of(filtered())
    assert told["policy"] == "org/policy"
    assert told["filter_options"] == {"revision": "c0ffee"}


def test_a_template_is_told_by_its_place() -> None:
    text = "{{ messages }}"
    note_origin(POLICY, "/models/policy")
    note_origin(digest(text), "/own/template.jinja")
    options = parameters_of(filtered(chat_template=text))["filter_options"]
    assert options == {"chat_template": "/own/template.jinja"}


def test_principles_of_ones_own_are_told_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    shown = principles_identity(chosen_principles(str(tmp_path / "own.yaml")))
    origins = derive("test", 1, {"own_principles": shown}).origins
    places = [place["uri"] for origin in origins.values() for place in origin["places"].values()]
    assert str(tmp_path / "own.yaml") in places


def test_two_trainings_of_one_run_must_agree(tmp_path: Path) -> None:
    """Settings that the pipeline gives to both of its stages cannot be two."""
    note_origin(POLICY, "/models/policy")
    models = {"policy": {"digest": POLICY}}
    made = []
    for name, date in (("a", "2024-01-01"), ("b", "2025-01-01")):
        params = {"max_seq_len": 512, "max_prompt_len": 128, "min_completions": 0, "chat_template_date": date}
        source = derive("rl_prompts" if name == "a" else "clean_prompts", 1, {"sources": []})
        with DatasetWriter(str(tmp_path / f"source-{name}"), TOKENIZED, source) as writer:
            inputs = {"prompts": writer.commit(Stats())}
        step = derive("filter", 1, params, inputs=inputs, models=models)
        with DatasetWriter(str(tmp_path / name), TOKENIZED, step) as writer:
            made.append(writer.commit(Stats()))
    both = derive("train_ppo", 1, {}, inputs={"prompts": made[0], "other": made[1]}, models=models)
    with pytest.raises(ConfigError, match="two steps have chat_template_date"):
        run_file_of(manifest_of(both))


def test_a_recipe_of_no_pipeline_is_refused() -> None:
    with pytest.raises(ConfigError, match="'invented' that is none of that pipeline's"):
        run_file_of(manifest_of(derive("invented", 1, {})))


def test_a_manifest_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_VARIABLE, "registry/data@sha256:1")
    made = derive("test", 1, {})
    assert made.origins[made.fingerprint]["versions"]["image"] == "registry/data@sha256:1"
    monkeypatch.delenv(IMAGE_VARIABLE)
    other = derive("test", 1, {})
    assert "image" not in other.origins[other.fingerprint]["versions"]
    assert other.fingerprint == made.fingerprint


def test_null_keeps_a_default() -> None:
    """Recipes say null of a setting that decided nothing; given back, it is no mistake."""
    source = {"uri": "prompts.jsonl", "name": "s", "subset": None, "max_rows": None}
    config = from_mapping(ImportConfig, {"sources": [source], "seed": None}, "import_prompts")
    assert (config.seed, config.sources[0].max_rows) == (0, 0)


def test_null_is_no_value_where_there_is_no_default() -> None:
    with pytest.raises(ConfigError, match="sources"):
        from_mapping(ImportConfig, {"sources": None}, "import_prompts")


def rewarded(folder: Path, spec: RewardSpec) -> Manifest:
    """Of completions that came with a source, rewarded in two chunks."""
    source = derive("import_prompts", 1, {"sources": []})
    with DatasetWriter(str(folder / "prompts"), TOKENIZED, source) as writer:
        writer.write_rows([prompt_row(f"question {i}", ["yes", "a longer one"]) for i in range(4)])
        prompts = writer.commit(Stats(rows_in=4, rows_out=4))
    chunks = plan(prompts, work=str(folder / "work"), chunks=2)
    parts = [rewards_run(RewardsConfig(reward=spec), chunk=chunk) for chunk in chunks]
    return merge(parts, chunks, str(folder / "rewarded")).manifest


def test_a_ranking_is_told_with_its_judge_and_principles(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    with DatasetWriter(
        str(tmp_path / "prompts"), TOKENIZED, derive("import_prompts", 1, {"sources": []})
    ) as writer:
        writer.write_rows([prompt_row("question?", ["yes", "a longer one"])])
        prompts = writer.commit(Stats(rows_in=1, rows_out=1))

    def ranked(parameters: Mapping[str, object], name: str) -> Manifest:
        config = from_parameters(RankConfig, parameters, "rank")
        chunks = plan(prompts, work=str(tmp_path / name), chunks=1)
        parts = [rank_run(config, chunk=chunk) for chunk in chunks]
        return merge(parts, chunks, str(tmp_path / f"ranked-{name}")).manifest

    judge = {"principles": str(tmp_path / "own.yaml"), "max_length": 300}
    manifest = ranked({"judge": str(tiny_model), "options": {"judge": judge, "comparisons": 2}}, "first")
    told = parameters_of(manifest)
    again = ranked({"judge": told["rank_judge"], "options": told["rank_options"]}, "again")
    assert again.fingerprint == manifest.fingerprint


TWO_PRINCIPLES = OWN + "  - {name: Long, positive: The response is long., negative: The response is brief.}\n"


def judging(tmp_path: Path, own: Path, *principles: str) -> dict[str, object]:
    """A judge's settings: a function of ``own`` under each of ``principles``."""
    (tmp_path / "two.yaml").write_text(TWO_PRINCIPLES)
    functions = [
        {"function": f"{own}:short", "principle": name, "weight": 1.0 + i}
        for i, name in enumerate(principles)
    ]
    return {"principles": str(tmp_path / "two.yaml"), "functions": functions}


@pytest.mark.parametrize("principles", [["Brief"], ["Brief", "Long"]], ids=["beside a model", "alone"])
def test_functions_that_judge_are_told_by_their_place(
    tiny_model: Path, own: Path, tmp_path: Path, principles: list[str]
) -> None:
    source = derive("clean_prompts", 1, {"sources": []})
    with DatasetWriter(str(tmp_path / "answered"), COMPLETIONS, source) as writer:
        row = prompt_row("question?", ["yes, of course it is", "a longer one, for once"])
        for completion in row["completions"]:
            completion["reference"] = True
        writer.write_rows([row])
        answered = writer.commit(Stats(rows_in=1, rows_out=1))

    def judged(parameters: Mapping[str, object], name: str) -> Manifest:
        config = from_parameters(JudgeConfig, {"judge": str(tiny_model), **parameters}, "judge")
        chunks = plan(answered, work=str(tmp_path / name), chunks=1)
        parts = [judge_run(config, chunk=chunk) for chunk in chunks]
        return merge(parts, chunks, str(tmp_path / f"judged-{name}")).manifest

    manifest = judged({"options": judging(tmp_path, own, *principles)}, "first")
    told = parameters_of(manifest)
    again = judged({"principles": told["principles"], "options": told["judge_options"]}, "again")
    assert again.fingerprint == manifest.fingerprint


def compared(judge: PairJudge, ranking: PairJudge | None = None) -> Manifest:
    """An evaluation whose sides ``judge`` compared, after a ranking by another one."""
    note_origin(POLICY, "/models/policy")
    lengths = {"max_seq_len": 512, "max_prompt_len": 128, "min_completions": 0}
    step = derive("filter", 1, lengths, models={"policy": {"digest": POLICY}})
    if ranking is not None:
        ranked = {"judge": ranking.params, "weights": [1.0], "comparisons": 3.0, "resolved": 0.99}
        made = derive("rank", 1, ranked, models=ranking.models)
        step = dataclasses.replace(
            made, recipe=made.recipe | step.recipe, origins=made.origins | step.origins
        )
    params = {"sampling": {}, "reward": None, "judge": judge.params}
    last = derive("evaluate", 1, params, models=judge.models)
    both = {"recipe": last.recipe | step.recipe, "origins": last.origins | step.origins}
    return manifest_of(dataclasses.replace(last, **both))


def test_an_evaluation_that_functions_alone_judge_is_told(
    tiny_model: Path, own: Path, tmp_path: Path
) -> None:
    given = {"judge": str(tiny_model), **judging(tmp_path, own, "Brief", "Long")}
    with closing(PairJudge(from_mapping(JudgeSpec, given, "judge"))) as judge:
        told = parameters_of(compared(judge))["evaluate_options"]["judge"]
        assert told["judge"] == "/models/policy", "any will do"
        with closing(
            PairJudge(from_mapping(JudgeSpec, {**told, "judge": str(tiny_model)}, "judge"))
        ) as again:
            assert again.params == judge.params


def test_a_judge_behind_an_endpoint_is_told_by_its_settings(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_PRINCIPLES)
    principles = {"principles": str(tmp_path / "two.yaml")}
    given = {"judge": "some-judge", "endpoint": "http://judge:8000/v1", "answer_tokens": 99, **principles}
    with (
        closing(PairJudge(from_mapping(JudgeSpec, given, "judge"))) as ranking,
        closing(PairJudge(from_mapping(JudgeSpec, given, "judge"))) as same,
    ):
        told = parameters_of(compared(same, ranking))
        assert (told["rank_judge"], "evaluate_options" in told) == ("some-judge", False)
        again = from_mapping(
            JudgeSpec, {"judge": told["rank_judge"], **told["rank_options"]["judge"]}, "judge"
        )
        assert PairJudge(again).params == ranking.params


def test_what_an_evaluation_asks_otherwise_than_the_ranking_is_told(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_PRINCIPLES)
    given = {"judge": str(tiny_model), "principles": str(tmp_path / "two.yaml"), "max_length": 300}
    own = {"principle_names": ["Long"], "max_length": 400}
    with (
        closing(PairJudge(from_mapping(JudgeSpec, given, "judge"))) as ranking,
        closing(PairJudge(from_mapping(JudgeSpec, given | own, "judge"))) as judge,
        closing(PairJudge(from_mapping(JudgeSpec, given, "judge"))) as same,
    ):
        assert "evaluate_options" not in parameters_of(compared(same, ranking))
        told = parameters_of(compared(judge, ranking))
        assert told["rank_options"]["judge"]["max_length"] == 300
        differs = told["evaluate_options"]["judge"]
        assert {name: differs[name] for name in own} == own
        assert not differs.keys() - own.keys() - {"principles"}


@pytest.mark.parametrize("number", [2, 3])
def test_rounds_are_told_up_to_the_one_that_made_it(number: int) -> None:
    prompts = manifest_of(derive("next_round", 1, {"number": number}))
    assert parameters_of(prompts)["rounds"] == number
    params = {"sampling": {"n": 3}, "engine_versions": {}, "truncated": "drop", "round": number}
    sampled = manifest_of(derive("sample", 1, params, inputs={"prompts": Dataset("prompts", prompts)}))
    told = parameters_of(sampled)
    assert told["rounds"] == number and told["sample_truncated"] == "drop"
    assert "sample_options" not in told, "the round has its own seeds because it is a further one"


@pytest.mark.parametrize("folder", ["", "gs://bucket/tasks"])
def test_benchmarks_are_told_with_the_folder_of_their_tasks(folder: str) -> None:
    asked = {"tasks": ["capitals"], "limit": 50, "apply_chat_template": True, "seed": 4}
    measured = {"capitals": {"version": "1", "digest": digest([folder, "of its documents"])}}
    if folder:
        note_origin(digest(measured), folder)
    derived = derive("benchmark", 1, asked | {"version": 1, "lm_eval": "0.4.12", "measured": measured})
    told = parameters_of(manifest_of(derived))
    assert (told["benchmark_tasks"], told["seed"]) == (["capitals"], 4)
    where = {"task_folder": folder} if folder else {}
    assert told["benchmark_options"] == {"limit": 50, "apply_chat_template": True, **where}


def test_benchmarks_of_a_run_are_told_with_what_else_it_made() -> None:
    trained = Dataset("model", manifest_of(derive("train", 1, {"seed": 4, "beta": 0.2})))
    asked = {"tasks": ["capitals"], "limit": 50, "seed": 4, "version": 1, "lm_eval": "0.4.12", "measured": {}}
    measured = manifest_of(derive("benchmark", 1, asked, inputs={"model": trained}))
    told = run_file_of(trained.manifest, measured)["parameters"]
    assert told == {**run_file_of(trained.manifest)["parameters"], "benchmark_tasks": ["capitals"]} | {
        "benchmark_options": {"limit": 50}
    }
    judged = Dataset("pairs", manifest_of(derive("clean_pmp", 1, {"sources": [], "seed": 4})))
    by_principles = manifest_of(derive("benchmark", 1, asked, inputs={"model": judged}))
    assert run_file_of(by_principles)["pipeline"] == "salmon"
    assert parameters_of(by_principles)["benchmark_tasks"] == ["capitals"]


def test_the_choice_of_a_sweep_is_refused_for_what_it_is() -> None:
    params = {"rounds": 0, "reduction_factor": 3}
    with pytest.raises(ConfigError, match="choice among the variants of a sweep; name the model"):
        run_file_of(manifest_of(derive("choose", 1, params)))


@pytest.mark.parametrize("stage", ["draw_more", "join_draws"])
def test_a_run_whose_draws_were_a_range_is_refused_for_what_it_is(stage: str) -> None:
    with pytest.raises(ConfigError, match="this one's sample_n was a range"):
        run_file_of(manifest_of(derive(stage, 1, {"to": 8})))


def evaluated(folder: Path, spec: RewardSpec) -> Manifest:
    with closing(Rewarder(spec)) as rewarder:
        params = {"sampling": {}, "reward": reward_params(spec), "judge": None}
        return manifest_of(derive("evaluate", 1, params, models={"reward": rewarder.identity}))


def held_out(folder: Path, spec: RewardSpec) -> Manifest:
    """Compared by a second reward alone."""
    with closing(Rewarder(spec)) as rewarder:
        params = {"sampling": {}, "reward": None, "judge": None, "held_out_reward": reward_params(spec)}
        return manifest_of(derive("evaluate", 1, params, models={"held_out_reward": rewarder.identity}))


def trained_by_ppo(folder: Path, spec: RewardSpec) -> Manifest:
    note_origin(POLICY, "/models/policy")
    with closing(Rewarder(spec)) as rewarder:
        models = {"policy": {"digest": POLICY}, "rewards": rewarder.identity}
        return manifest_of(
            derive("train_ppo", 1, {"functions": function_params(spec.functions)}, models=models)
        )


REWARDED_BY = {
    rewarded: lambda told: told["reward_functions"],
    evaluated: lambda told: told["reward_functions"],
    held_out: lambda told: told["evaluate_options"]["held_out_reward"]["functions"],
    trained_by_ppo: lambda told: told["ppo_options"]["functions"],
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "code" / "mine.py"
    file.parent.mkdir()
    file.with_name("helpers.py").write_text("SCALE = 0.5\n")
    file.write_text(
        "from helpers import SCALE\ndef short(item, base=0): return base + SCALE * len(item.text)\n"
    )
    return file


@pytest.mark.parametrize("made", REWARDED_BY)
@pytest.mark.parametrize("sent", [False, True], ids=["here", "sent by content"])
def test_reward_functions_of_files_are_told_by_their_place(
    own: Path, tmp_path: Path, made: Callable[[Path, RewardSpec], Manifest], sent: bool
) -> None:
    """What the run file names is the very function, wherever the file itself has gone when it was sent."""
    given: Mapping[str, object] = {"function": f"{own}:short", "weight": 2.0, "settings": {"base": 1}}
    if sent:
        [given] = send_code({"work": str(tmp_path / "work"), "functions": [given]})["functions"]  # type: ignore[misc]
        own.unlink()
    spec = from_mapping(RewardSpec, {"functions": ["brevity", given]}, "reward")
    manifest = made(tmp_path, spec)
    told = REWARDED_BY[made](parameters_of(manifest))
    again = from_mapping(RewardSpec, {"functions": told}, "reward")
    assert again.functions[1].source == given.get("source", "")
    assert again.functions[1].module == ("mine.py" if sent else str(own))
    with closing(Rewarder(spec)) as one, closing(Rewarder(again)) as other:
        assert one.identity == other.identity
    assert reward_params(spec) == reward_params(again)


@pytest.mark.parametrize("changed", ["mine.py", "helpers.py"])
def test_a_reward_function_that_has_changed_is_refused_with_both_digests(
    own: Path, tmp_path: Path, changed: str
) -> None:
    spec = RewardSpec(functions=(RewardFunctionSpec(function=f"{own}:short"),))
    manifest = rewarded(tmp_path, spec)
    before = find_code(str(own), "short").digest
    file = own.with_name(changed)
    text = file.read_text()
    file.write_text(f"# another comment\n{text}")
    assert parameters_of(manifest)["reward_functions"]
    file.write_text(text.replace("0", "3"))
    after = find_code(str(own), "short").digest
    with pytest.raises(ConfigError, match=rf"mine.py:short.*{before[:12]}.*now has {after[:12]}"):
        run_file_of(manifest)


def test_a_copy_of_a_reward_function_is_told_under_its_own_name(own: Path, tmp_path: Path) -> None:
    """What a function is has one digest in both files, and a recipe names each by its file."""
    copied = own.with_name("copied.py")
    copied.write_text(own.read_text())
    functions = tuple(RewardFunctionSpec(function=f"{file}:short") for file in (own, copied))
    told = parameters_of(rewarded(tmp_path, RewardSpec(functions=functions)))["reward_functions"]
    assert [function["function"] for function in told] == [f"{own}:short", f"{copied}:short"]


def test_two_files_of_one_name_are_refused(own: Path, tmp_path: Path) -> None:
    """A recipe would say of one alone what it is, and a change of the other would be no other dataset."""
    (tmp_path / "more").mkdir()
    other = tmp_path / "more" / own.name
    other.write_text("def short(item): return 1\n")
    functions = tuple(RewardFunctionSpec(function=f"{file}:short") for file in (own, other))
    with pytest.raises(ConfigError, match=f"{other}:short.*a file of another name"):
        RewardSpec(functions=functions)
    twice = tuple(RewardFunctionSpec(function=f"{own}:short", settings={"base": base}) for base in (0, 1))
    assert RewardSpec(functions=twice).functions == twice
