"""The reference is the trainer's own to the last bit, however completions are cut, packed and ordered."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from kubealign_components.engines.packing import (
    Group,
    LogprobModel,
    computing_in,
    pack,
    packs,
    prepare,
    summed_logprobs,
)
from kubealign_components.engines.scoring import in_4_bits
from kubealign_components.errors import ConfigError, DriftError
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Examples, write_examples
from kubealign_components.train.stage import expected_drift, run
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.models import attach_adapter, ready_to_train
from kubealign_components.training.regime import differences, regime
from kubealign_components.training.rows import Rows
from support.datasets import MakeDataset
from support.scored_pairs import (
    ON_THE_HEAD,
    Sums,
    check_first_step,
    completions,
    first_step,
    pairs,
    scored,
    sums,
)
from support.tiny import build_tiny_model

CUTS: tuple[dict[str, Any], ...] = (
    {"chunks": 1},
    {"chunks": 3, "token_budget": 150},
    {"chunks": 2, "slice_rows": 1, "token_budget": 20},
)
"""Chunks and packs of ``logprobs``."""
MICRO_BATCHES = (4096, 150, 20)
"""Tokens of a forward pass of ``train``."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sizes that no vector divides."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "odd", hidden=40, layers=2)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one matrix for embedding and head."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tied", hidden=40, layers=2, tied=True)


