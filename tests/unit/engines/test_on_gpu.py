"""On a card a log-probability does not depend on its pack, and is a CPU's within rounding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kubealign_components.engines.head import Head
from kubealign_components.engines.packed_attention import _probed
from kubealign_components.engines.packing import Group, computing_in
from kubealign_components.engines.row_tiles import tiled_linear
from kubealign_components.engines.scoring import Scorer
from kubealign_components.engines.variable_length import kernel_for

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


@pytest.mark.parametrize("size", [64, 128])
def test_attention_runs_in_one_call(size: int) -> None:
    """Also where the first to ask for it has no gradients, as scoring has none."""
    with torch.inference_mode():
        query, key = (torch.zeros(1, n, 8, size, device="cuda", dtype=torch.bfloat16) for n in (8, 2))
        assert kernel_for(query, key, _probed) is not None


@pytest.mark.parametrize(("ins", "outs"), [(4096, 1024), (4096, 14336), (14336, 4096), (100, 60)])
def test_rows_do_not_depend_on_how_many_are_multiplied(ins: int, outs: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(12_288, ins, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16)
    whole = tiled_linear(rows, weight)
    for first, count in ((0, 1), (512, 512), (700, 5000), (12_000, 288)):
        part = tiled_linear(rows[first : first + count], weight)
        assert torch.equal(part, whole[first : first + count])


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
def test_the_head_rounds_no_logit(held: torch.dtype) -> None:
    """Log-probabilities and gradients against fp64 of the same rounded inputs."""
    torch.manual_seed(0)
    own = nn.Linear(512, 70_000, bias=False).to("cuda", held)
    hidden = torch.randn(700, 512, device="cuda").to(held).requires_grad_()
    targets, weights = torch.randint(70_000, (700,), device="cuda"), torch.randn(700, device="cuda")
    config = SimpleNamespace(vocab_size=70_000)
    base = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: config), get_output_embeddings=lambda: own
    )
    with computing_in(torch.bfloat16, torch.device("cuda")):
        logprobs = Head(base).logprobs(hidden, targets)
    logits = hidden.bfloat16().double() @ own.weight.bfloat16().double().t()
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected.float(), atol=1e-4, rtol=0)
    inputs = [hidden, own.weight]
    for one, other in zip(
        torch.autograd.grad((logprobs * weights).sum(), inputs),
        torch.autograd.grad((expected * weights.double()).sum(), inputs),
        strict=True,
    ):
        assert float((one - other).abs().max()) < 0.01 * float(other.abs().max())
