"""On a card a log-probability does not depend on its pack, and is a CPU's within rounding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from kubealign_components.engines import fused_layers
from kubealign_components.engines.head import Head
from kubealign_components.engines.packed_attention import _probed
from kubealign_components.engines.packing import Group, computing_in, pack, prepare, summed_logprobs
from kubealign_components.engines.row_tiles import log_sum_exp, tiled_linear
from kubealign_components.engines.scoring import Scorer
from kubealign_components.engines.variable_length import kernel_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: make gpu"),
]
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "pad_token_id": 0,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
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


def test_a_sum_of_exponentials_is_computed_row_by_row() -> None:
    torch.manual_seed(0)
    logits = 8 * torch.randn(300, 40_003, device="cuda")
    logits[0, 5:] = -torch.inf
    sums = log_sum_exp(logits)
    torch.testing.assert_close(sums, logits.double().logsumexp(1).float(), atol=2e-5, rtol=0)
    assert torch.equal(sums[7:9], log_sum_exp(logits[7:9]))
    assert log_sum_exp(torch.full((1, 50), torch.nan, device="cuda")).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "granite", "phi3"]
)
def test_fused_layers_give_the_model_s_own_log_probabilities(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Log-probabilities, and gradients of a sum of them, with the kernels and without."""
    pytest.importorskip("liger_kernel")
    results = []
    for fused in (False, True):
        if not fused:
            monkeypatch.setattr(fused_layers, "is_liger_kernel_available", lambda: False)
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **SIZES)
        model = prepare(AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda())
        monkeypatch.undo()
        with computing_in(dtype, torch.device("cuda")):
            sums = [summed_logprobs(model, pack(part).to("cuda")) for part in (GROUPS, GROUPS[:1])]
        assert torch.equal(sums[0][:3], sums[1])
        weight = model.get_decoder().layers[0].self_attn.o_proj.weight
        results.append((sums[0].detach(), *torch.autograd.grad(sums[0].sum(), [weight])))
    assert not [r for r in caplog.records if r.name.startswith("kubealign")]
    assert any(
        "Liger" in type(module).__name__ or module.__dict__.get("forward") for module in model.modules()
    )
    (own, own_gradient), (sums, gradient) = results
    rounding = 2e-3 if dtype == torch.float32 else 0.03
    assert float((sums - own).abs().max() / own.abs().max()) < rounding
    assert float((gradient - own_gradient).norm() / own_gradient.norm()) < 4 * rounding
