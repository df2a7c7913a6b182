"""On a card a log-probability does not depend on its pack, and is a CPU's within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GROUPS = [
    Group(list(range(5, 5 + size)), [list(range(10, 10 + size + more)) for more in (1, 30, 90)])
    for size in (3, 17, 80)
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_do_not_depend_on_packs(tiny_model: Path, dtype: str) -> None:
    scores = [
        Scorer(tiny_model, dtype=dtype, token_budget=budget).score(GROUPS) for budget in (50, 300, 4096)
    ]
    assert scores[0] == scores[1] == scores[2]
    on_cpu = Scorer(tiny_model, dtype="float32", device="cpu").score(GROUPS)
    for own, other, group in zip(scores[0], on_cpu, GROUPS, strict=True):
        for one, expected, tokens in zip(own, other, group.completions, strict=True):
            assert abs(one - expected) / len(tokens) < (1e-3 if dtype == "float32" else 0.05)
