"""Saving is rehearsed before the first step: what would refuse it at the end refuses it now.

A stand-in of the model, with shapes and no weights, goes through all that a trained one will: adapters,
merging, config, tokenizer, templates, files beside the weights. All weights are brought into the shapes of
files, and a few small ones are written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.model_files import CONFIG, GENERATION_CONFIG, beside_weights, files_below
from kubealign_components.data.models import ModelFiles, read_object
from kubealign_components.engines.loading import load_config
from kubealign_components.errors import EngineError, KubeAlignError
from kubealign_components.training.models import LoraSettings, adapted, lora_config
from kubealign_components.training.saving import (
    as_in_files,
    copy_files,
    merged,
    save_adapter,
    save_whole,
    saved_dtype,
)

FEW = 3
"""Weights that are written, the smallest ones."""


class SavingSettings(LoraSettings, Protocol):
    """Settings that decide how a model is saved."""

    @property
    def policy(self) -> str: ...
    @property
    def adapter(self) -> str: ...
    @property
    def save_dtype(self) -> str: ...


def rehearse_saving(
    config: SavingSettings,
    source: Path,
    *,
    merge_adapter: bool = True,
    kind: object = AutoModelForCausalLM,
    targets: Callable[[object], Sequence[str]] = lambda _: (),
    task: str | None = "CAUSAL_LM",
    **options: object,
) -> None:
    """Save a stand-in of the model that training will make of ``source``, and load it again.

    Args:
        config: the settings.
        source: directory of the model that training starts from.
        merge_adapter: whether adapters are added to the weights or saved alone.
        kind: what it is loaded as.
        targets: layers of the model that get adapters where the settings name none.
        task: PEFT's name of what the model is for.
        options: further settings of the model.

    Raises:
        ConfigError: ``lora_targets`` name no layer of it.
        EngineError: it could not be saved, or not be loaded again; says why.
    """
    alone = config.adapter != "none" and not merge_adapter
    if not alone:
        _refuse_quantised(source)
    dtype = torch.float32 if alone else saved_dtype(config.save_dtype, source)
    folder = Path(tempfile.mkdtemp(prefix="kubealign-rehearsal-"))
    try:
        trained = model = _stand_in(kind, source, options)
        if config.adapter != "none":
            settings = lora_config(config, targets(model), task=task)
            trained = adapted(model, settings, config.lora_targets)
        if alone:
            save_adapter(trained, folder, name=config.policy, state=_few(trained, only="lora_"))
        else:
            whole = _merged(trained, kind, source, options) if config.adapter != "none" else model
            as_in_files(whole, dict(whole.named_parameters()))
            save_whole(whole, source, folder, dtype, _few(whole))
        copy_files(source, folder, beside_weights(files_below(source)))
        _load(folder, source, None if alone else whole, kind, options)
    except KubeAlignError:
        raise
    except Exception as error:  # whatever the libraries raise about a model that they cannot write or read
        raise EngineError(
            f"what training would make of {source} could not be saved and loaded again, so it does not "
            f"begin: {(str(error) or type(error).__name__)[:500]}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stand_in(kind: Any, source: Path, options: Mapping[str, Any]) -> Any:
    """The model of the directory ``source`` with shapes and no weights."""
    config = load_config(source)
    for name, value in options.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def _merged(trained: Any, kind: Any, source: Path, options: Mapping[str, Any]) -> Any:
    adapter = trained.active_adapter
    weights = {name: weight for name, weight in trained.named_parameters() if "lora_" in name}
    return merged(_stand_in(kind, source, options), trained.peft_config[adapter], weights, adapter)


def _few(model: nn.Module, only: str = "") -> dict[str, Tensor]:
    """Zeros for a few small weights of ``model``."""
    named = [(name, w) for name, w in model.named_parameters() if only in name]
    return {name: torch.zeros(w.shape) for name, w in sorted(named, key=lambda each: each[1].numel())[:FEW]}


def _load(folder: Path, source: Path, whole: Any, kind: Any, options: Mapping[str, Any]) -> None:
    """Load from ``folder`` what was saved there, and hold it to what it was made of."""
    load_tokenizer(folder)
    ours, theirs = (ModelFiles(name=path.name, path=path) for path in (source, folder))
    if ours.tokenizer_digest() != theirs.tokenizer_digest():
        raise EngineError(f"the tokenizer of {source} is not saved as it is")
    if (folder / GENERATION_CONFIG).is_file():
        GenerationConfig.from_pretrained(folder)
    if whole is None:
        from peft import PeftConfig

        PeftConfig.from_pretrained(str(folder))
        return
    again = _stand_in(kind, folder, options)
    before, after = ({n: w.shape for n, w in m.named_parameters()} for m in (whole, again))
    if before != after:
        differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        raise EngineError(
            f"a model saved with the config of {source} has other weights: {', '.join(differ[:3])}; "
            "save it again with the transformers of this machine"
        )


def _refuse_quantised(source: Path) -> None:
    quantised = read_object(source / CONFIG).get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise EngineError(
            f"the weights of {source} are quantised ({method or 'in some way'}), so what is learnt cannot be "
            "added to them; give the model that it was quantised from (qlora quantises it while it trains), "
            "or keep adapters apart with merge_adapter: false"
        )
