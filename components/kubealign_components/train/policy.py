"""The policy model: loading it to be trained, and saving it as a directory that others load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kubealign_components.data.models import TOKENIZER
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.train.config import TrainConfig

_COPIED = (*TOKENIZER, "chat_template.jinja", "chat_template.json", "generation_config.json")


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """The precision of forward and backward passes on this machine."""
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def check_machine(config: TrainConfig) -> None:
    """Refuse what this machine cannot do.

    Raises:
        ConfigError: 4-bit weights or FSDP without CUDA.
    """
    # accelerate would quietly run plain data parallelism instead.
    if config.strategy == "fsdp2" and not torch.cuda.is_available():
        raise ConfigError(
            "strategy", "fsdp2", "none, zero1, zero2 or zero3 on this machine: it has no CUDA device"
        )
    if config.adapter == "qlora" and not torch.cuda.is_available():
        raise ConfigError("adapter", "qlora", "lora on this machine: 4-bit weights need a CUDA device")


def load_policy(config: TrainConfig, path: Path) -> Any:
    """The policy ready to train: dropout off, adapters attached, trainable weights in float32.

    Args:
        config: the settings.
        path: a Hugging Face model directory.

    Raises:
        EngineError: the directory holds no causal language model.
        ConfigError: ``lora_targets`` name no layer of it.
    """
    model = _load_base(path, _base_dtype(config), quantise=config.adapter == "qlora")
    if config.adapter != "none":
        model = _attach_adapter(config, model)
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


def save_policy(config: TrainConfig, model: Any, source: Path, target: Path, state: Any = None) -> None:
    """Write the trained ``model`` as a Hugging Face directory, with the tokenizer of ``source``.

    The tokenizer's files, chat template and generation settings are copied byte for byte, so that
    the trained policy has the tokenizer identity of the reference.

    Args:
        config: the settings; ``merge_adapter`` and ``save_dtype`` count here.
        model: from :func:`load_policy`, trained; unusable afterwards.
        source: the directory it was loaded from.
        target: folder to fill.
        state: gathered weights by name where the model's own are sharded; all of them, or only the
            trained ones of an adapter.
    """
    target.mkdir(parents=True, exist_ok=True)
    if config.adapter == "none":
        dtype = _save_dtype(config, source)
        _save_whole(model, source, target, dtype, state)
    elif config.merge_adapter:
        whole = _merged(config, model, source, state)
        _save_whole(whole, source, target, _save_dtype(config, source), None)
    else:
        # By the name that the user gave: a path of this machine means nothing elsewhere.
        model.peft_config[model.active_adapter].base_model_name_or_path = config.policy
        model.save_pretrained(target, state_dict=state)
        (target / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _base_dtype(config: TrainConfig) -> torch.dtype:
    """Trained weights are float32; a frozen base is as exact as its compute precision needs it."""
    frozen = config.adapter != "none" and config.strategy == "none"
    return compute_dtype(config) if frozen else torch.float32


def _load_base(path: Path, dtype: torch.dtype, *, quantise: bool = False) -> Any:
    options: dict[str, Any] = {}
    if quantise:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"cannot load the policy from {path}: {error}") from error


def _attach_adapter(config: TrainConfig, model: Any) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if config.adapter == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets) or "all-linear",
    )
    torch.manual_seed(config.seed)
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(
            "lora_targets", config.lora_targets, f"names of the model's layers ({error})"
        ) from error


def _merged(config: TrainConfig, model: Any, source: Path, state: Mapping[str, Tensor] | None) -> Any:
    """The model with its adapters added to the weights."""
    if state is None and config.adapter == "lora":
        return model.merge_and_unload()
    # Sharded or 4-bit weights take no addition: put the adapters on a fresh, exact base.
    fresh = _attach_adapter_like(model, _load_base(source, torch.float32))
    trained = state or {name: weight.detach().cpu() for name, weight in trained_weights(model).items()}
    fresh.load_state_dict(trained, strict=False)
    return fresh.merge_and_unload()


def _attach_adapter_like(model: Any, base: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(base, model.peft_config[model.active_adapter])


def _save_whole(
    model: Any, source: Path, target: Path, dtype: torch.dtype, state: Mapping[str, Tensor] | None
) -> None:
    if state is None:
        model.to(dtype).save_pretrained(target)
    else:
        kept = {k: v.to(dtype) for k, v in state.items()}
        if model.config.tie_word_embeddings:
            kept = {k: v for k, v in kept.items() if not k.endswith("lm_head.weight")}
        model.save_pretrained(target, state_dict=kept)
    _restore_config(source / "config.json", target / "config.json", dtype)


def _restore_config(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Undo what training set in the config: dropout, caching, the precision it ran in."""
    before, after = json.loads(source.read_text()), json.loads(target.read_text())
    for name in list(after):
        if name == "use_cache" or name.endswith(("dropout", "pdrop")):
            after.pop(name)
            if name in before:
                after[name] = before[name]
    after["dtype"] = str(dtype).removeprefix("torch.")
    target.write_text(json.dumps(after, indent=2, sort_keys=True) + "\n")


def _save_dtype(config: TrainConfig, source: Path) -> torch.dtype:
    name = config.save_dtype
    if name == "auto":
        settings = json.loads((source / "config.json").read_text())
        name = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name))
    if not isinstance(dtype, torch.dtype):
        raise EngineError(f"{source / 'config.json'} names the dtype {name!r}, which torch does not know")
    return dtype
