"""What PPO is tried on: prompts for a tiny policy, a reward that can be checked, and a tiny reward model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import MODEL, TOKENIZED, canonical_json
from kubealign_components.data.stats import Stats
from kubealign_components.data.templates import load_reward_template
from kubealign_components.engines.rewards import Refused, RewardFunctionSpec, RewardInput
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import PpoModel
from kubealign_components.train_ppo.prompts import PpoPrompt
from support.tiny import prompt_row

TIMES = ("sampling_seconds", "training_seconds", "tokens_per_second", "memory_gib")
LETTERS = RewardFunctionSpec(function="support.ppo:letters")
ENDING = RewardFunctionSpec(
    function="kubealign_components.rewards.functions:brevity", settings={"unit": "tokens", "scale": 4}
)
"""One of ours, which processes under torchrun can import as well."""


def letters(item: RewardInput) -> float:
    """Share of the completion's tokens that are ASCII letters."""
    text = re.sub(r"<\|\w+\|>", "", item.text)  # a control token is one token and no letter
    return sum(c.isascii() and c.isalpha() for c in text) / item.num_tokens


def some_letters(item: RewardInput, every: int = 2) -> float:
    """As :func:`letters`; a text of one in ``every`` lengths is refused as ``odd``."""
    if len(item.text) % every == every - 1:
        raise Refused("odd")
    return letters(item)


def tokenised_prompts(
    make_dataset: Callable[..., Dataset], model: Path, count: int, **metadata: Any
) -> Dataset:
    """``count`` prompts, tokenised for ``model``, all with ``metadata``."""
    template = ChatTemplate(find_model(str(model)))
    rows = [prompt_row(f"question {number}") for number in range(count)]
    for row in rows:
        ids = template.prompt_ids(json.loads(row["messages"]))
        row |= {"prompt_token_ids": ids, "prompt_tokens": len(ids)}
        row["metadata"] = canonical_json(metadata) if metadata else None
    return make_dataset(rows, schema=TOKENIZED, identity=template.identity, params=metadata)


def settings(policy: Path, **changes: Any) -> PpoConfig:
    """Short completions, small batches, and a rate at which a tiny model moves."""
    defaults: dict[str, Any] = {
        "policy": str(policy),
        "functions": (LETTERS,),
        "max_new_tokens": 12,
        "rollout_batch": 64,
        "step_batch": 32,
        "max_steps": 3,
        "learning_rate": 3e-3,
        "schedule": "constant",
        "warmup_steps": 1,
        "lora_r": 8,
        "temperature": 1.0,
        "stop_penalty": 0.0,
        "length_bonus_scale": 0.0,
        "validation_fraction": 0.25,
        "dtype": "float32",
        "processes": 1,
    }
    return PpoConfig(**(defaults | changes))


def build_reward_model(
    folder: Path, base: Path, *, seed: int = 1, targets: Sequence[str] = ("q_proj", "v_proj", "down_proj")
) -> Dataset:
    """A random reward model on ``base`` as ``train_reward_model`` publishes one: whole, and as an adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), init_lora_weights=False)
    adapted = get_peft_model(causal, lora)
    adapted.save_pretrained(folder / "adapter")
    head = torch.randn(1, causal.config.hidden_size)
    safetensors.torch.save_file({"score.weight": head}, folder / "adapter" / "score.safetensors")
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    whole.model.load_state_dict(adapted.merge_and_unload().model.state_dict())
    whole.score.weight.data.copy_(head)
    whole.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = load_reward_template("reward").chat_template([])
    tokenizer.save_pretrained(folder)
    provenance = derive("test", 1, {"seed": seed}, models={"policy": find_model(str(base)).identity()})
    with DatasetWriter(str(folder), MODEL, provenance) as writer:
        writer.write_rows([{"step": 1, "metrics": "{}"}])
        return writer.commit(Stats(rows_in=1, rows_out=1))


def question(prompt_id: str = "0" * 32, kind: str = "general", bonus: float = 0.0) -> PpoPrompt:
    """A prompt of four tokens."""
    return PpoPrompt(
        prompt_id=prompt_id,
        token_ids=(1, 50, 51, 2),
        messages=[{"role": "user", "content": "ab"}],
        tools=None,
        answers=[],
        metadata={},
        question_type=kind,
        length_bonus=bonus,
    )


def jolt(model: PpoModel, part: str) -> None:
    """Give the adapter ``part`` weights that change something."""
    with torch.no_grad():
        for index, weight in enumerate(model.trained(part).values()):
            generator = torch.Generator().manual_seed(index)
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)


def log_of(model: Path) -> list[dict[str, float]]:
    """Metrics by step, without what a clock says."""
    rows = [json.loads(row["metrics"]) for row in Dataset.open(str(model), MODEL).iter_rows()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def weights(model: Path) -> dict[str, torch.Tensor]:
    """All weights of the policy at ``model``."""
    from transformers import AutoModelForCausalLM

    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(model).state_dict()
    return state
