"""The scorer on a real model and real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.models import find_model
from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer
from support.plain_forward import plain_sums


@pytest.mark.model
def test_smollm2_on_real_pairs(smollm2: Path, preference_rows: list[dict[str, Any]]) -> None:
    """Summed log-probabilities of real text within 1e-3 nats of the plain fp32 forward."""
    template = ChatTemplate(find_model(str(smollm2)))
    groups: list[Group] = []
    for row in preference_rows:
        messages = [{"role": "user", "content": row["conversations"][0]["value"]}]
        texts = [[{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")]
        group = Group(template.prompt_ids(messages), [template.completion_ids(messages, t) for t in texts])
        if group.tokens < 400 and len(groups) < 6:
            groups.append(group)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad(), Scorer(smollm2, dtype="float32", device="cpu", token_budget=1000) as scorer:
        sums = scorer.score(groups)
        for group, values in zip(groups, sums, strict=True):
            assert values == pytest.approx([float(s) for s in plain_sums(model, group)], abs=1e-3)
