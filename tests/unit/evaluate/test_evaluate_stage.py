"""evaluate: held-out prompts only, like compared with like, and no difference where there is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubealign_components.config import from_mapping, semantic_params
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.null_runs import NULL_RUN
from kubealign_components.data.schemas import EVALUATION, MODEL, SELECTION, TRAINING, new_completion
from kubealign_components.data.schemas import PROMPTS as PROMPT_ROWS
from kubealign_components.data.seeds import is_held_out
from kubealign_components.data.stats import Stats
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.engines.judge import Pair, PairJudge
from kubealign_components.engines.rewards import RewardSpec
from kubealign_components.errors import ConfigError, DataError, GateError, Unanswered
from kubealign_components.evaluate.by_source import SourceGain
from kubealign_components.evaluate.comparison import warnings
from kubealign_components.evaluate.component import evaluate as component
from kubealign_components.evaluate.stage import EvaluateConfig, run
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.reports.html import REPORT
from kubealign_components.reports.rounds import COLUMNS
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as rewards
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import build_tiny_model, prompt_row

FUNCTIONS = "kubealign_components.rewards.functions"
BREVITY = {"function": f"{FUNCTIONS}:brevity", "settings": {"scale": 8, "unit": "tokens"}}
FAKE = SamplingSpec(engine="fake", n=3, max_new_tokens=24)
REAL = SamplingSpec(engine="transformers", n=3, max_new_tokens=12, dtype="float32")
PROMPTS = 24


def config(policy: Path, sampling: SamplingSpec = FAKE, **settings: Any) -> EvaluateConfig:
    reward = {"functions": [BREVITY]}
    values = {
        "policy": str(policy),
        "sampling": sampling,
        "reward": reward,
        "validation_fraction": 0.5,
        "split_seed": 1,
    }
    return from_mapping(EvaluateConfig, values | settings, "evaluate")


def write(folder: Path, schema: str, stage: str, params: dict[str, Any], **derived: Any) -> Dataset:
    """A dataset without rows: what matters is its recipe."""
    with DatasetWriter(str(folder), schema, derive(stage, 1, params, **derived)) as writer:
        return writer.commit(Stats())


def rewarded_by(folder: Path, policy: Path, sampling: SamplingSpec, truncated: str = "keep") -> Dataset:
    """What ``filter``, ``sample`` and ``rewards`` make of some prompts with one offline completion each."""
    rows = [prompt_row(f"question {i}?", ["offline"]) for i in range(PROMPTS)]
    with DatasetWriter(str(folder / "prompts"), PROMPT_ROWS, derive("test", 1, {})) as writer:
        writer.write_rows(rows)
        prompts = writer.commit(Stats(rows_in=PROMPTS, rows_out=PROMPTS))
    limits = FilterConfig(policy=str(policy), max_seq_len=512, max_prompt_len=256)
    filter_prompts(limits, prompts=prompts, output=str(folder / "tokenized"))
    tokenized = Dataset.open(str(folder / "tokenized"))
    settings = SampleConfig(policy=str(policy), sampling=sampling, truncated=truncated)
    sampled = chunked(sample, settings, tokenized, folder, "sampled")
    reward = RewardsConfig(reward=from_mapping(RewardSpec, {"functions": [BREVITY]}, "reward"))
    return chunked(rewards, reward, sampled, folder, "rewarded")


def chunked(stage: Any, settings: Any, dataset: Dataset, folder: Path, name: str) -> Dataset:
    chunks = plan(dataset, work=str(folder / "work"), chunks=2)
    return merge([stage(settings, chunk=chunk) for chunk in chunks], chunks, str(folder / name))


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Dataset:
    return rewarded_by(tmp_path_factory.mktemp("fake"), tiny_model, FAKE)


@pytest.fixture(scope="module")
def really_rewarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Dataset:
    return rewarded_by(tmp_path_factory.mktemp("real"), tiny_model, REAL)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=7)


def test_a_policy_does_not_differ_from_itself(
    really_rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    stats = run(
        config(tiny_model, REAL),
        rewarded=really_rewarded,
        model=str(tiny_model),
        output=str(tmp_path / "out"),
    )
    numbers = stats.numbers
    assert [numbers[f"reward_gain{end}"] for end in ("", "_low", "_high")] == [0.0, 0.0, 0.0]
    assert numbers["length_ratio"] == 1.0
    assert numbers["win_rate"] == 0.5
    assert abs(numbers["kl_per_completion"]) < 1e-3
    assert numbers["kl_prompts"] == numbers["prompts"]


def test_prompts_without_samples_are_answered_by_both(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    tokenized = Dataset.open(str(Path(really_rewarded.uri).parent / "tokenized"))
    found = [
        run(config(tiny_model, REAL), rewarded=prompts, model=str(other_model), output=str(tmp_path / name))
        for name, prompts in (("sampled", really_rewarded), ("alone", tokenized))
    ]
    assert found[0].numbers == found[1].numbers
    assert found[0].rows_out == found[1].rows_out
    kept = [c for row in Dataset.open(str(tmp_path / "alone")).iter_rows() for c in row["reference"]]
    assert {c["reference"] for c in kept} == {True}


def test_another_policy_is_far_from_the_reference(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    settings = config(tiny_model, REAL, kl_prompts=4)
    stats = run(settings, rewarded=really_rewarded, model=str(other_model), output=str(tmp_path / "out"))
    assert stats.numbers["kl_per_token"] > 0.3
    assert stats.numbers["kl_prompts"] == 4
    rows = list(Dataset.open(str(tmp_path / "out")).iter_rows())
    assert [c["logprob"] is not None for row in rows for c in row["aligned"]] == [True] * 12 + [False] * (
        3 * len(rows) - 12
    )
    differences = [row["reward_difference"] for row in rows]
    assert stats.numbers["reward_gain"] == pytest.approx(sum(differences) / len(rows))
    assert stats.numbers["reward_gain_low"] < stats.numbers["reward_gain"] < stats.numbers["reward_gain_high"]


def test_only_held_out_prompts_and_reference_completions_are_compared(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    stats = run(config(tiny_model), rewarded=rewarded, model=str(tiny_model), output=str(tmp_path / "out"))
    rows = list(Dataset.open(str(tmp_path / "out"), "kubealign.evaluation/v1").iter_rows())
    held = {row["prompt_id"] for row in rewarded.iter_rows() if is_held_out(row["prompt_id"], 0.5, 1)}
    assert {row["prompt_id"] for row in rows} == held
    assert 2 <= len(held) < PROMPTS
    assert stats.dropped == {"not_held_out": PROMPTS - len(held)}
    assert all(c["reference"] for row in rows for c in row["reference"])
    assert not any(c["reference"] for row in rows for c in row["aligned"])
    assert "kl_per_token" not in stats.numbers  # the fake's log-probabilities mean nothing


def test_fewer_prompts_are_the_first_ones_by_hash(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    def ids(most: int) -> list[str]:
        output = str(tmp_path / str(most))
        stats = run(
            config(tiny_model, max_prompts=most), rewarded=rewarded, model=str(tiny_model), output=output
        )
        assert stats.numbers["prompts"] <= most
        return [row["prompt_id"] for row in Dataset.open(output).iter_rows()]

    assert ids(4) == ids(100)[:4]


def test_the_report_sets_all_rounds_beside_each_other(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path, make_dataset: MakeDataset
) -> None:
    first = {"reward_aligned": 0.25, "reward_gain": 0.125, "length_ratio": 0.5}
    of_both = [
        prompt_row("a") | {"completions": [new_completion(model=m)], "reference_rewards": [], "pairs": []}
        for m in ("tiny", "model (round 2)")
    ]
    output = tmp_path / "out"
    names = {"rewarded": rewarded, "model": str(tiny_model), "output": str(output)}
    selection = make_dataset(of_both, SELECTION)
    numbers = run(config(tiny_model), **names, rounds=[first], selection=selection).numbers
    page = Page((output / REPORT).read_text())
    assert ["1", "0.25", "0.125", "", "", "0.5", "1: 100%"] in page.rows
    [second] = [row for row in page.rows if row[0] == "2" and len(row) == len(COLUMNS)]
    assert second[-1] == "1: 50%, 2: 50%"
    assert numbers["chosen_from_round_2"] == 0.5
    assert second[1] == f"{numbers['reward_aligned']:.4g}"
    assert second[3] == f"{numbers['reward_gain_low']:.4g} to {numbers['reward_gain_high']:.4g}"


def test_the_report_shows_texts_of_both_sides(rewarded: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "out", tmp_path / "html" / "report.html"
    run(
        config(tiny_model),
        rewarded=rewarded,
        model=str(tiny_model),
        output=str(output),
        report=str(report),
    )
    page = report.read_text()
    assert (output / REPORT).read_text() == page
    assert Page(page).tags.count("section") == Dataset.open(str(output)).rows
    assert "held-out prompts the mean reward changed by +0.0000" in page


def test_the_gate_fails_after_everything_is_written(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    output, report = tmp_path / "out", tmp_path / "report.html"
    places: dict[str, Any] = {"output": str(output), "report": str(report)}
    with pytest.raises(GateError, match=r"min_gain=\+0\.0100"):
        run(config(tiny_model, min_gain=0.01), rewarded=rewarded, model=str(tiny_model), **places)
    assert Dataset.open(str(output)).rows > 1
    assert report.stat().st_size == (output / REPORT).stat().st_size > 0
    run(config(tiny_model, min_gain=0.0), rewarded=rewarded, model=str(tiny_model), **places)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"temperature": 0.7}, r"sampling\.temperature=0\.7: expected 1\.0", id="temperature"),
        pytest.param({"max_new_tokens": 32}, r"sampling\.max_new_tokens=32: expected 24", id="length"),
        pytest.param({"n": 2}, r"sampling\.n=2: expected 3", id="n"),
    ],
)
def test_other_sampling_than_the_reference_is_refused(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    settings = config(tiny_model, replace(FAKE, **changed))
    with pytest.raises(ConfigError, match=message):
        run(settings, rewarded=rewarded, model=str(tiny_model), output=str(tmp_path / "out"))


def test_how_it_runs_may_differ(rewarded: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tiny_model, replace(FAKE, memory_fraction=0.5))
    stats = run(settings, rewarded=rewarded, model=str(tiny_model), output=str(tmp_path / "out"))
    assert stats.rows_out == Dataset.open(str(tmp_path / "out")).rows > 0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        pytest.param({"functions": [BREVITY | {"weight": 2.0}]}, r"reward\.functions", id="weight"),
        pytest.param({"functions": [f"{FUNCTIONS}:target_length"]}, r"reward\.functions", id="function"),
        pytest.param(
            {"functions": [BREVITY], "over_length": "fail"}, r"reward\.over_length='fail'", id="over"
        ),
    ],
)
def test_other_rewards_than_the_reference_are_refused(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path, reward: dict[str, Any], message: str
) -> None:
    reward["functions"] = [{"function": f} if isinstance(f, str) else f for f in reward["functions"]]
    with pytest.raises(ConfigError, match=message):
        run(
            config(tiny_model, reward=reward),
            rewarded=rewarded,
            model=str(tiny_model),
            output=str(tmp_path / "out"),
        )


def test_another_reference_policy_is_refused(
    rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="policy="):
        run(config(other_model), rewarded=rewarded, model=str(tiny_model), output=str(tmp_path / "out"))


def test_a_model_with_another_template_is_refused(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    template = changed / "chat_template.jinja"
    template.write_text("Hi! " + template.read_text())
    with pytest.raises(DataError, match="other than the"):
        run(config(tiny_model), rewarded=rewarded, model=str(changed), output=str(tmp_path / "out"))


def test_a_model_that_ends_its_turns_otherwise_is_refused(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    with pytest.raises(DataError, match=r"ends turns with tokens \[2, 5\], the reference with \[2\]"):
        run(config(tiny_model), rewarded=rewarded, model=str(changed), output=str(tmp_path / "out"))


def test_the_models_story_is_told_and_its_split_checked(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    mixed = write(
        tmp_path / "mix",
        TRAINING,
        "mix",
        {"validation_fraction": 0.5, "seed": 1},
        inputs={"selection_0": rewarded},
    )
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    write(model, MODEL, "train", {}, inputs={"training": mixed})
    output = str(tmp_path / "out")
    run(config(tiny_model), rewarded=rewarded, model=str(model), output=output)
    stages = {step["stage"] for step in Dataset.open(output).manifest.recipe.values()}
    assert stages == {"test", "filter", "sample", "rewards", "mix", "train", "evaluate"}
    for changed, message in (({"split_seed": 2}, "split_seed=2"), ({"validation_fraction": 0.9}, "=0.9")):
        with pytest.raises(ConfigError, match=message):
            run(config(tiny_model, **changed), rewarded=rewarded, model=str(model), output=output)


def test_truncated_completions_are_dropped_on_both_sides_and_counted(
    tiny_model: Path, tmp_path: Path
) -> None:
    short = replace(FAKE, max_new_tokens=6)
    numbers = {}
    for truncated in ("keep", "drop"):
        folder = tmp_path / truncated
        dataset = rewarded_by(folder, tiny_model, short, truncated=truncated)
        output = str(folder / "out")
        numbers[truncated] = run(
            config(tiny_model, short), rewarded=dataset, model=str(tiny_model), output=output
        ).numbers
        rows = list(Dataset.open(output).iter_rows())
        seen = {c["finish_reason"] for row in rows for side in ("reference", "aligned") for c in row[side]}
        assert seen == ({"stop", "length"} if truncated == "keep" else {"stop"})
    for side in ("truncated_reference", "truncated_aligned"):
        assert numbers["drop"][side] == pytest.approx(numbers["keep"][side])
        assert numbers["drop"][side] > 0


PRINCIPLES = """
schema: kubealign.principles/v1
name: two
version: 1
principles: [{name: Brief, positive: It is short.}, {name: Kind, positive: It is kind.}]
"""


def judging(judge: Path, folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "two.yaml").write_text(PRINCIPLES)
    return {"judge": {"judge": str(judge), "principles": str(folder / "two.yaml"), **options}}


def test_the_judge_ties_a_policy_with_itself(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    settings = config(tiny_model, REAL, kl_prompts=0, **judging(other_model, tmp_path))
    out = str(tmp_path / "out")
    numbers = run(settings, rewarded=really_rewarded, model=str(tiny_model), output=out).numbers
    rates = {name: value for name, value in numbers.items() if name.startswith("judge_win_rate")}
    assert len(rates) == 3 * (1 + 2)
    assert set(rates.values()) == {0.5}
    assert "judge_consistency" not in numbers  # equal texts are not shown to it


def test_the_judges_win_rate_is_that_of_its_judgements(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    settings = config(tiny_model, REAL, kl_prompts=0, judged_completions=2, **judging(tiny_model, tmp_path))
    out, report = str(tmp_path / "out"), tmp_path / "report.html"
    stats = run(settings, rewarded=really_rewarded, model=str(other_model), output=out, report=str(report))
    assert settings.judge is not None
    judge, wins, agree = PairJudge(settings.judge), [], []
    for row in Dataset.open(out).iter_rows():
        of_row = []
        for aligned, reference in list(zip(row["aligned"], row["reference"]))[:2]:
            texts = [json.loads(c["messages"])[0]["content"] for c in (aligned, reference)]
            [judgements] = judge.judge([Pair(json.loads(row["messages"]), *texts)])
            assert judgements is not None
            of_row.append([(j.s12 > 0) / 2 + (j.s21 > 0) / 2 for j in judgements])
            agree += [(j.s12 > 0) == (j.s21 > 0) for j in judgements if len(set(texts)) == 2]
        wins.append([sum(by) / len(of_row) for by in zip(*of_row)])
    numbers = stats.numbers
    brief, kind = (sum(by) / len(wins) for by in zip(*wins))
    assert 0 < brief + kind < 2
    assert numbers["judge_win_rate_brief"] == pytest.approx(brief)
    assert numbers["judge_win_rate_kind"] == pytest.approx(kind)
    assert numbers["judge_win_rate"] == pytest.approx((brief + kind) / 2)
    assert numbers["judge_win_rate_low"] <= numbers["judge_win_rate"] <= numbers["judge_win_rate_high"]
    assert numbers["judge_consistency"] == pytest.approx(sum(agree) / len(agree))
    assert stats.counts["judged_pairs"] == 2 * numbers["judge_prompts"]
    assert ["Brief", f"{brief:.1%}"] in [row[:2] for row in Page(report.read_text()).rows]
    assert Dataset.open(out).manifest.recipe[Dataset.open(out).manifest.fingerprint]["models"]["judge"]


def test_a_tie_of_a_function_is_no_disagreement_of_its_orders(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    same = {"function": f"{FUNCTIONS}:format_match", "settings": {"kind": "regex", "pattern": ".*"}}
    functions = [same | {"principle": name} for name in ("Brief", "Kind")]
    settings = config(tiny_model, REAL, kl_prompts=0, **judging(tiny_model, tmp_path, functions=functions))
    out = str(tmp_path / "out")
    numbers = run(settings, rewarded=really_rewarded, model=str(other_model), output=out).numbers
    assert numbers["judge_win_rate"] == 0.5 and "judge_consistency" not in numbers


def test_questions_over_length_leave_no_verdict(
    really_rewarded: Dataset,
    tiny_model: Path,
    other_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = config(tiny_model, REAL, kl_prompts=0, **judging(tiny_model, tmp_path, max_length=20))
    out = str(tmp_path / "out")
    stats = run(settings, rewarded=really_rewarded, model=str(other_model), output=out)
    assert stats.counts["judged_pairs_over_length"] == stats.numbers["prompts"]
    assert "judge_win_rate" not in stats.numbers
    assert "no verdict" in caplog.text


def test_too_few_held_out_prompts_are_refused(rewarded: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 or more .*not_held_out"):
        run(
            config(tiny_model, validation_fraction=1e-9),
            rewarded=rewarded,
            model=str(tiny_model),
            output=str(tmp_path / "out"),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction=0.0"),
        ({"max_prompts": 1}, "max_prompts=1"),
        ({"kl_prompts": -1}, "kl_prompts=-1"),
        ({"sampling": {"engine": "fake", "top_p": 2.0}}, "top_p=2.0"),
    ],
)
def test_bad_settings_are_named(tiny_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, **settings)


def test_component_runs_the_stage(rewarded: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    logged: dict[str, float] = {}
    dataset = SimpleNamespace(name="dataset", uri=str(tmp_path / "out"), metadata={})

    def page(name: str) -> SimpleNamespace:
        path = str(tmp_path / f"{name}.html")
        return SimpleNamespace(name=name, path=path, uri=path, metadata={})

    component.python_func(
        rewarded=SimpleNamespace(name="rewarded", uri=rewarded.uri, path=rewarded.uri, metadata={}),
        model=SimpleNamespace(path=str(tiny_model), uri=str(tiny_model)),
        dataset=dataset,
        metrics=SimpleNamespace(log_metric=logged.__setitem__),
        report=page("report"),
        lineage=page("lineage"),
        policy=str(tiny_model),
        sample_options={"sampling": semantic_params(FAKE) | {"max_new_tokens": 24.0}},
        reward_functions=[BREVITY],
        validation_fraction=0.5,
        split_seed=1,
        judge=str(tiny_model),
        judge_options={"principle_names": ["Concise"]},
        options={"kl_prompts": 0},
    )
    assert dataset.metadata["schema"] == "kubealign.evaluation/v1"
    assert logged["reward_gain"] == 0.0
    assert logged["judge_win_rate_concise"] == 0.5
    assert (tmp_path / "report.html").is_file()
    assert "rewards" in (tmp_path / "lineage.html").read_text()


def test_an_evaluation_that_was_finished_is_taken_and_no_engine_starts(
    rewarded: Dataset,
    tiny_model: Path,
    other_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its gate is asked anew, and its page is there again."""
    settings = config(tiny_model, work=str(tmp_path / "work"))
    named = {"rewarded": rewarded, "model": str(other_model)}
    first = run(settings, **named, output=str(tmp_path / "first"), report=str(tmp_path / "first.html"))

    def start(*_: object, **__: object) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("kubealign_components.evaluate.stage.open_engine", start)
    second = run(settings, **named, output=str(tmp_path / "second"), report=str(tmp_path / "second.html"))
    assert second == first
    assert (tmp_path / "second.html").read_bytes() == (tmp_path / "first.html").read_bytes()
    assert (tmp_path / "second" / REPORT).exists()
    with pytest.raises(GateError):
        run(replace(settings, min_gain=1e6), **named, output=str(tmp_path / "third"))
    page = tmp_path / "first" / REPORT
    page.chmod(0o644)
    page.write_text("damaged")
    for name in ("second", "third"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(AssertionError, match="was started"):
        run(settings, **named, output=str(tmp_path / "fourth"))


def test_a_held_out_reward_tells_its_own_gain_and_whether_both_agree(
    really_rewarded: Dataset, tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        f"from {FUNCTIONS} import brevity\n"
        "def length(item):\n"
        "    return -brevity(item, scale=8, unit='tokens')\n"
    )
    held_out = {"functions": [f"{tmp_path}/mine.py:length"]}
    settings = config(tiny_model, REAL, kl_prompts=0, held_out_reward=held_out)
    output, report = str(tmp_path / "out"), tmp_path / "report.html"
    model = str(other_model)
    numbers = run(settings, rewarded=really_rewarded, model=model, output=output, report=str(report)).numbers
    assert numbers["held_out_reward_gain"] == pytest.approx(-numbers["reward_gain"])
    assert numbers["held_out_reward_agreement"] == 0.0
    assert numbers["held_out_reward_prompts"] == numbers["prompts"]
    page = Page(report.read_text())
    assert ["Mean held-out reward", f"{numbers['held_out_reward_reference']:.4f}"] in [
        row[:2] for row in page.rows
    ]
    step = Dataset.open(output).manifest.recipe[Dataset.open(output).manifest.fingerprint]
    assert step["models"]["held_out_reward"] and step["params"]["held_out_reward"]["functions"]
    with pytest.raises(ConfigError, match=r"held_out_reward='brevity': expected another reward"):
        replace(settings, held_out_reward=settings.reward)
    copy = {"functions": [BREVITY | {"weight": 2.0}, f"{tmp_path}/mine.py:length"]}
    with pytest.raises(ConfigError, match=r"held_out_reward='brevity_length': expected another reward"):
        config(tiny_model, REAL, held_out_reward=copy)
    alone = config(tiny_model, REAL, held_out_reward=copy, reward=None)  # it was trained on all the same
    with pytest.raises(ConfigError, match=r"held_out_reward='brevity_length': expected another reward"):
        run(alone, rewarded=really_rewarded, model=model, output=str(tmp_path / "same"))


def test_what_is_required_fails_the_run_after_everything_is_written(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    output, report = tmp_path / "out", tmp_path / "report.html"
    settings = config(tiny_model, require=["beyond_length", "gain"], work=str(tmp_path / "work"))
    named: dict[str, Any] = {"rewarded": rewarded, "model": str(tiny_model), "report": str(report)}
    with pytest.raises(GateError, match=r"gain: the mean reward changed by \+0\.0000 .*an interval above 0"):
        run(settings, **named, output=str(output))
    assert Dataset.open(str(output)).rows > 1 and report.is_file()
    again = replace(settings, require=("varied_answers",))  # is asked of what is finished
    assert run(again, **named, output=str(tmp_path / "again")).numbers["prompts"] > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"require": ["beyond_lenght"]}, r"require\[0\]='beyond_lenght'.*did you mean beyond_length"),
        ({"require": ["gain", "held_out_gain"]}, r"require\[1\]='held_out_gain'.*held_out_reward"),
        ({"require": ["gain"], "reward": None}, r"require\[0\]='gain'.*reward, which is not given"),
    ],
)
def test_what_cannot_be_required_is_refused(tiny_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, **settings)


