"""The parts of PPO: prompts and principles, adapters on one base, sampling, scores."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.models import find_model
from kubealign_components.data.seeds import is_held_out
from kubealign_components.engines.last_token import SHORTEST_PREFIX
from kubealign_components.engines.packing import PackedBatch
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.rewards import RewardFunctionSpec
from kubealign_components.errors import ConfigError, DataError, EngineError
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import POLICY, REFERENCE, VALUE, Adapters, PpoModel, pack_rollouts
from kubealign_components.train_ppo.prompts import (
    PrincipleDraw,
    Turn,
    load_prompts,
    ppo_steps,
    turns_of,
)
from kubealign_components.train_ppo.rollouts import Rollout, RolloutScorer
from kubealign_components.train_ppo.sampling import Sample, TransformersSampler, lora_rank_limit
from support.datasets import MakeDataset
from support.ppo import LETTERS, build_reward_model, jolt, question, settings, tokenised_prompts
from support.tiny import build_tiny_model

CPU = torch.device("cpu")
ROLLOUTS = [([1, 7, 9], [20, 21, 2]), ([1, 8, 8, 8, 9], [30, 2]), ([1, 9], [40, 41, 42, 43])]


@pytest.fixture
def model(tiny_model: Path) -> PpoModel:
    return PpoModel(settings(tiny_model, temperature=0.7), tiny_model, Adapters(), CPU)


@pytest.fixture(scope="module")
def reward_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    build_reward_model(folder, tiny_model)
    return folder


def test_prompts_are_split_by_hash_and_long_ones_dropped(make_dataset: MakeDataset, tiny_model: Path) -> None:
    data = tokenised_prompts(make_dataset, tiny_model, 120, question_type="reasoning", length_bonus=-0.4)
    longest = max(row["prompt_tokens"] for row in data.iter_rows())
    config = settings(tiny_model, max_prompt_tokens=longest - 1)
    found = load_prompts(data, config)
    assert found.too_long == 20
    assert len(found.train) + len(found.held_out) == 100
    assert all(is_held_out(q.prompt_id, 0.25, 0) for q in found.held_out)
    assert not any(is_held_out(q.prompt_id, 0.25, 0) for q in found.train)
    assert {(q.question_type, q.length_bonus) for q in found.train} == {("reasoning", -0.4)}
    few = load_prompts(data, replace(config, eval_prompts=2)).held_out
    assert len(few) == 2 and {q.prompt_id for q in few} <= {q.prompt_id for q in found.held_out}


@pytest.mark.parametrize(
    "metadata", [{"question_type": "trivia"}, {"length_bonus": "long"}, {"length_bonus": True}]
)
def test_metadata_that_cannot_be_used_is_named(
    make_dataset: MakeDataset, tiny_model: Path, metadata: dict[str, Any]
) -> None:
    data = tokenised_prompts(make_dataset, tiny_model, 2, **metadata)
    with pytest.raises(DataError, match=next(iter(metadata))):
        load_prompts(data, settings(tiny_model))


def test_every_epoch_has_every_prompt_once_in_another_order(tiny_model: Path) -> None:
    questions = [question(f"{i:032x}") for i in range(10)]
    config = settings(tiny_model, rollout_batch=4, step_batch=4)
    drawn = [turn for step in range(5) for turn in turns_of(config, questions, step)]
    ids = [turn.question.prompt_id for turn in drawn]
    assert sorted(ids[:10]) == sorted(ids[10:]) == [q.prompt_id for q in questions]
    assert ids[:10] != ids[10:]
    assert turns_of(config, questions, 3) == drawn[12:16]
    assert turns_of(replace(config, seed=1), questions, 3) != drawn[12:16]


def test_a_batch_larger_than_the_prompts_repeats_them_with_other_seeds(tiny_model: Path) -> None:
    turns = turns_of(settings(tiny_model, rollout_batch=6, step_batch=6), [question()], 0)
    assert len({turn.name for turn in turns}) == 6


def test_steps_are_counted_by_epochs(tiny_model: Path) -> None:
    config = PpoConfig(policy="p")
    assert ppo_steps(config, 157_500) == 546
    assert ppo_steps(config, 10) == 1
    assert ppo_steps(replace(config, max_steps=7), 157_500) == 7


def draws(config: PpoConfig, kind: str, count: int = 3000) -> list[list[str]]:
    draw = PrincipleDraw(config)
    return [[p["name"] for p in draw(Turn(question(kind=kind), str(i)))] for i in range(count)]


def test_principles_are_drawn_by_weight_without_replacement() -> None:
    """First draws go by weight: of the published ones, 4 of 27 are Candor's."""
    config = PpoConfig(policy="p", interventions="")
    draw, names = PrincipleDraw(config), draws(config, "general")
    assert all(len(set(one)) == 3 for one in names)
    assert draws(config, "general") == names
    total = sum(p.weight for p in draw.pool)
    first = Counter(one[0] for one in names)
    for principle in draw.pool:
        expected = principle.weight / total
        assert first[principle.name] / len(names) == pytest.approx(expected, abs=0.03)


