"""Saving what was trained as a directory that others load.

Weights are written anew. Everything else is the policy's: its config but for what training has changed, and
every other file byte for byte. Nothing of it is validated by the library again, which refuses some files
that it reads.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from kubealign_components.data.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    beside_weights,
    files_below,
)
from kubealign_components.data.models import read_object
from kubealign_components.engines.dtypes import saved_dtype_name
from kubealign_components.errors import EngineError
from kubealign_components.training.models import load_base, trained_weights, under_peft

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's name of an adapter's weights."""
CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
SHARD_SIZE = "5GB"
"""Most of one file of weights."""
_OF_KIND = ("architectures", "id2label", "label2id", "pad_token_id", "tie_word_embeddings")
"""Members of a config that a head of another kind, or adapters on one of two tied layers, change."""


def save_policy(
    model: Any,
    source: Path,
    target: Path,
    *,
    name: str,
    adapter: str,
    merge_adapter: bool,
    save_dtype: str,
    state: Mapping[str, Tensor] | None = None,
    template: str | None = None,
) -> None:
    """Write the trained ``model`` as a Hugging Face directory, with everything else of ``source``.

    Args:
        model: from :func:`~kubealign_components.training.models.load_policy`, trained; unusable afterwards.
        source: the directory it was loaded from.
        target: folder to fill.
        name: the policy as the user named it, which adapters say they belong to.
        adapter: none, lora or qlora.
        merge_adapter: whether adapters are added to the weights or saved alone.
        save_dtype: precision of whole weights, see
            :class:`~kubealign_components.training.config.TrainerConfig`.
        state: gathered weights by name where the model's own are sharded; all of them, or only the
            trained ones of an adapter.
        template: the chat template it was trained under, where that is not the policy's own.
    """
    target.mkdir(parents=True, exist_ok=True)
    dtype = saved_dtype(save_dtype, source)
    if adapter == "none":
        save_whole(model, source, target, dtype, state)
    elif merge_adapter:
        settings = model.peft_config[model.active_adapter]
        trained = trained_state(model) if state is None else state
        whole = merged(load_base(source, torch.float32), settings, trained, model.active_adapter)
        save_whole(whole, source, target, dtype, None)
    else:
        save_adapter(model, target, name=name, state=state)
    if template is None:
        copy_files(source, target, beside_weights(files_below(source)))
    else:
        copy_with_template(source, target, template)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of the weights that training changed, by name."""
    return {name: weight.detach().cpu() for name, weight in trained_weights(model).items()}


def merged(base: Any, settings: Any, trained: Mapping[str, Tensor], adapter: str) -> Any:
    """``base`` with trained adapters added to its weights.

    Args:
        base: exact weights, neither sharded nor rounded, which take the addition; unusable afterwards.
        settings: PEFT's of the adapters.
        trained: their weights, by their names under PEFT.
        adapter: what PEFT calls the adapter in them.

    Raises:
        EngineError: trained weights that ``base`` has no place for.
    """
    model = under_peft(base, settings, adapter)
    _untie(base)
    left = model.load_state_dict({name: w.float() for name, w in trained.items()}, strict=False)
    if left.unexpected_keys:
        raise EngineError(f"trained weights do not fit the policy: {', '.join(left.unexpected_keys[:3])}, …")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")  # they are apart now
        whole = model.merge_and_unload()
    _own_to_tying(whole)
    return whole


def save_adapter(
    model: Any, target: Path, *, name: str, state: Mapping[str, Tensor] | None, task: str | None = None
) -> None:
    """Write the trained adapters of ``model`` alone, in PEFT's format.

    Args:
        model: under PEFT.
        target: folder to fill.
        name: the policy as the user named it: a path of this machine means nothing elsewhere.
        state: gathered weights by name; None for the model's own.
        task: PEFT's name of what the adapters are for, where it is not the model's.
    """
    from peft import get_peft_model_state_dict

    settings = deepcopy(model.peft_config[model.active_adapter])
    settings.base_model_name_or_path = name
    settings.task_type = task or settings.task_type
    settings.inference_mode = True
    weights = get_peft_model_state_dict(
        model,
        state_dict=None if state is None else dict(state),
        adapter_name=model.active_adapter,
        save_embedding_layers=False,  # the policy's own, unless adapters are trained copies
    )
    target.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name: weight.detach().contiguous().cpu() for name, weight in weights.items()},
        target / ADAPTER_WEIGHTS,
        {"format": "pt"},
    )
    settings.save_pretrained(str(target))
    written = read_object(target / ADAPTER_CONFIG)
    if isinstance(written["target_modules"], list):
        written["target_modules"].sort()  # PEFT's is a set, in any order
    _write_json(target / ADAPTER_CONFIG, written)


def save_whole(
    model: Any, source: Path, target: Path, dtype: torch.dtype, state: Mapping[str, Tensor] | None
) -> None:
    """Write ``model``, or its gathered weights ``state``, and the config of ``source`` to ``target``.

    Args:
        model: a model of transformers, without adapters.
        source: the directory it was loaded from.
        target: an existing folder.
        dtype: of the saved weights.
        state: all of the model's weights by name where its own are sharded; tied ones once or twice.
    """
    weights = model.to(dtype).state_dict() if state is None else state
    tied = getattr(model, "all_tied_weights_keys", {}) if model.config.tie_word_embeddings else {}
    kept = {name: weight.to(dtype) for name, weight in weights.items() if name not in tied}
    save_torch_state_dict(
        {name: _by_itself(weight) for name, weight in as_in_files(model, kept).items()},
        target,
        max_shard_size=SHARD_SIZE,
        metadata={"format": "pt"},
        shared_tensors_to_discard=list(getattr(model, "all_tied_weights_keys", {})),
    )
    _write_json(target / CONFIG, config_to_save(model, source, dtype))


def as_in_files(model: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``weights`` of ``model`` under the names and in the shapes of its kind in files: experts apart."""
    converted: dict[str, Tensor] = revert_weight_conversion(model, dict(weights))
    return converted


