"""Training over nodes that share nothing but a store gives what one process gives, also when one is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.store import store_for
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from kubealign_components.train_ppo.stage import run as train_ppo
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.model import load_head
from kubealign_components.train_reward_model.stage import run as train_reward_model
from kubealign_components.training.checkpoints import MARKERS
from kubealign_components.training.launch import ERROR_FILE
from support.multi_node import Nodes
from support.ppo import ENDING, log_of, tokenised_prompts
from support.ppo import settings as ppo_settings
from support.ppo import weights as ppo_weights
from support.preference_data import build_learner, make_preferences, preference_rows, write_files
from support.store_servers import ACCESS, BUCKET, seaweedfs
from support.training_data import losses, make_training, score, training_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="gloo between processes that have no GPU"),
]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder in a SeaweedFS, which the environment names."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server, pytest.MonkeyPatch.context() as settings:
        for name, value in {
            **ACCESS,
            "AWS_ENDPOINT_URL": server.s3,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            settings.setenv(name, value)
        yield f"s3://{BUCKET}/multi-node"


@pytest.fixture
def pairs(make_dataset: Callable[..., Dataset], tiny_model: Path) -> Dataset:
    return make_training(make_dataset, tiny_model, score(training_rows(12, validation=4), tiny_model))


def settings(policy: Path, work: str, strategy: str) -> TrainConfig:
    return TrainConfig(
        policy=str(policy),
        max_steps=12,
        batch_size=5,  # 5, 5 and 2 of the 12 examples: the shares are uneven
        micro_batch_tokens=100,
        learning_rate=3e-4,
        dtype="float32",
        strategy=strategy,
        processes=1,
        weight_decay=0.1,  # of matrices alone
        save_every=3,
        keep_checkpoints=99,
        work=work,
    )


def weights(model: str, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(store_for(model).read(f"{model}/{name}"))
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def markers(work: str) -> list[str]:
    return [e.uri for e in store_for(work).list(work) if f"/{MARKERS}/" in e.uri]


def step_of(marker: str) -> int:
    return json.loads(store_for(marker).read(marker))["step"]


def wrote(marker: str) -> int:
    """How many processes wrote the checkpoint."""
    return json.loads(store_for(marker).read(marker))["processes"]


def has_passed(work: str, step: int) -> bool:
    return any(step_of(marker) > step for marker in markers(work))


@pytest.mark.parametrize(
    ("strategy", "counts"), [("fsdp2", (2, 1, 2)), ("zero2", (2, 1)), ("zero3", (2, 1, 2))]
)
def test_a_lost_node_and_other_numbers_of_nodes(
    pairs: Dataset,
    tiny_model: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    strategy: str,
    counts: tuple[int, ...],
) -> None:
    """A process is killed each time but the last, and other numbers of nodes go on to the same end."""
    place = f"{request.getfixturevalue('s3')}/{strategy}" if strategy == "fsdp2" else str(tmp_path / "store")
    work = f"{place}/work"
    config = settings(tiny_model, work, strategy)
    # In a work prefix of its own, or its model would be found finished and no node trained.
    alone = replace(config, strategy="none", save_every=0, work=str(tmp_path / "work-alone"))
    run(alone, training=pairs, output=str(tmp_path / "alone"))
    expected = losses(str(tmp_path / "alone"))
    assert expected[-1] < 0.67

    reached = 0
    for count in counts[:-1]:
        nodes = Nodes(tmp_path / "nodes", count, kill=partial(has_passed, work, reached))
        with pytest.raises(EngineError, match="exit codes"):
            run(replace(config, nodes=count), training=pairs, output=f"{place}/model", launcher=nodes)
        assert has_passed(work, reached)
        reached = max(map(step_of, markers(work)))
    assert reached < 12
    nodes = Nodes(tmp_path / "nodes", counts[-1])
    run(replace(config, nodes=counts[-1]), training=pairs, output=f"{place}/model", launcher=nodes)
    assert losses(f"{place}/model") == pytest.approx(expected, rel=1e-5)
    actual = weights(f"{place}/model", tmp_path / "model")
    for layer, weight in weights(str(tmp_path / "alone"), tmp_path / "whole").items():
        torch.testing.assert_close(actual[layer], weight, atol=1e-5, rtol=1e-4)
    assert len({wrote(marker) for marker in markers(work)}) == 2


def test_an_error_of_one_process_on_one_node_reaches_the_launcher_by_name(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node lacks the policy's folder; the first one waits for it meanwhile."""
    (tmp_path / "home-0").mkdir()
    (tmp_path / "home-0" / "policy").symlink_to(tiny_model)
    config = replace(settings(tiny_model, str(tmp_path / "work"), "none"), policy="~/policy", nodes=2)
    homes = [str(tmp_path / f"home-{number}") for number in range(2)]
    monkeypatch.setenv("HOME", homes[0])
    nodes = Nodes(tmp_path / "nodes", environment=lambda number: {"HOME": homes[number]})
    with pytest.raises(ConfigError, match=r"^model='~/policy': expected a model directory") as error:
        run(config, training=pairs, output=str(tmp_path / "out"), launcher=nodes)
    assert error.value.field == "model"
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "work").rglob(ERROR_FILE))) == 1