def test_question_types_favour_their_principles_and_interventions_stand_first() -> None:
    config = PpoConfig(policy="p")
    draw = PrincipleDraw(config)
    always = [p.name for p in draw.always]
    assert len(always) == 3
    for kind in ("reasoning", "red-teaming"):
        tagged = {p.name for p in draw.pool if kind in p.tags}
        assert tagged
        for names in draws(config, kind, 200):
            assert names[:3] == always and len(names) == 6
        share = sum(names[3] in tagged for names in draws(config, kind, 400)) / 400
        assert share > 0.75
    plain = draws(replace(config, tag_weights={}), "reasoning", 400)
    assert sum(names[3] in tagged for names in plain) / 400 < 0.5


def test_a_set_without_principles_for_rollouts_is_refused(tmp_path: Path) -> None:
    principle = {"name": "Brief", "positive": "It is brief.", "stages": ["judge"]}
    body = {"schema": "kubealign.principles/v1", "name": "own", "version": 1, "principles": [principle]}
    (tmp_path / "own.yaml").write_text(json.dumps(body))
    for field in ("principles", "interventions"):
        with pytest.raises(ConfigError, match=f"{field}='own': expected a set with principles of stage rl"):
            PrincipleDraw(PpoConfig(policy="p", **{field: str(tmp_path / "own.yaml")}))


