"""next_round: the same prompts and token ids, as those of the policy that was trained on them."""

from __future__ import annotations

import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.sampled import round_of_model
from kubealign_components.data.schemas import EVALUATION, MODEL, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.draw_more.stage import DrawMoreConfig
from kubealign_components.draw_more.stage import run as draw_more
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.engines.rewards import RewardFunctionSpec, RewardSpec
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.join_draws.stage import JoinDrawsConfig
from kubealign_components.join_draws.stage import run as join_draws
from kubealign_components.join_rounds.stage import JoinRoundsConfig
from kubealign_components.join_rounds.stage import run as join_rounds
from kubealign_components.next_round import stage
from kubealign_components.next_round.stage import NextRoundConfig, run, shown_by, trained_policy
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as reward
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from support.datasets import MakeDataset
from support.tiny import build_tiny_model, prompt_row

FUNCTIONS = "kubealign_components.rewards.functions"


@pytest.fixture
def prompts(tiny_model: Path, make_dataset: MakeDataset, tmp_path: Path) -> Dataset:
    rows = [prompt_row(f"question {i}", ["an answer", "another"]) for i in range(3)]
    output = str(tmp_path / "prompts")
    filter_prompts(FilterConfig(policy=str(tiny_model)), prompts=make_dataset(rows), output=output)
    return Dataset.open(output)


def trained(folder: Path, weights: Path, prompts: Dataset) -> Dataset:
    """A model as ``train`` leaves one, of other weights than the policy's."""
    shutil.copytree(weights, folder)
    with DatasetWriter(str(folder), MODEL, derive("train", 1, {}, inputs={"training": prompts})) as writer:
        return writer.commit(Stats())


def evaluated(model: Dataset, prompts: Dataset) -> Dataset:
    made = derive("evaluate", 1, {}, inputs={"model": model, "rewarded": prompts})
    with DatasetWriter(f"{model.uri}-evaluation", EVALUATION, made) as writer:
        return writer.commit(Stats())


def test_the_prompts_become_those_of_the_trained_policy(
    tiny_model: Path, prompts: Dataset, tmp_path: Path
) -> None:
    model = trained(tmp_path / "model", build_tiny_model(tmp_path / "other", seed=1), prompts)
    output = str(tmp_path / "round")
    stats = run(
        NextRoundConfig(number=2), prompts=prompts, evaluation=evaluated(model, prompts), output=output
    )
    made = Dataset.open(output)
    assert stats.rows_out == 3
    for row, before in zip(made.iter_rows(), prompts.iter_rows(), strict=True):
        assert before["completions"]
        assert row == before | {"completions": []}
    own = find_model(model.uri).identity()["digest"]
    assert own != prompts.manifest.identity["policy"]
    assert made.manifest.identity == prompts.manifest.identity | {"policy": own}
    assert model.manifest.fingerprint in made.manifest.recipe, (
        "the story of the model is in that of its samples"
    )
    chunk = plan(made, work=str(tmp_path / "work"), chunks=1)[0]
    spec = SamplingSpec(engine="fake", n=2, max_new_tokens=4)
    assert sample(SampleConfig(policy=model.uri, sampling=spec), chunk=chunk).rows == 3
    with pytest.raises(ConfigError, match="filter again with it"):
        sample(SampleConfig(policy=str(tiny_model), sampling=spec), chunk=chunk)


def test_a_round_samples_anew_from_a_policy_that_has_not_moved(
    tiny_model: Path, prompts: Dataset, tmp_path: Path
) -> None:
    def texts(rows: Dataset, policy: str) -> list[list[list[int]]]:
        chunks = plan(rows, work=str(tmp_path / "work"), chunks=1)
        sampling = SamplingSpec(engine="fake", n=3, max_new_tokens=24, seed=7)
        parts = [sample(SampleConfig(policy=policy, sampling=sampling), chunk=chunk) for chunk in chunks]
        made = merge(parts, chunks, f"{rows.uri}-sampled")
        assert made.manifest.recipe[made.manifest.fingerprint]["params"]["sampling"]["seed"] == 7
        return [[c["token_ids"] for c in row["completions"] if c["reference"]] for row in made.iter_rows()]

    model = trained(tmp_path / "model", tiny_model, prompts)
    rounds = [texts(prompts, str(tiny_model))]
    for number in (2, 3):
        output = str(tmp_path / f"round-{number}")
        config = NextRoundConfig(number=number)
        run(config, prompts=prompts, evaluation=evaluated(model, prompts), output=output)
        rounds.append(texts(Dataset.open(output), model.uri))
        shutil.rmtree(f"{model.uri}-evaluation")
    for of_prompt in zip(*rounds, strict=True):
        tokens = [tuple(ids) for completions in of_prompt for ids in completions if len(ids) > 3]
        assert len(tokens) == len(set(tokens)) > 3