def test_several_nodes_need_something_that_starts_them(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = replace(settings(tiny_model, str(tmp_path), "none"), nodes=2)
    with pytest.raises(ConfigError, match="nodes=2: expected 1 on this machine"):
        run(config, training=pairs, output=str(tmp_path / "out"))


def test_nodes_train_a_reward_model(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    """Sharded adapters and head, as one process trains them; the first node publishes and measures."""
    policy = build_learner(tmp_path / "policy")
    template, principles = write_files(tmp_path)
    data = make_preferences(make_dataset, preference_rows(12, validation=4))
    alone = RewardModelConfig(
        policy=str(policy),
        template=str(template),
        principles=str(principles),
        head="normal",
        max_steps=4,
        batch_size=5,
        micro_batch_tokens=120,
        learning_rate=1e-3,
        dtype="float32",
        processes=1,
        work=str(tmp_path / "work"),
    )
    one = train_reward_model(alone, preferences=data, output=str(tmp_path / "one"))
    nodes = Nodes(tmp_path / "nodes")
    config = replace(alone, strategy="fsdp2", nodes=2, save_every=2)
    two = train_reward_model(config, preferences=data, output=str(tmp_path / "two"), launcher=nodes)
    assert losses(str(tmp_path / "two")) == pytest.approx(losses(str(tmp_path / "one")), rel=1e-4)
    assert two.counts == one.counts and two.dropped == one.dropped
    assert two.numbers["held_out_accuracy"] == one.numbers["held_out_accuracy"]
    load = AutoModelForSequenceClassification.from_pretrained
    actual = load(tmp_path / "two").state_dict()
    for name, weight in load(tmp_path / "one").state_dict().items():
        torch.testing.assert_close(actual[name], weight, atol=1e-5, rtol=1e-4)
    heads = [load_head(tmp_path / name / "adapter") for name in ("one", "two")]
    torch.testing.assert_close(heads[1], heads[0], atol=1e-5, rtol=1e-4)
    assert nodes.left() == []


def test_ppo_goes_on_with_fewer_nodes(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    """One of two nodes is killed; one process goes on from their checkpoint to the end of an unbroken run.

    To 1e-4, however rollouts and passes are shared out.
    """
    prompts = tokenised_prompts(make_dataset, tiny_model, 160)
    work = str(tmp_path / "work")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ppo_settings(
        tiny_model,
        functions=(ENDING,),
        max_steps=5,
        rollout_batch=25,
        step_batch=10,
        micro_batch_tokens=500,
        length_bonus_scale=5.0,
        stop_penalty=1.0,
        validation_fraction=0.1,
    )
    train_ppo(alone, prompts=prompts, output=str(one))
    config = replace(alone, nodes=2, save_every=1, work=work)
    nodes = Nodes(tmp_path / "nodes", kill=partial(has_passed, work, 1))
    with pytest.raises(EngineError, match="exit codes"):
        train_ppo(config, prompts=prompts, output=str(two), launcher=nodes)
    (saved,) = markers(work)
    assert 2 <= step_of(saved) < 5 and wrote(saved) == 2
    train_ppo(replace(config, nodes=1), prompts=prompts, output=str(two))
    assert len(log_of(one)) == len(log_of(two)) == 5
    for expected, actual in zip(log_of(one), log_of(two)):
        assert actual == pytest.approx(expected, abs=1e-4, rel=1e-4)
    before = ppo_weights(tiny_model)
    for name, weight in ppo_weights(one).items():
        torch.testing.assert_close(ppo_weights(two)[name], weight, atol=1e-4, rtol=1e-3)
        if "proj" in name:
            assert (weight - before[name]).abs().max() > 1e-3
    assert Dataset.open(str(one)).manifest.fingerprint == Dataset.open(str(two)).manifest.fingerprint
