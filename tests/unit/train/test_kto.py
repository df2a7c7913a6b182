"""KTO: its loss against TRL's own code, its reference point, and a run on labels alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.engines.packing import PackedBatch
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.kto import Mismatches, partners
from kubealign_components.train.stage import run
from kubealign_components.training.curves import training_log
from kubealign_components.training.objectives import kto_loss
from support.datasets import MakeDataset
from support.training_data import make_training, score, training_rows


def trl_loss(logprob: torch.Tensor, reference: torch.Tensor, good: torch.Tensor, kl: float) -> float:
    """What TRL's trainer makes of these log-probabilities: its own code, on a model that gives them."""
    trl = pytest.importorskip("trl.trainer.kto_trainer")
    ones = torch.ones(len(logprob), 2, dtype=torch.long)
    model = SimpleNamespace(training=True)
    given_ = SimpleNamespace(
        log_probs=logprob[:, None],
        entropy=torch.zeros(len(logprob), 1),
        mean_logits=torch.zeros(len(logprob), 1),
    )
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value),
        calculate_KL=True,
        _compute_kl_logps=lambda *_: torch.full((2,), kl, dtype=logprob.dtype),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.0,
        undesirable_weight=1.5,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    batch = {
        "label": good,
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": ones,
        "ref_logps": reference,
        "ref_KL_logps": torch.zeros(2, dtype=logprob.dtype),
    }
    loss: torch.Tensor = trl.KTOTrainer._compute_loss(trainer, lambda **_: given_, batch, False)
    return loss.item()


@pytest.mark.parametrize("kl", [-2.0, 0.0, 1.7])
def test_the_loss_is_trls(kl: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logprob, reference = (-30 * torch.rand(8, generator=generator, dtype=torch.float64) for _ in range(2))
    good = torch.tensor([True, False, False, True, True, False, True, False])
    ours = kto_loss(
        logprob - reference,
        good,
        torch.tensor(max(kl, 0.0), dtype=torch.float64),
        beta=0.3,
        undesirable_weight=1.5,
    )
    assert ours.mean().item() == pytest.approx(trl_loss(logprob, reference, good, kl), rel=1e-12)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_partners_are_of_another_prompt_where_there_is_one(prompts: list[int]) -> None:
    found = partners(np.array(prompts, dtype=np.int64))
    assert [p >= 0 for p in found] == [len(set(prompts)) > 1] * len(prompts)
    assert all(prompts[p] != prompts[i] for i, p in enumerate(found) if p >= 0)


def labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs of ``rows`` as single completions that people called good or bad."""
    singles = []
    for row in rows:
        for label, completion in zip(("chosen", "rejected"), row["completions"], strict=True):
            name = f"{row['example_id'][:31]}{len(singles) % 10}"
            singles.append(row | {"example_id": name, "completions": [completion | {"label": label}]})
    return singles


@pytest.fixture
def singles(make_dataset: MakeDataset, tiny_model: Path) -> Dataset:
    rows = labelled(training_rows(12, validation=4))
    return make_training(make_dataset, tiny_model, score(rows, tiny_model))


def settings(policy: Path, **changes: Any) -> TrainConfig:
    defaults = {"max_steps": 8, "batch_size": 6, "learning_rate": 1e-3, "dtype": "float32"}
    return TrainConfig(policy=str(policy), objective="kto", **(defaults | changes))


def log_of(config: TrainConfig, training: Dataset, output: Path) -> list[dict[str, Any]]:
    run(config, training=training, output=str(output))
    return [metrics for _, metrics in training_log(Dataset.open(str(output), MODEL))]


def test_it_starts_at_one_half_and_learns_what_people_called_good(
    singles: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    log = log_of(settings(tiny_model, max_steps=20, beta=0.5), singles, tmp_path / "out")
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert log[-1]["loss"] < 0.35
    assert 0 < log[-1]["eval_loss"] < 1


def test_the_reference_point_is_of_the_step_and_not_of_its_forward_passes(
    singles: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    whole, cut = (
        [m["loss"] for m in log_of(settings(tiny_model, micro_batch_tokens=n), singles, tmp_path / str(n))]
        for n in (4096, 48)
    )
    assert cut == pytest.approx(whole, rel=1e-4)


def test_a_resumed_run_measures_the_reference_and_not_what_it_became(
    singles: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, save_every=5, work=str(tmp_path / "work"))
    log = log_of(config, singles, tmp_path / "out")
    again = log_of(config, singles, tmp_path / "again")  # goes on from step 5
    assert [m["loss"] for m in again] == pytest.approx([m["loss"] for m in log], rel=1e-6)
    assert log[-1]["loss"] != pytest.approx(log[4]["loss"], rel=1e-3)


def test_unlabelled_completions_and_sharding_are_refused_by_name(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    plain = make_training(make_dataset, tiny_model, score(training_rows(4), tiny_model))
    with pytest.raises(DataError, match="label is None, kto needs chosen or rejected"):
        run(settings(tiny_model), training=plain, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="strategy='zero2': expected none with objective kto"):
        settings(tiny_model, strategy="zero2")


def test_mismatches_are_measured_once_each(singles: Dataset) -> None:
    rows = [row for row in singles.iter_rows() if row["split"] == "train"]
    prompts = np.unique([row["prompt_id"] for row in rows], return_inverse=True)[1]
    seen: list[int] = []

    def logprobs(packed: PackedBatch) -> torch.Tensor:
        seen.append(int(packed.input_ids.numel()))
        return torch.arange(packed.completions, dtype=torch.float32)

    mismatches = Mismatches(lambda numbers: [rows[n] for n in numbers], prompts)
    mismatches.measure(logprobs, 64)
    assert len(seen) > 1
    found = mismatches.of(range(len(rows)))
    assert found is not None and len(found.reference_logprob_C) == len(rows)
    assert found.reference_logprob_C.isfinite().all()