def _by_itself(weight: Tensor) -> Tensor:
    """``weight`` with memory of its own, where it is a view of a buffer with others, which are not saved:
    sharded training leaves such, and experts that are one weight in memory are several in a file."""
    shared = weight.untyped_storage().nbytes() != weight.numel() * weight.element_size()
    return weight.to("cpu", copy=True) if shared else weight


def config_to_save(model: Any, source: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The config of ``source`` with what has become true of ``model``: its kind, its tying and its dtype.

    A model whose own config is of another type than that of ``source``, such as the text part of one that
    reads images as well, has its own.
    """
    before = read_object(source / CONFIG)
    own: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    own["architectures"] = [type(model).__name__.removeprefix("FSDP")]
    if own.get("model_type") != before.get("model_type"):
        return _in_dtype(own, dtype)
    changed = {name: own[name] for name in _OF_KIND if name in own and own[name] != before.get(name)}
    settings = {name: value for name, value in before.items() if name != "quantization_config"} | changed
    nested = settings.get("text_config")
    if "tie_word_embeddings" in changed and isinstance(nested, dict):
        settings["text_config"] = nested | {"tie_word_embeddings": changed["tie_word_embeddings"]}
    return _in_dtype(settings, dtype)


def copy_files(source: Path, target: Path, names: Collection[str]) -> None:
    """Copy the files ``names`` below ``source`` to the same places below ``target``."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def copy_with_template(source: Path, target: Path, template: str) -> None:
    """Copy what stands beside the weights of ``source``, with ``template`` in place of its chat templates.

    Args:
        source: a model's directory.
        target: folder to fill.
        template: text of a chat template.
    """
    copy_files(source, target, [n for n in beside_weights(files_below(source)) if not is_template(n)])
    settings = target / TOKENIZER_CONFIG
    if settings.is_file():
        kept = read_object(settings)
        if kept.pop("chat_template", None) is not None:
            _write_json(settings, kept)
    target.joinpath(CHAT_TEMPLATE).write_text(template, encoding="utf-8")


def is_template(name: str) -> bool:
    """Whether a file beside weights holds chat templates and nothing else."""
    return name.startswith(("chat_template.", "additional_chat_templates/"))


def saved_dtype(name: str, source: Path) -> torch.dtype:
    """The precision that ``save_dtype`` ``name`` means for weights of the policy at ``source``.

    Raises:
        EngineError: ``save_dtype`` is saved, and the policy's own is none that training can save.
    """
    dtype: torch.dtype = getattr(torch, saved_dtype_name(name, source))
    return dtype


def _untie(base: Any) -> None:
    """Give the head weights of its own if it shares the embedding's and one of them has adapters: what is
    added to one would be added to both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    pair = (base.get_input_embeddings(), base.get_output_embeddings())
    if None in pair or not any(isinstance(layer, BaseTunerLayer) for layer in pair):
        return
    embedding, head = (
        layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in pair
    )
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())


def _own_to_tying(model: Any) -> None:
    """Say in the config of ``model`` that head and embedding are not tied, if they no longer are."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is not embedding.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _in_dtype(settings: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """``settings`` that name ``dtype`` wherever they named one, at the top in any case."""
    name = str(dtype).removeprefix("torch.")

    def renamed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: name if k in ("dtype", "torch_dtype") else renamed(v) for k, v in value.items()}

    settings = renamed(settings)
    return settings if {"dtype", "torch_dtype"} & settings.keys() else settings | {"dtype": name}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