def test_further_draws_of_a_round_begin_with_those_that_it_has(
    tiny_model: Path, prompts: Dataset, tmp_path: Path
) -> None:
    brevity = RewardSpec(functions=(RewardFunctionSpec(function=f"{FUNCTIONS}:brevity"),))

    def rewarded(rows: Dataset, policy: str, n: int) -> Dataset:
        for worker in (
            partial(sample, SampleConfig(policy=policy, sampling=SamplingSpec(engine="fake", n=n))),
            partial(reward, RewardsConfig(reward=brevity)),
        ):
            chunks = plan(rows, work=str(tmp_path / "work"), chunks=1)
            rows = merge([worker(chunk=one) for one in chunks], chunks, f"{rows.uri}-{n}")
        return rows

    def drawn(asked: Dataset, policy: str, name: str) -> Dataset:
        first = rewarded(asked, policy, 2)
        config, more = DrawMoreConfig(drawn=2, to=4), str(tmp_path / f"more-{name}")
        draw_more(config, prompts=asked, rewarded=first, output=more)
        later, joined = rewarded(Dataset.open(more), policy, 4), str(tmp_path / f"joined-{name}")
        join_draws(JoinDrawsConfig(to=4), earlier=first, later=later, output=joined)
        return Dataset.open(joined)

    model, begun = trained(tmp_path / "model", tiny_model, prompts), str(tmp_path / "round")
    compared = evaluated(model, prompts)
    run(NextRoundConfig(number=2), prompts=prompts, evaluation=compared, output=begun)
    earlier = drawn(prompts, str(tiny_model), "1")
    later = drawn(Dataset.open(begun), model.uri, "2")
    output = str(tmp_path / "both")
    join_rounds(JoinRoundsConfig(), earlier=earlier, later=later, output=output)
    [*rows] = Dataset.open(output).iter_rows()
    by_round = [Counter(round_of_model(c["model"]) for c in row["completions"]) for row in rows]
    assert {count for own in by_round for number, count in own.items() if number == 2} <= {2, 4}
    assert any(own[2] == 4 for own in by_round)
    said = [{tuple(c["token_ids"]) for c in row["completions"] if c["finish_reason"]} for row in rows]
    assert any(len(texts) > 4 for texts in said), "each round has seeds of its own"


def test_only_what_decides_tokens_is_asked_of_the_trained_model(
    tiny_model: Path, prompts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights, which nothing here computes with, are told by a record beside them."""
    asked: list[bool] = []

    def looked_for(name: str, *, weights: bool = True) -> ModelFiles:
        asked.append(weights)
        return find_model(name, weights=weights)

    monkeypatch.setattr(stage, "find_model", looked_for)
    compared = evaluated(trained(tmp_path / "model", tiny_model, prompts), prompts)
    run(NextRoundConfig(number=2), prompts=prompts, evaluation=compared, output=str(tmp_path / "round"))
    assert asked == [False]


def test_a_model_that_reads_other_tokens_is_refused(prompts: Dataset, tmp_path: Path) -> None:
    model = trained(tmp_path / "model", build_tiny_model(tmp_path / "other", seed=1), prompts)
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(ConfigError, match=r"^model='model': expected a model with the policy's"):
        compared = evaluated(model, prompts)
        run(NextRoundConfig(number=2), prompts=prompts, evaluation=compared, output=str(tmp_path / "round"))


def test_the_policy_of_a_round_is_that_of_the_evaluation_before(
    tiny_model: Path, prompts: Dataset, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    model = trained(tmp_path / "model", tiny_model, prompts)
    assert trained_policy(evaluated(model, prompts)).uri == model.uri
    strangers = make_dataset([], EVALUATION, stage="evaluate", inputs={"rewarded": prompts})
    with pytest.raises(DataError, match="a model that KubeAlign has not trained"):
        trained_policy(strangers)


def test_what_an_evaluation_showed_goes_on_to_the_next_round(make_dataset: MakeDataset) -> None:
    made = derive("evaluate", 1, {}, inputs={"rewarded": make_dataset([], TOKENIZED)})
    with DatasetWriter(f"{make_dataset([], MODEL).uri}-evaluation", EVALUATION, made) as writer:
        stats = Stats()
        stats.numbers |= {"reward_gain": 0.5, "win_rate": 1.0}
        assert shown_by(writer.commit(stats)) == {"reward_gain": 0.5}


@pytest.mark.parametrize("number", [1, 0])
def test_the_first_round_has_no_such_stage(number: int) -> None:
    with pytest.raises(ConfigError, match=r"^number="):
        NextRoundConfig(number=number)
