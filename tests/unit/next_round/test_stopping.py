"""Rounds end once one is not shown to be better; what would follow works on nothing and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.stage import run as choose
from kubealign_components.data.choice_rows import CHOICE, ENDED, ChoiceRow
from kubealign_components.data.chunks import Part, merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION, MODEL, REWARDED, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.draw_more.stage import DrawMoreConfig
from kubealign_components.draw_more.stage import run as draw_more
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.engines.rewards import RewardSpec
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.evaluate.stage import EvaluateConfig
from kubealign_components.evaluate.stage import run as evaluate
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.join_draws.stage import JoinDrawsConfig
from kubealign_components.join_draws.stage import run as join_draws
from kubealign_components.join_rounds.stage import JoinRoundsConfig
from kubealign_components.join_rounds.stage import run as join_rounds
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.logprobs.stage import run as logprobs
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as mix
from kubealign_components.next_round.stage import NextRoundConfig, run
from kubealign_components.next_round.stopping import why_stop
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as reward
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as select
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run as train
from support.datasets import MakeDataset, questions
from support.pages import Page
from support.run_folders import completions

PROMPTS = 40
GONE = "no-such-model"
"""Whatever loads it, or looks for its files, fails."""


def evaluation(
    folder: Path, number: int, gain: float, *, spread: float = 0.01, prompts: int = PROMPTS
) -> Dataset:
    """Of a round's policy, which gained so much over the first policy, more or less from prompt to prompt;
    it was to stay near the policy that it started at."""
    begun = derive("next_round", 1, {"number": number}) if number > 1 else derive("filter", 1, {})
    with DatasetWriter(str(folder / f"prompts-{number}-{gain}"), TOKENIZED, begun) as writer:
        inputs = {"training": writer.commit(Stats())}
    near = {"reference": f"policy {number - 1}"}
    trained = derive("train", 1, {}, inputs=inputs, identity=near)
    with DatasetWriter(str(folder / f"model-{number}-{gain}"), MODEL, trained) as writer:
        model = writer.commit(Stats())
    noise = np.random.default_rng(number).normal(0, spread, prompts)
    shared = np.random.default_rng(0).normal(0, 1, prompts)  # what all policies find easy or hard
    rows = [
        {
            "prompt_id": f"{prompt:03d}",
            "messages": "[]",
            "reference": completions("before", [shared[prompt]]),
            "aligned": completions("after", [shared[prompt] + gain + noise[prompt]]),
            "reward_difference": gain + noise[prompt],
        }
        for prompt in range(prompts)
    ]
    stats = Stats(rows_in=prompts, rows_out=prompts)
    stats.numbers |= {"reward_gain": gain, "kl_per_completion": 1.0, "kl_standard_error": 0.1}
    made = derive("evaluate", 1, {"reward": {}}, inputs={"model": model})
    with DatasetWriter(str(folder / f"evaluation-{number}-{gain}"), EVALUATION, made) as writer:
        writer.write_rows(rows)
        return writer.commit(stats)


def test_rounds_go_on_while_each_is_better_than_the_one_before(tmp_path: Path) -> None:
    first, second, same = (evaluation(tmp_path, n, gain) for n, gain in ((1, 0.5), (2, 0.6), (3, 0.6)))
    assert not why_stop(first, None, number=1, rounds=4, seed=0)
    assert not why_stop(second, first, number=2, rounds=4, seed=0)
    reason = why_stop(same, second, number=3, rounds=4, seed=0)
    assert reason.startswith("round 3 is not shown to be better than round 2: on 40 held-out prompts")
    assert "an interval that holds for all 4 rounds at once" in reason
    worse = evaluation(tmp_path, 1, -0.1)
    assert "better than the first policy" in why_stop(worse, None, number=1, rounds=2, seed=0)


def test_looking_more_often_asks_for_more(tmp_path: Path) -> None:
    """A gain that one look would take for shown is not where four are taken."""
    gains = evaluation(tmp_path, 1, 0.036, spread=0.1)
    assert not why_stop(gains, None, number=1, rounds=1, seed=0)
    assert why_stop(gains, None, number=1, rounds=4, seed=0)


def test_a_prompt_alone_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="1 held-out prompts have answers of both policies, expected 2 or more"
    ):
        why_stop(evaluation(tmp_path, 1, 1.0, prompts=1), None, number=1, rounds=2, seed=0)


def test_a_round_that_goes_on_is_the_one_that_there_is_without_a_stop(
    tiny_model: Path, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """It samples, trains and is found under the same names: the stop is no part of its story."""
    tokenized = str(tmp_path / "tokenized")
    filter_prompts(FilterConfig(policy=str(tiny_model)), prompts=make_dataset(questions(3)), output=tokenized)
    compared = evaluation(tmp_path, 1, 0.5)
    shutil.copytree(tiny_model, tmp_path / "model-1-0.5", dirs_exist_ok=True)
    made = [str(tmp_path / "with"), str(tmp_path / "without")]
    for rounds, output in zip((3, 0), made, strict=True):
        config = NextRoundConfig(number=2, rounds=rounds)
        run(config, prompts=Dataset.open(tokenized), evaluation=compared, output=output)
    one, other = map(Dataset.open, made)
    assert one.rows == 3
    assert one.manifest.fingerprint == other.manifest.fingerprint
    with pytest.raises(ConfigError, match=r"^rounds=2: expected 3 or more"):
        NextRoundConfig(number=3, rounds=2)


@pytest.mark.parametrize("gains", [(0.0,), (0.5, 0.5)], ids=["round 1", "round 2"])
def test_what_follows_works_on_nothing_and_says_why(
    gains: tuple[float, ...], make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """Every stage of the rounds, of three, after those that gained so much; none looks for a model, which is
    not there."""
    work, made = str(tmp_path / "work"), iter(str(tmp_path / f"made-{i}") for i in range(99))
    compared = [evaluation(tmp_path, number, gain) for number, gain in enumerate(gains, start=1)]
    first, before = compared[0], compared[0] if len(compared) > 1 else None
    spec = RewardSpec(model=GONE)
    prompts, rewarded = make_dataset([], TOKENIZED), make_dataset([], REWARDED)

    def joined(rows: Dataset, worker: object) -> Dataset:
        [chunk] = plan(rows, work=work, rows_per_chunk=100)
        part = worker(chunk=type(chunk).from_json(json.loads(json.dumps(chunk.to_json()))))  # type: ignore[operator]
        return merge([Part.from_json(part.to_json())], [chunk], next(made))

    def opened(output: str) -> Dataset:
        one = Dataset.open(output)
        assert (one.rows, one.ended_early) == (0, reason)
        return one

    reason = why_stop(compared[-1], before, number=len(compared), rounds=3, seed=0)
    assert reason.startswith(f"round {len(gains)} is not shown to be better")
    for number in range(len(compared) + 1, 4):
        begun = NextRoundConfig(number=number, rounds=3)
        run(begun, prompts=prompts, evaluation=compared[-1], earlier=before, output=(output := next(made)))
        samples = joined(
            opened(output),
            lambda chunk: sample(SampleConfig(policy=GONE, sampling=SamplingSpec()), chunk=chunk),
        )
        rows = joined(opened(samples.uri), lambda chunk: reward(RewardsConfig(reward=spec), chunk=chunk))
        draw_more(
            DrawMoreConfig(), prompts=opened(output), rewarded=opened(rows.uri), output=(output := next(made))
        )
        opened(output)
        join_draws(JoinDrawsConfig(), earlier=rows, later=rows, output=(output := next(made)))
        rows = opened(output)
        join = JoinRoundsConfig(number=number)
        join_rounds(join, earlier=rewarded, later=opened(rows.uri), output=(output := next(made)))
        rewarded = opened(output)
        select(SelectConfig(), rewarded=rewarded, output=(output := next(made)))
        scored = joined(opened(output), lambda chunk: logprobs(LogprobsConfig(policy=GONE), chunk=chunk))
        mix(MixConfig(), selections=[opened(scored.uri)], output=(output := next(made)))
        train(TrainConfig(policy=GONE), training=opened(output), output=(output := next(made)))
        config = EvaluateConfig(policy=GONE, sampling=SamplingSpec(), reward=spec)
        page = tmp_path / f"page-{number}.html"
        evaluate(
            config, rewarded=first, model=opened(output).uri, output=(output := next(made)), report=str(page)
        )
        assert reason in Page(page.read_text()).text
        before, compared = compared[-1], [*compared, opened(output)]
    assert "no-such-model" not in json.dumps(compared[-1].manifest.recipe)
    stages = {step["stage"] for step in compared[-1].manifest.recipe.values()}
    assert {"next_round", "sample", "rewards", "join_rounds", "select", "logprobs", "mix", "train"} <= stages
    ended_by = compared[len(gains) - 1]
    assert ended_by.manifest.fingerprint in compared[-1].manifest.recipe, "it was what ended them"


def test_the_best_round_is_chosen_and_not_the_last(tmp_path: Path) -> None:
    rounds = [evaluation(tmp_path, number, gain) for number, gain in ((1, 0.5), (2, 0.48))]
    ended = str(tmp_path / "ended")
    run(
        NextRoundConfig(number=3, rounds=3),
        prompts=rounds[0],
        evaluation=rounds[1],
        earlier=rounds[0],
        output=ended,
    )
    with DatasetWriter(
        str(tmp_path / "third"),
        EVALUATION,
        derive("evaluate", 1, {}, inputs={"model": Dataset.open(ended)}),
    ) as writer:
        third = writer.commit(Stats(), {"ended_early": "round 2 is not shown to be better than round 1"})
    output, page = str(tmp_path / "choice"), tmp_path / "choice.html"
    stats = choose(ChooseConfig(rounds=3), evaluations=[*rounds, third], output=output, report=str(page))
    choice = Dataset.open(output, CHOICE)
    rows = list(choice.iter_rows(of=ChoiceRow))
    assert [(row["variant"], row["chosen"]) for row in rows] == [("round 1", True), ("round 2", False)]
    assert not choice.ended_early
    assert choice.manifest.extra[ENDED] == [["round 3", "round 2 is not shown to be better than round 1"]]
    assert (stats.rows_in, stats.rows_out, stats.dropped["ended_early"]) == (3, 2, 1)
    text = Page(page.read_text()).text
    assert "Chosen is round 1" in text
    assert "No further round was sampled or trained: round 2 is not shown to be better" in text
    assert "There were to be 3 rounds" in text
    for word in ("variant", "sweep"):
        assert word not in text.lower()
    every = str(tmp_path / "every")
    choose(ChooseConfig(), evaluations=rounds, output=every)
    two = list(Dataset.open(every, CHOICE).iter_rows(of=ChoiceRow))
    assert rows[0]["gain_high"] - rows[0]["gain_low"] > two[0]["gain_high"] - two[0]["gain_low"]
