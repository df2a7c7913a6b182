"""The aligned policy as a Hugging Face directory, and what a run says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kubealign_components.data.bootstrap import mean_numbers
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import POLICY, PpoModel
from kubealign_components.train_ppo.prompts import PpoPrompts
from kubealign_components.train_ppo.rollouts import Rollout
from kubealign_components.training.saving import save_policy

SHOWN = 5
"""Rollouts and held-out prompts in the report."""
_CLIP = 4000


def save_aligned(config: PpoConfig, model: PpoModel, base: Path, target: Path, template: str | None) -> None:
    """Write the policy to ``target``: its adapter merged into the exact base, or the adapter alone.

    Args:
        config: the settings; ``merge_adapter`` and ``save_dtype`` count here.
        model: trained.
        base: the directory of the base, whose tokenizer files are copied byte for byte.
        target: folder to fill.
        template: the chat template of the prompts, where that is not the base's own.
    """
    model.peft.set_adapter(POLICY)
    save_policy(
        model.peft,
        base,
        target,
        name=config.policy,
        adapter="lora",
        merge_adapter=config.merge_adapter,
        save_dtype=config.save_dtype,
        state={name: weight.detach().cpu() for name, weight in model.trained(POLICY).items()},
        template=template,
    )


def compare(before: Sequence[Rollout | None], after: Sequence[Rollout | None], seed: int) -> dict[str, float]:
    """How the mean score of the held-out prompts changed, with its 95 % interval; that of one has none.

    Args:
        before: an answer to each prompt before training; None for one without a score.
        after: the same prompts, in the same order.
        seed: of the bootstrap over prompts.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if not pairs:
        return {}
    scores = np.array([[a.score, b.score] for a, b in pairs], dtype=np.float64)
    gains = scores[:, 1] - scores[:, 0]
    return {
        "eval_score_before": float(scores[:, 0].mean()),
        "eval_score_after": float(scores[:, 1].mean()),
        **mean_numbers("eval_gain", gains, seed=seed),
        "eval_tokens_before": float(np.mean([len(a.completion) for a, _ in pairs])),
        "eval_tokens_after": float(np.mean([len(b.completion) for _, b in pairs])),
        "eval_prompts": float(len(pairs)),
    }


def samples(
    questions: PpoPrompts,
    rollouts: Sequence[Rollout],
    before: Sequence[Rollout | None],
    after: Sequence[Rollout | None],
) -> dict[str, Any]:
    """A few rollouts of the last step, and answers to held-out prompts before and after, as plain JSON."""
    question_of = {q.prompt_id: q for q in (*questions.train, *questions.held_out)}
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]

    def described(rollout: Rollout) -> dict[str, object]:
        return {
            "text": rollout.text[:_CLIP],
            "score": rollout.score,
            "parts": rollout.parts,
            "principles": rollout.principles,
            "tokens": len(rollout.completion),
            "ended": rollout.ended,
        }

    def asked(rollout: Rollout) -> str:
        messages = question_of[rollout.prompt_id].messages
        return "\n".join(f"{m['role']}: {m.get('content')}" for m in messages)[:_CLIP]

    return {
        "rollouts": [{"prompt": asked(r), "after": described(r)} for r in rollouts[:SHOWN]],
        "held_out": [
            {"prompt": asked(a), "before": described(a), "after": described(b)} for a, b in pairs[:SHOWN]
        ],
    }