def test_a_null_run_is_called_one(rewarded: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    """Wherever its gain is told: in the numbers, on the page and in the terminal."""
    chosen = write(
        tmp_path / "select", SELECTION, "select", {"rewards": "shuffled"}, inputs={"rewarded": rewarded}
    )
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    write(model, MODEL, "train", {}, inputs={"training": chosen})
    output = str(tmp_path / "out")
    numbers = run(config(tiny_model), rewarded=rewarded, model=str(model), output=output).numbers
    assert numbers["null_run"] == 1.0
    assert f"{NULL_RUN} What it gains is noise." in warnings(numbers)
    assert NULL_RUN in Page((Path(output) / REPORT).read_text()).text


def hasty(policy: Path, folder: Path) -> Path:
    """A copy of ``policy`` that learnt nothing but to end its turns early."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(policy, folder)
    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        states = model.model(torch.arange(3, 259)[None]).last_hidden_state[0]
        ending = torch.linalg.lstsq(states, torch.full((len(states), 1), 4.0)).solution[:, 0]
        model.lm_head.weight[2] += ending  # the end of a turn gets some 4 nats more than before
    model.save_pretrained(folder)
    return folder


def test_a_gain_of_length_alone_is_refused_and_named(
    really_rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """The reward likes a few tokens best, and all that the policy learnt is to stop."""
    target = {"function": f"{FUNCTIONS}:target_length", "settings": {"target": 4, "unit": "tokens"}}
    reward = from_mapping(RewardSpec, {"functions": [target]}, "reward")
    sampled = Dataset.open(str(Path(really_rewarded.uri).parent / "sampled"))
    rewarded = chunked(rewards, RewardsConfig(reward=reward), sampled, tmp_path, "rewarded")
    model = str(hasty(tiny_model, tmp_path / "hasty"))
    settings = config(tiny_model, REAL, reward=reward, kl_prompts=0, work=str(tmp_path / "work"))
    named: dict[str, Any] = {"rewarded": rewarded, "model": model}
    numbers = run(settings, **named, output=str(tmp_path / "first")).numbers
    assert numbers["length_ratio"] < 0.8 and numbers["reward_gain_low"] > 0
    assert numbers["length_slope_high"] < 0 < numbers["gain_by_length_low"]
    required = replace(settings, require=("gain", "beyond_length"))
    with pytest.raises(
        GateError, match=r"beyond_length: The gain may be one of length.*alone gives"
    ) as refused:
        run(required, **named, output=str(tmp_path / "second"))
    assert "the mean reward changed" not in str(refused.value)
    assert Dataset.open(str(tmp_path / "second")).rows > 1


def test_completions_without_a_reward_are_counted_by_the_reason(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from kubealign_components.engines.rewards import Refused\n"
        "def score(item):\n"
        "    if len(item.text) % 3 == 0:\n"
        "        raise Refused('no_score')\n"
        "    return float(len(item.text))\n"
    )
    reward = from_mapping(RewardSpec, {"functions": [f"{tmp_path}/mine.py:score"]}, "reward")
    sampled = Dataset.open(str(Path(rewarded.uri).parent / "sampled"))
    given = chunked(rewards, RewardsConfig(reward=reward), sampled, tmp_path, "given")
    settings = config(tiny_model, reward=reward)
    counts = run(settings, rewarded=given, model=str(tiny_model), output=str(tmp_path / "out")).counts
    assert counts["aligned_no_score"] > 0
    assert counts["aligned_over_length"] == 0


def test_a_variant_whose_answers_cannot_be_compared_ends_by_itself(
    rewarded: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from kubealign_components.engines.rewards import Refused\n"
        "def score(item):\n"
        f"    if Path({str(tmp_path / 'trained')!r}).exists():\n"
        "        raise Refused('no_score')\n"
        "    return float(len(item.text))\n"
    )
    reward = from_mapping(RewardSpec, {"functions": [f"{tmp_path}/mine.py:score"]}, "reward")
    sampled = Dataset.open(str(Path(rewarded.uri).parent / "sampled"))
    given = chunked(rewards, RewardsConfig(reward=reward), sampled, tmp_path, "given")
    shutil.copytree(tiny_model, tmp_path / "trained")
    model = write(tmp_path / "trained", MODEL, "train", {}, inputs={"training": given})
    named: dict[str, Any] = {"rewarded": given, "model": model.uri}
    settings = config(tiny_model, reward=reward)
    with pytest.raises(Unanswered, match="0 held-out prompts to compare") as error:
        run(settings, **named, output=str(tmp_path / "alone"))
    page, output = tmp_path / "page.html", str(tmp_path / "variant")
    assert run(settings, **named, output=output, report=str(page), sweep=True).rows_out == 0
    ended = Dataset.open(output, EVALUATION)
    assert ended.ended_early == str(error.value)
    assert [parent["uri"] for parent in ended.manifest.parents] == [model.uri]
    assert str(error.value) in Page(page.read_text()).text


def test_one_prompt_of_a_source_has_a_gain_and_no_interval() -> None:
    cells = SourceGain(source="a", prompts=1, gain=0.5, interval=None, length_ratio=1.0).cells()
    assert cells == ["a", "1", "+0.5000", "", "1.00"]
    cells = SourceGain(source="a", prompts=2, gain=0.5, interval=(0.25, 0.75), length_ratio=1.0).cells()
    assert cells[3] == "+0.2500 to +0.7500"
