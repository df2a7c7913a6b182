"""next_round: the same prompts and token ids, as those of the policy that was trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kubealign_components.data.chunks import plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import EVALUATION, MODEL, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.next_round.stage import NextRoundConfig, run, shown_by, trained_policy
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.sample.stage import run as sample
from support.datasets import MakeDataset
from support.tiny import build_tiny_model, prompt_row


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
