"""In which numbers a log-probability is computed: what reference and policy must have in common.

No torch here: settings and recipes are compared before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from kubealign_components.data.fingerprint import Recipe, Step

Regime = dict[str, str]
"""``weights`` and ``compute`` (dtypes; nf4 for weights in 4 bits), ``head`` (dtype of logits), ``attention``,
``device`` (its type) and on CUDA ``layers`` (whose kernels): whatever changes a bit of a log-probability
beside weights and tokens."""

UNKNOWN_DRIFT = 0.05
"""Nats per token. Measured on SmolLM2-135M and real chats: bfloat16 against float32 0.005 to 0.009 (errors of
either sign mostly cancel over a completion), vLLM against transformers about 0.01 in bfloat16, a prompt that
lacks three tokens of the template 0.9: every mix of precisions passes and no mistake."""


def weights_dtype(adapter: str, dtype: str, strategy: str = "none") -> str:
    """What training in ``dtype`` holds the weights of its forward pass in: full training float32, a LoRA's
    frozen base ``dtype``, QLoRA's nf4; and ``dtype`` wherever shards are put together."""
    return {"none": "float32" if strategy == "none" else dtype, "lora": dtype, "qlora": "nf4"}[adapter]


def regime(adapter: str, dtype: str, device: str, strategy: str = "none") -> Regime:
    """That of training with ``adapter``, computed in ``dtype`` on devices of type ``device``."""
    whole = {
        "weights": weights_dtype(adapter, dtype, strategy),
        "compute": dtype,
        "head": "float32",
        "attention": "segments",
        "device": device,
    }
    if device == "cuda":  # where norms and gates may run in kernels that round elsewhere
        whole["layers"] = "liger" if find_spec("liger_kernel") else "torch"
    return whole


def nearest_steps(stage: str, fingerprint: str, recipe: Recipe) -> Iterator[Step]:
    """The steps of ``stage`` that made what the dataset ``fingerprint`` holds: on each way back from it the
    nearest one."""
    waiting, seen = [fingerprint], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in recipe:
            continue
        seen.add(name)
        step = recipe[name]
        if step["stage"] == stage:
            yield step
        else:
            waiting += step["inputs"].values()


def differences(ours: Regime, theirs: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """What is not the same, by name: ours and theirs."""
    return {name: (value, theirs.get(name)) for name, value in ours.items() if theirs.get(name) != value}
