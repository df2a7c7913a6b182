"""The policy model: loading it to be trained, with adapters where the settings want them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from kubealign_components.engines.scoring import four_bits, in_4_bits, resolved_dtype
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.training.config import TrainerConfig


def compute_dtype(config: TrainerConfig) -> torch.dtype:
    """The precision of forward and backward passes on this machine."""
    dtype: torch.dtype = getattr(torch, resolved_dtype(config.dtype))
    return dtype


def check_machine(config: TrainerConfig) -> None:
    """Refuse what this machine cannot do.

    Raises:
        ConfigError: 4-bit weights without CUDA.
    """
    if config.adapter == "qlora" and not torch.cuda.is_available():
        raise ConfigError("adapter", "qlora", "lora on this machine: 4-bit weights need a CUDA device")


def load_policy(config: TrainerConfig, path: Path) -> Any:
    """The policy ready to train: dropout off, adapters attached, trainable weights in float32.

    Args:
        config: the settings.
        path: a Hugging Face model directory.

    Raises:
        EngineError: the directory holds no causal language model.
        ConfigError: ``lora_targets`` name no layer of it.
    """
    model = load_base(path, base_dtype(config), quantise=config.adapter == "qlora")
    if config.adapter != "none":
        model = attach_adapter(config, model)
    return ready_to_train(config, model)


def ready_to_train(config: TrainerConfig, model: Any) -> Any:
    """``model`` with dropout off, but for that of adapters, and with checkpointed activations if wanted."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    disable_dropout(model, keep_adapters=config.adapter != "none")
    return model


def disable_dropout(model: nn.Module, *, keep_adapters: bool = False) -> None:
    """Set every dropout to 0, so that step 0 is the reference; adapters' own may stay."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not (keep_adapters and "lora_dropout" in name):
            module.p = 0.0
    config = getattr(model, "config", None)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"):
        # Attention reads its probability from here or from a copy of it on the module.
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def base_dtype(config: TrainerConfig) -> torch.dtype:
    """What a base is loaded in, or computed in where it is quantised: see :func:`.regime.weights_dtype`."""
    frozen = config.adapter != "none" and config.strategy == "none"
    return compute_dtype(config) if frozen else torch.float32


def load_base(
    path: Path,
    dtype: torch.dtype,
    *,
    quantise: bool = False,
    kind: Any = AutoModelForCausalLM,
    unquantised: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """The model at ``path`` in ``dtype``, or quantised to 4 bits (nf4) for CUDA.

    Args:
        path: a Hugging Face model directory.
        dtype: of the weights, or of what is computed with those in 4 bits.
        quantise: whether to quantise all linear layers.
        kind: what it is loaded as.
        unquantised: linear layers to leave as they are; the head of a language model when None.
        options: further arguments of ``from_pretrained``.

    Raises:
        EngineError: the directory holds none.
    """
    if quantise:
        options["quantization_config"] = four_bits(dtype, unquantised=unquantised)
    try:
        return kind.from_pretrained(path, dtype=dtype, **options)
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"cannot load the policy from {path}: {error}") from error


def attach_adapter(
    config: TrainerConfig, model: Any, targets: Sequence[str] = (), *, task: str | None = "CAUSAL_LM"
) -> Any:
    """``model`` with new adapters, seeded, which change nothing yet.

    Args:
        config: the settings; those of the adapter count here.
        model: from :func:`load_base`.
        targets: layers that get adapters where the settings name none; by default all linear layers but
            the head of a causal language model.
        task: PEFT's name of what the model is for; None for what it does not know.

    Raises:
        ConfigError: ``lora_targets`` name no layer of it.
    """
    from peft import LoraConfig, get_peft_model

    if config.adapter == "qlora":
        model = in_4_bits(model)
    lora = LoraConfig(
        task_type=task,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets or targets) or "all-linear",
    )
    torch.manual_seed(config.seed)
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(
            "lora_targets", config.lora_targets, f"names of the model's layers ({error})"
        ) from error