def test_token_logprobs_and_entropy_are_those_of_a_plain_forward(model: PpoModel, tiny_model: Path) -> None:
    """Packed, at the sampling temperature, against one padded-free forward for each rollout."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad(), model.acting(POLICY):
        logprobs, entropies = model.logprobs_and_entropy(POLICY, pack_rollouts(ROLLOUTS))
        expected = []
        for prompt, completion in ROLLOUTS:
            logits = plain(torch.tensor([[*prompt, *completion]])).logits[0] / 0.7
            logits = logits[len(prompt) - 1 : -1]
            picked = selective_log_softmax(logits[None], torch.tensor([completion]))[0]
            expected.append(torch.stack([picked, entropy_from_logits(logits)]))
    torch.testing.assert_close(
        torch.stack([logprobs, entropies]), torch.cat(expected, 1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("shared", [15, 16, 40])
def test_what_all_prompts_begin_with_changes_nothing(model: PpoModel, shared: int) -> None:
    """Log-probabilities, values and gradients are those of rollouts that are packed one by one."""
    draw = np.random.default_rng(0)
    system = draw.integers(3, 90, shared).tolist()
    rollouts = [
        ([*system, *draw.integers(3, 90, n).tolist()], draw.integers(3, 90, 4).tolist()) for n in (1, 5, 3)
    ]
    jolt(model, POLICY)
    jolt(model, VALUE)

    def measured(batches: list[PackedBatch]) -> list[torch.Tensor]:
        model.zero_grad()
        results = []
        for part, of in ((POLICY, lambda batch: model.logprobs(POLICY, batch)), (VALUE, model.values)):
            with model.acting(part):
                numbers = torch.cat([of(batch) for batch in batches])
                numbers.square().sum().backward()
            results += [
                numbers.detach(),
                *(w.grad for w in model.trained(part).values() if w.grad is not None),
            ]
        return results

    together = pack_rollouts(rollouts)
    saved = 2 * shared if shared >= SHORTEST_PREFIX else 0
    assert together.input_ids.shape[1] == sum(len(p) + len(c) for p, c in rollouts) - saved
    apart = measured([pack_rollouts([one]) for one in rollouts])
    for one, other in zip(measured([together]), apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_adapters_do_not_touch_each_other(model: PpoModel) -> None:
    batch = pack_rollouts(ROLLOUTS)
    with torch.no_grad():
        with model.acting(REFERENCE):
            reference = model.logprobs(REFERENCE, batch)
        with model.acting(VALUE):
            assert not model.values(batch).any()
        jolt(model, POLICY)
        with model.acting(REFERENCE):
            assert torch.equal(model.logprobs(REFERENCE, batch), reference)
        with model.acting(POLICY):
            policy = model.logprobs(POLICY, batch)
        assert (policy - reference).abs().max() > 0.01
        jolt(model, VALUE)
        with model.acting(VALUE):
            assert model.values(batch).abs().min() > 0
        with model.acting(POLICY):
            assert torch.equal(model.logprobs(POLICY, batch), policy)


def test_gradients_reach_the_acting_part_alone(model: PpoModel) -> None:
    batch = pack_rollouts(ROLLOUTS)
    for part, value in (
        (POLICY, lambda: model.logprobs(POLICY, batch)),
        (VALUE, lambda: model.values(batch)),
    ):
        jolt(model, part)
        with model.acting(part):
            value().sum().backward()
        touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == {
            *(f"peft.{name}" for name in model.trained(part) if not name.startswith("head.")),
            *(["value_head.weight", "value_head.bias"] if part == VALUE else []),
        }
        model.zero_grad()


def test_the_reference_of_a_started_policy_is_its_start(tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model)
    first = PpoModel(config, tiny_model, Adapters(), CPU)
    jolt(first, POLICY)
    first.peft.save_pretrained(str(tmp_path), selected_adapters=[POLICY])
    batch = pack_rollouts(ROLLOUTS)
    second = PpoModel(config, tiny_model, Adapters(policy=tmp_path / POLICY), CPU)
    with torch.no_grad():
        with first.acting(POLICY):
            start = first.logprobs(POLICY, batch)
        jolt(second, POLICY)
        with second.acting(REFERENCE):
            torch.testing.assert_close(second.logprobs(REFERENCE, batch), start)
        with second.acting(POLICY):
            assert (second.logprobs(POLICY, batch) - start).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_the_head_starts_at_the_reference(tiny_model: Path, dtype: str) -> None:
    config = settings(tiny_model, dtype=dtype, lora_targets=("q_proj", "lm_head"))
    model, batch = PpoModel(config, tiny_model, Adapters(), CPU), pack_rollouts(ROLLOUTS)
    with torch.no_grad():
        with model.acting(REFERENCE):
            reference = model.logprobs(REFERENCE, batch)
        with model.acting(POLICY):
            assert torch.equal(model.logprobs(POLICY, batch), reference)
            jolt(model, POLICY)
            assert (model.logprobs(POLICY, batch) - reference).abs().max() > 0.01


def test_an_adapter_that_is_more_than_lora_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"policy_adapter=.*only LoRA can be trained on"):
        PpoModel(settings(tiny_model), tiny_model, Adapters(policy=tmp_path), CPU)


def test_the_value_adapter_starts_as_the_reward_adapter_with_a_head_of_zeros(
    tiny_model: Path, reward_folder: Path
) -> None:
    model = PpoModel(settings(tiny_model), tiny_model, Adapters(reward=reward_folder / "adapter"), CPU)
    value = {n: p for n, p in model.trained(VALUE).items() if not n.startswith("head.")}
    reward = dict(model.peft.named_parameters())
    assert value
    for name, weight in value.items():
        assert torch.equal(weight, reward[name.replace(".value.", ".reward.")])
        assert not reward[name.replace(".value.", ".reward.")].requires_grad
    assert not model.value_head.weight.any()


def test_a_missing_head_and_another_base_are_named(
    tiny_model: Path, reward_folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (reward_folder / "adapter").iterdir():
        if file.name != "score.safetensors":
            (adapter / file.name).write_bytes(file.read_bytes())
    with pytest.raises(EngineError, match=r"score\.safetensors is missing"):
        PpoModel(settings(tiny_model), tiny_model, Adapters(reward=adapter), CPU)
    wide = build_tiny_model(tmp_path / "wide", hidden=64)
    with pytest.raises(ConfigError, match=r"reward_model=.*a PEFT adapter of the policy's base"):
        PpoModel(settings(wide), wide, Adapters(reward=reward_folder / "adapter"), CPU)
    deep = build_tiny_model(tmp_path / "deep", layers=3)
    with pytest.raises(ConfigError, match="weights are missing"):
        PpoModel(settings(deep), deep, Adapters(reward=reward_folder / "adapter"), CPU)


def test_layers_that_are_not_there_are_named(tiny_model: Path) -> None:
    with pytest.raises(ConfigError) as error:
        PpoModel(settings(tiny_model, lora_targets=("no_such_layer",)), tiny_model, Adapters(), CPU)
    assert error.value.field == "lora_targets"


@pytest.fixture
def turns() -> list[Turn]:
    prompts = [(1, 50), (1, 60, 61, 62, 63, 64), (1, 70, 71), (1, 80, 81, 82)]
    return [Turn(replace(question(), token_ids=ids), str(i)) for i, ids in enumerate(prompts)]


def test_samples_do_not_depend_on_what_is_sampled_beside(
    model: PpoModel, tiny_model: Path, turns: list[Turn]
) -> None:
    jolt(model, POLICY)
    config = settings(tiny_model, max_new_tokens=40)
    together = TransformersSampler(config, model, tiny_model).sample(turns)
    alone = TransformersSampler(replace(config, generation_tokens=1), model, tiny_model).sample(turns)
    assert together == alone
    assert [len(s.token_ids) for s in together] != [40] * 4, "none ended, so padding was hardly tried"
    for sample in together:
        assert sample.ended == (sample.token_ids[-1] == 2)
        assert 2 not in sample.token_ids[:-1]


def test_samples_follow_the_policys_distribution(model: PpoModel, tiny_model: Path) -> None:
    """First tokens of 4,000 samples against the softmax at the sampling temperature."""
    jolt(model, POLICY)
    config = settings(tiny_model, max_new_tokens=1, temperature=0.5)
    turns = [Turn(question(), str(i)) for i in range(4000)]
    samples = TransformersSampler(config, model, tiny_model).sample(turns)
    with torch.no_grad(), model.generating() as policy:
        expected = (policy(torch.tensor([question().token_ids])).logits[0, -1] / 0.5).softmax(-1)
    found = torch.bincount(torch.tensor([s.token_ids[0] for s in samples]), minlength=len(expected)) / 4000
    assert float((found - expected).abs().sum()) / 2 < 0.12  # total variation; noise alone gives some 0.08


def test_a_prompt_without_room_is_refused(model: PpoModel, tiny_model: Path) -> None:
    config = settings(tiny_model, max_new_tokens=2046)
    with pytest.raises(DataError, match="2046"):
        TransformersSampler(config, model, tiny_model).sample([Turn(question(), "0")])


@pytest.mark.parametrize(("rank", "limit"), [(4, 8), (8, 8), (64, 64), (65, 128)])
def test_lora_ranks_that_vllm_knows(rank: int, limit: int) -> None:
    assert lora_rank_limit(rank) == limit


def scorer(config: PpoConfig, tiny_model: Path, reward: Path | None) -> RolloutScorer:
    model = PpoModel(config, tiny_model, Adapters(reward=reward / "adapter" if reward else None), CPU)
    template = ChatTemplate(find_model(str(tiny_model)))
    return RolloutScorer(config, model, template, PrincipleDraw(config), reward)


def test_the_parts_of_a_score(tiny_model: Path) -> None:
    config = settings(tiny_model, functions=(replace(LETTERS, weight=2.0),), length_bonus_scale=5.0)
    config = replace(config, stop_penalty=6.0, max_new_tokens=8)
    ids = ChatTemplate(find_model(str(tiny_model))).tokenizer.encode("ab1", add_special_tokens=False)
    turn = Turn(question(bonus=-0.4), "0")
    ended, cut = scorer(config, tiny_model, None).score(
        [turn, turn], [Sample([*ids, 2], True), Sample(ids, False)]
    )
    assert isinstance(ended, Rollout) and isinstance(cut, Rollout)
    assert (ended.text, ended.principles) == ("ab1", [])
    assert list(ended.parts.values()) == pytest.approx([0.0, 2 * 2 / 4, 5 * -0.4 * 4 / 8, 0.0])
    assert list(cut.parts.values()) == pytest.approx([0.0, 2 * 2 / 3, 5 * -0.4 * 3 / 8, -6.0])
    assert cut.score == pytest.approx(sum(cut.parts.values()))


def test_reward_scores_are_those_of_the_whole_reward_model(tiny_model: Path, reward_folder: Path) -> None:
    """The adapter on the shared base, under drawn principles, against the merged model in its own engine."""
    config = settings(tiny_model, functions=(), reward_model_weight=0.5)
    ours = scorer(config, tiny_model, reward_folder)
    turns = [Turn(question(kind="reasoning"), str(i)) for i in range(3)]
    samples = [Sample([65, 66, 2], True), Sample([70], False), Sample([80] * 9, False)]
    found = ours.score(turns, samples)
    whole = RewardModel(find_model(str(reward_folder)), dtype="float32")
    for turn, rollout in zip(turns, found):
        assert isinstance(rollout, Rollout)
        principles = PrincipleDraw(config)(turn)
        assert rollout.principles == [p["name"] for p in principles]
        chat = [*turn.question.messages, {"role": "assistant", "content": rollout.text}]
        (expected,) = whole.score([whole.tokenise(chat, principles)])
        assert rollout.parts["reward_model"] == pytest.approx(0.5 * expected, abs=1e-4)


def test_rollouts_that_the_reward_model_has_no_room_for_have_no_score(
    tiny_model: Path, reward_folder: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.mkdir()
    for file in reward_folder.iterdir():
        (short / file.name).symlink_to(file)
    settings_file = short / "tokenizer_config.json"
    limited = json.loads(settings_file.read_text()) | {"model_max_length": 1400}
    settings_file.unlink()
    settings_file.write_text(json.dumps(limited))
    config = settings(tiny_model, functions=(), micro_batch_tokens=1, interventions="", max_principles=0)
    long, brief = scorer(config, tiny_model, short).score(
        [Turn(question(), "0"), Turn(question(), "1")], [Sample([65] * 1390, False), Sample([65], False)]
    )
    assert long == "over_length" and isinstance(brief, Rollout)


def test_rollouts_that_a_function_refuses_have_no_score_but_the_reason(tiny_model: Path) -> None:
    refusing = RewardFunctionSpec(function="format_match", settings={"kind": "regex"})
    config = settings(tiny_model, functions=(LETTERS, refusing))
    fine, refused = (replace(question(), metadata={"pattern": pattern}) for pattern in (".*", "("))
    rewarded, none = scorer(config, tiny_model, None).score(
        [Turn(fine, "0"), Turn(refused, "1")], [Sample([65, 66], False)] * 2
    )
    assert isinstance(rewarded, Rollout) and rewarded.parts["reward_functions"]
    assert none == "bad_pattern"