@pytest.mark.parametrize(
    ("name", "adapter", "targets"),
    [
        ("policy", "none", ()),
        ("policy", "lora", ()),
        ("policy", "lora", ON_THE_HEAD),
        ("tied", "none", ()),
        ("tied", "lora", ON_THE_HEAD),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_0_is_the_reference_to_the_last_bit(
    make_dataset: MakeDataset,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dtype: str,
    name: str,
    adapter: str,
    targets: tuple[str, ...],
) -> None:
    policy: Path = request.getfixturevalue(name)
    numbers = {"dtype": dtype, "adapter": adapter}
    runs = []
    for number, cut in enumerate(CUTS):
        dataset = completions(make_dataset, policy, number, 4 - number % 2)
        runs.append(scored(dataset, policy, tmp_path / str(number), **numbers, **cut))
    whole, *others = map(sums, runs)
    assert len(whole) == 48
    assert all(other.items() <= whole.items() for other in others), "cuts, orders and choices change bits"
    data = pairs(make_dataset, whole, runs[0])
    for tokens in MICRO_BATCHES:
        output = tmp_path / f"model-{tokens}"
        config = TrainConfig(
            policy=str(policy),
            max_steps=1,
            batch_size=10,
            micro_batch_tokens=tokens,
            lora_targets=targets,
            **numbers,
        )
        run(config, training=data, output=str(output))
        what = f"{name} {dtype} {adapter} {' '.join(targets)} {tokens}"
        check_first_step(first_step(output), what)


LEVELS = torch.linspace(-1, 1, 16)


class Quantised(nn.Linear):
    """A linear layer in 16 levels by row that is multiplied in bfloat16: QLoRA's layer without its kernel."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False)
        scale = whole.weight.detach().abs().amax(1, keepdim=True)
        codes = (whole.weight.detach() / scale)[..., None].sub(LEVELS).abs().argmin(-1)
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("codes", codes.to(torch.uint8))
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        weight = (LEVELS[self.codes.long()] * self.scale).bfloat16()
        return linear(input.bfloat16(), weight)


def quantised(policy: Path) -> Any:
    """The policy with all linear layers but the head in 16 levels, the rest in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Quantised(layer))
    return model


@pytest.mark.parametrize("targets", [(), ON_THE_HEAD])
def test_step_0_of_a_quantised_base_is_the_reference_to_the_last_bit(
    make_dataset: MakeDataset, policy: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    """QLoRA but for its CUDA kernel: what loads, freezes, casts, adapts and computes is the product's own."""
    found: list[Sums] = []
    model = prepare(in_4_bits(quantised(policy)))
    for number, budget in enumerate((10**6, 150, 20)):
        rows = list(completions(make_dataset, policy, number, 4 - number % 2).iter_rows())
        groups = [Group(r["prompt_token_ids"], [c["token_ids"] for c in r["completions"]]) for r in rows]
        found.append({})
        for members in packs(groups, budget):
            chosen = [Group(groups[n].prompt, [groups[n].completions[c] for c in own]) for n, own in members]
            names = [rows[n]["completions"][c]["completion_id"] for n, own in members for c in own]
            with torch.inference_mode(), computing_in(torch.bfloat16, torch.device("cpu")):
                found[-1] |= dict(zip(names, summed_logprobs(model, pack(chosen)).tolist(), strict=True))
    assert all(other.items() <= found[0].items() for other in found[1:])
    data = pairs(make_dataset, found[0], completions(make_dataset, policy, 0, 4))
    for tokens in MICRO_BATCHES:
        config = TrainConfig(
            policy=str(policy),
            dtype="bfloat16",
            adapter="qlora",
            max_steps=1,
            batch_size=10,
            micro_batch_tokens=tokens,
            lora_targets=targets,
        )
        write_examples(data, config, tmp_path / f"{tokens}")
        train, validation = (
            Examples(Rows.mapped(tmp_path / f"{tokens}" / f"{name}.arrow"))
            for name in ("train", "validation")
        )
        adapted = ready_to_train(config, attach_adapter(config, quantised(policy)))
        arguments = training_arguments(config, tmp_path / "run")
        trainer = AlignmentTrainer(config, LogprobModel(adapted), arguments, train, validation, max_drift=0.0)
        trainer.train()
        check_first_step(trainer.training_log()[0][1], f"quantised {' '.join(targets)} {tokens}")


def test_whose_kernels_ran_counts_on_cards_alone() -> None:
    on_cpu, on_card = (regime("lora", "bfloat16", device) for device in ("cpu", "cuda"))
    assert "layers" not in on_cpu
    assert differences(on_card, on_card | {"layers": "other"}) == {"layers": (on_card["layers"], "other")}


def test_another_regime_is_named_before_training(
    make_dataset: MakeDataset, policy: Path, tmp_path: Path
) -> None:
    source = scored(
        completions(make_dataset, policy, 0, 4), policy, tmp_path, dtype="bfloat16", adapter="lora"
    )
    data = pairs(make_dataset, sums(source), source)
    config = TrainConfig(policy=str(policy), dtype="bfloat16", max_steps=1)
    with pytest.raises(ConfigError, match=r"weights float32 \(the reference: bfloat16\).*adapter: none"):
        run(config, training=data, output=str(tmp_path / "out"))
    accepted = TrainConfig(policy=str(policy), dtype="bfloat16", max_steps=1, max_initial_drift=0.5)
    run(accepted, training=data, output=str(tmp_path / "accepted"))
    assert 0 < first_step(tmp_path / "accepted")["abs_log_ratio_per_token"] < 0.5


def test_sharded_training_has_a_reference_of_its_own(
    make_dataset: MakeDataset, policy: Path, tmp_path: Path
) -> None:
    """Its weights are put together in the precision that it computes in, as the reference then has them."""
    source = completions(make_dataset, policy, 0, 4)
    numbers = {"dtype": "bfloat16", "adapter": "none"}
    own = scored(source, policy, tmp_path / "own", strategy="zero3", **numbers)
    alone = scored(source, policy, tmp_path / "alone", **numbers)
    assert sums(own) == sums(scored(source, policy, tmp_path / "lora", dtype="bfloat16", adapter="lora"))
    assert sums(own) != sums(alone)
    config = TrainConfig(policy=str(policy), strategy="zero3", dtype="bfloat16")
    assert expected_drift(config, pairs(make_dataset, sums(own), own), "cpu") == 0
    with pytest.raises(ConfigError, match=r"weights bfloat16 \(the reference: float32\).*strategy: zero3"):
        expected_drift(config, pairs(make_dataset, sums(alone), alone), "cpu")
    whole = {"dtype": "float32", "adapter": "none"}
    by_strategy = [scored(source, policy, tmp_path / s, strategy=s, **whole) for s in ("none", "fsdp2")]
    assert len({each.manifest.fingerprint for each in by_strategy}) == 1, "in float32 nothing differs"


def test_a_last_bit_stops_the_run(make_dataset: MakeDataset, policy: Path, tmp_path: Path) -> None:
    source = scored(completions(make_dataset, policy, 0, 4), policy, tmp_path)
    found = sums(source)
    off = {name: math.nextafter(value * (1 + 2**-22), -math.inf) for name, value in found.items()}
    data = pairs(make_dataset, off, source)
    with pytest.raises(DriftError, match="max_initial_drift=0: "):
        run(TrainConfig(policy=str(policy), max_steps=1), training=data, output=str(tmp_path / "out"))


def test_training_starts_at_another_policy_only_when_asked(
    make_dataset: MakeDataset, policy: Path, tmp_path: Path
) -> None:
    """A second round: completions of the last policy, log-probabilities of the first one."""
    last = build_tiny_model(tmp_path / "last", seed=1, hidden=40)
    own = completions(make_dataset, last, 0, 4)
    source = scored(own, last, tmp_path, reference=str(policy))
    assert sums(source) != sums(scored(own, last, tmp_path / "own"))
    assert sums(source) == sums(scored(completions(make_dataset, policy, 0, 4), policy, tmp_path / "first"))
    data = pairs(make_dataset, sums(source), source)
    with pytest.raises(ConfigError, match="name that one as reference"):
        run(TrainConfig(policy=str(last), max_steps=1), training=data, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"^reference="):
        wrong = TrainConfig(policy=str(policy), reference=str(last), max_steps=1)
        run(wrong, training=data, output=str(tmp_path / "out"))
    config = TrainConfig(policy=str(last), reference=str(policy), max_steps=1)
    run(config, training=data, output=str(tmp_path / "out"))
    assert first_step(tmp_path / "out")["abs_log_ratio_per_token"] > 0.01
    with pytest.raises(ConfigError, match="the sampler gave the policy's"):
        LogprobsConfig(policy="p", source="sampler", reference="r")
