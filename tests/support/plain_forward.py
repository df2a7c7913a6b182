"""Log-probabilities from a model's plain forward: the oracle for packing and scoring."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from kubealign_components.engines.packing import Group

TOKENS = st.lists(st.integers(3, 200), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=5)
"""Groups of tokens that every test model knows."""


def plain_sums(model: torch.nn.Module, group: Group) -> list[torch.Tensor]:
    """Row at a time, whole vocabulary, log-softmax: one fp32 sum for each completion.

    The softmax is in fp64: PyTorch's fp32 kernel on CPUs is off by 1e-5 a token on a vocabulary of
    50,000, all in one direction, which is 2e-3 on a sum over 250 tokens.
    """
    sums = []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt, *completion]])
        logprobs = model(ids).logits[0].double().log_softmax(-1)
        start = len(group.prompt) - 1
        rows = logprobs[start : start + len(completion)]
        sums.append(rows.gather(1, torch.tensor(completion)[:, None]).sum().float())
    return sums
