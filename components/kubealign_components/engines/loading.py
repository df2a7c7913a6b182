"""Loading models: one way in for sampling, scoring, judging, rewarding and training.

A checkpoint that is not all of the model is refused: what is missing would be random, and what is left over
would be left out of whatever is saved later. No code that lies in a model's folder is run.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import deepspeed
from transformers.utils import logging as transformers_logging

from kubealign_components.data.models import read_object
from kubealign_components.errors import EngineError

log = logging.getLogger(__name__)

HEAD_KEY = "score.weight"
"""The scalar head of a reward model, (1, H)."""
_OTHER_HEADS = ("score.", "classifier.", "v_head.", "value_head.", "qa_outputs.")
_UNMERGED = ("lora_A", "lora_B", "base_layer.", "modules_to_save.")
_SHOWN = 3
_OTHER_CLASS = re.compile(r"Unrecognized configuration class <class '[\w.]*?(\w+)Config'>.*AutoModel: (\w+)")


def load_checkpoint(
    path: Path,
    dtype: torch.dtype | str,
    *,
    kind: Any = AutoModelForCausalLM,
    optional: Collection[str] = (),
    extra: Collection[str] = (),
    **options: Any,
) -> tuple[Any, set[str]]:
    """The model in the directory ``path``, all of whose weights come from there.

    Args:
        path: a Hugging Face model directory.
        dtype: of the weights; ``auto`` for the checkpoint's own.
        kind: what it is loaded as.
        optional: weights that the checkpoint may lack.
        extra: weights of the checkpoint that the class has no place for, which the caller reads by itself.
        options: further arguments of ``from_pretrained``.

    Returns:
        The model, and those of the ``optional`` weights that the checkpoint lacks.

    Raises:
        EngineError: it cannot be loaded, is not whole, or does not fit its config; names what is missing.
    """
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is refused, or told, below
    try:
        model, report = kind.from_pretrained(
            path,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below
            **{"trust_remote_code": False} | options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # configs, weights and quantisers each fail their own way
        raise EngineError(f"cannot load the model {path}: {_reason(error)}") from error
    finally:
        transformers_logging.set_verbosity(said)
    if deepspeed.is_deepspeed_zero3_enabled():
        _restore_buffers(model)
    missing, left = set(report["missing_keys"]), set(report["unexpected_keys"]) - {*extra}
    if unlike := sorted(report["mismatched_keys"]):
        name, held, expected = unlike[0]
        raise EngineError(
            f"the checkpoint {path} does not fit its config: {name} has the shape {tuple(held)}, expected "
            f"{tuple(expected)} ({len(unlike)} weights in all); save both again, with one library"
        )
    _require_kind(path, missing - {*optional}, left)
    if missing - {*optional}:
        raise EngineError(
            f"the checkpoint {path} is not whole: it lacks {_some(missing - {*optional})}, which would be "
            "random; fetch or save the model again"
        )
    if left:
        log.warning("%s has weights that a %s does not use: %s", path, type(model).__name__, _some(left))
    return model, missing & {*optional}


def _restore_buffers(model: Any) -> None:
    """Give ``model`` its computed constants as its code makes them.

    While ZeRO-3 shards a model that is being made, every number is in what is trained in: rotary frequencies
    in bfloat16 turn a token at position 4,000 by whole radians too much or too little.
    """
    with _without_zero(), init_empty_weights():
        made = type(model)(model.config)
    for name, module in made.named_modules():
        for buffer in module._non_persistent_buffers_set:
            value, own = getattr(module, buffer), model.get_submodule(name)
            if value is not None:
                setattr(own, buffer, value.to(getattr(own, buffer).device))


@contextmanager
def _without_zero() -> Iterator[None]:
    """What is made inside is not sharded: models that make another inside would ask for it."""
    asked = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = asked


def load_config(path: Path) -> object:
    """The config of the model in the directory ``path``.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each family's config checks itself in its own way
        raise EngineError(f"cannot read the config of {path}: {_reason(error)}") from error


def context_length(config: Any, tokenizer: Any) -> int:
    """Positions that the model was made for, or what the tokenizer says if that is less."""
    positions = (
        getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    )
    return int(min(positions, tokenizer.model_max_length))


def free_memory() -> None:
    """Give back to the device what models that are no longer referenced held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _require_kind(path: Path, missing: Collection[str], left: Collection[str]) -> None:
    """Refuse a checkpoint of another kind of model, as such."""
    if HEAD_KEY in missing:
        named = ", ".join(map(str, read_object(path / "config.json").get("architectures") or ()))
        raise EngineError(
            f"{path} is no reward model: its checkpoint lacks {HEAD_KEY}, the head that gives a score"
            + (f"; its config calls it {named}" if named else "")
            + "; give a sequence-classification model, such as train_reward_model makes"
        )
    if heads := [name for name in left if name.startswith(_OTHER_HEADS)]:
        raise EngineError(
            f"{path} is no causal language model: its checkpoint holds {_some(heads)}, a head of another "
            "kind (a reward model or classifier); give the policy itself"
        )
    if unmerged := [name for name in (*missing, *left) if any(part in name for part in _UNMERGED)]:
        raise EngineError(
            f"{path} holds weights of adapters beside those of the model ({_some(unmerged)}), which would be "
            "left out; merge them first"
        )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "it needs Python code that lies in its folder, which is not run; give a model of a family that "
            "transformers knows"
        )
    if other := _OTHER_CLASS.search(text):  # goes on with the names of some hundred classes
        return (
            f"it is a {other[1]}, which transformers does not load as {other[2]}; give a model of text alone"
        )
    return text
