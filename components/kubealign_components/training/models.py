"""The policy model: loading it to be trained, with adapters where the settings want them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kubealign_components.engines.dtypes import resolved_dtype
from kubealign_components.engines.loading import load_checkpoint
from kubealign_components.engines.scoring import four_bits, in_4_bits
from kubealign_components.errors import ConfigError
from kubealign_components.training.config import TrainerConfig


class LoraSettings(Protocol):
    """Settings that new adapters are made by."""

    @property
    def lora_r(self) -> int: ...
    @property
    def lora_alpha(self) -> int: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...


def compute_dtype(name: str) -> torch.dtype:
    """The precision of forward and backward passes on this machine, for the setting ``dtype``."""
    dtype: torch.dtype = getattr(torch, resolved_dtype(name))
    return dtype


def check_machine(adapter: str) -> None:
    """Refuse the setting ``adapter`` where this machine cannot do it.

    Raises:
        ConfigError: 4-bit weights without CUDA.
    """
    if adapter == "qlora" and not torch.cuda.is_available():
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
    return compute_dtype(config.dtype) if frozen else torch.float32


def load_base(path: Path, dtype: torch.dtype, *, quantise: bool = False) -> Any:
    """The causal language model at ``path`` in ``dtype``, or quantised to 4 bits (nf4) for CUDA.

    Args:
        path: a Hugging Face model directory.
        dtype: of the weights, or of what is computed with those in 4 bits.
        quantise: whether to quantise all linear layers but the head.

    Raises:
        EngineError: the directory holds none, or not all of one.
    """
    return load_checkpoint(path, dtype, quantization_config=four_bits(dtype) if quantise else None)[0]


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
    if config.adapter == "qlora":
        model = in_4_bits(model)
    torch.manual_seed(config.seed)
    return adapted(
        model, lora_config(config, targets, dropout=config.lora_dropout, task=task), config.lora_targets
    )


def adapted(model: Any, settings: Any, named: Sequence[str], adapter: str = "default") -> Any:
    """``model`` under PEFT with new adapters of these ``settings``.

    Args:
        model: of transformers.
        settings: from :func:`lora_config`.
        named: layers as the user named them, for the error.
        adapter: what PEFT calls the new one.

    Raises:
        ConfigError: ``lora_targets`` name no layer of it.
    """
    try:
        return under_peft(model, settings, adapter)
    except ValueError as error:
        raise ConfigError("lora_targets", named, f"names of the model's layers ({error})") from error


def under_peft(model: Any, settings: Any, adapter: str) -> Any:
    """``model`` with adapters of these ``settings``, which change nothing yet.

    PEFT's warnings are left out: of adapters on tied layers, which are saved and merged as they were trained;
    of Conv1D, for which it sets what is right; and of ranks that it has itself noted for layers that the
    settings do not name.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():
        for message in (
            r"Model has `tie_word_embeddings=True`",
            "fan_in_fan_out is",
            "The following .*_pattern",
        ):
            warnings.filterwarnings("ignore", message)
        wrapped = get_peft_model(model, settings, adapter_name=adapter)
    for layer in wrapped.modules():
        if hasattr(layer, "_cast_input_dtype"):
            layer._cast_input_dtype = partial(_cast_where_it_lasts, layer._cast_input_dtype)
    return wrapped


def _cast_where_it_lasts(
    cast: Callable[[Tensor, torch.dtype], Tensor], x: Tensor, dtype: torch.dtype
) -> Tensor:
    """``x`` in the dtype of an adapter's weights; under autocast as it is, for the product there takes it in
    autocast's, and a copy in float32 would be half of what an 8B model's layers keep for their gradients."""
    return x if torch.is_autocast_enabled(x.device.type) else cast(x, dtype)


def lora_config(
    config: LoraSettings, targets: Sequence[str] = (), *, dropout: float = 0.0, task: str | None = "CAUSAL_LM"
) -> Any:
    """PEFT's settings of new adapters.

    Args:
        config: rank, scale and layers.
        targets: layers where the settings name none; by default all linear layers but the head.
        dropout: of the adapters' input.
        task: PEFT's name of what the model is for; None for what it does not know.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=dropout,
        target_modules=list(config.lora_targets or targets) or "all-linear",
    )
