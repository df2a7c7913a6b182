"""The reward model: the policy's decoder with a scalar head, to be trained, and saved so that others load it.

A head is never random unasked: a new one starts as the settings say, one that is trained on is read from
its file, and a file without it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.model_files import ADAPTER_FOLDER, files_below
from kubealign_components.data.templates import RewardTemplate, Shown
from kubealign_components.engines.loading import HEAD_KEY, load_checkpoint
from kubealign_components.engines.packed_attention import SegmentPlan, check_rope, check_windows
from kubealign_components.engines.packing import prepare
from kubealign_components.engines.reward_model import HEAD_FILE, load_head
from kubealign_components.engines.scoring import four_bits
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.pairs import PairBatch
from kubealign_components.training.models import (
    attach_adapter,
    base_dtype,
    ready_to_train,
)
from kubealign_components.training.rehearsal import rehearse_saving
from kubealign_components.training.saving import (
    CHAT_TEMPLATE,
    copy_files,
    copy_with_template,
    merged,
    save_adapter,
    save_whole,
    saved_dtype,
    trained_state,
)


class PairScores(nn.Module):
    """Scores of packed pairs as a module: what FSDP and DeepSpeed wrap, so that their hooks run.

    Args:
        model: from :func:`load_reward_model`.

    Raises:
        EngineError: a model whose attention cannot be packed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = prepare(model)

    def forward(self, batch: PairBatch) -> Tensor:
        """(P, 2) fp32 scores, of the chosen and of the rejected sequence, each read at its last token."""
        base = _base(self.model)
        plan = SegmentPlan(batch.segments)
        check_rope(base, plan.longest)
        output = base.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, plan=plan
        )
        check_windows(base, plan)
        hidden_KH = output.last_hidden_state[0][batch.ends_K]
        with torch.autocast(hidden_KH.device.type, enabled=False):
            # The head computes in what its weights are: fp32, or what DeepSpeed makes of them.
            scores_K1 = base.score(hidden_KH.to(base.score.weight.dtype)).float()
        return scores_K1.reshape(-1, 2)


def padding_id(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> int | None:
    """The id that a reward model is padded with: the tokenizer's, else its end of text.

    A padding token that was added to a tokenizer alone is none for the model, which could then be saved and
    never be loaded again.

    Args:
        tokenizer: of the policy.
        rows: tokens that the policy knows; None where its config does not say.
    """
    candidates = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
    return next((i for i in candidates if rows is None or i < rows), None)


def load_reward_model(
    config: RewardModelConfig, policy: Path, start: Path | None, pad_token: int | None
) -> Any:
    """The model ready to train: dropout off, adapters attached, head and trained weights in float32.

    Args:
        config: the settings.
        policy: its Hugging Face directory.
        start: directory of the reward model to train on; None to start from the policy with a new head.
        pad_token: its id, which users of the saved model need.

    Raises:
        EngineError: no decoder, or a reward model to start from without head; names the missing file.
        ConfigError: adapters that are not those of the model to start from.
    """
    whole = start if start is not None and config.adapter == "none" else None
    model, has_head = _load(whole or policy, base_dtype(config), quantise=config.adapter == "qlora")
    if whole is not None and not has_head:
        raise EngineError(f"{whole} is no reward model: its checkpoint lacks {HEAD_KEY}")
    model.config.pad_token_id = pad_token
    model.score.float()
    if config.adapter != "none" and start is not None:
        head_1H = load_head(start / ADAPTER_FOLDER)
        model = _resume_adapter(config, model, start / ADAPTER_FOLDER)
        _write_head(model, head_1H)
    else:
        if config.adapter != "none":
            model = attach_adapter(config, model, linear_layers(model), task=None)
        if whole is None:
            _write_head(model, _new_head(config, model))
    _base(model).score.requires_grad_(True)
    return ready_to_train(config, model)


def linear_layers(model: Any) -> list[str]:
    """Names of all kinds of linear layers but the head, which are what gets adapters by default."""
    names = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return sorted({name.rsplit(".", 1)[-1] for name in names} - {"score"})


def save_tokenizer(policy: Path, target: Path, template: RewardTemplate, own: Sequence[Shown]) -> Any:
    """The policy's tokenizer, saved to ``target`` with a reward template; gives it loaded from there.

    All files beside the weights are copied byte for byte, but for chat templates.

    Args:
        policy: the policy's directory.
        target: folder to fill.
        template: what the reward model reads.
        own: principles that it goes by where a caller gives none.
    """
    target.mkdir(parents=True)
    copy_with_template(policy, target, "")
    tokenizer = load_tokenizer(target)
    bos = tokenizer.bos_token_id
    opens = bos is not None and tokenizer("x")["input_ids"][0] == bos
    text = template.chat_template(own, beginning=tokenizer.bos_token if opens else "")
    (target / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    return load_tokenizer(target)


def save_reward_model(
    config: RewardModelConfig,
    model: Any,
    policy: Path,
    start: Path | None,
    tokenizer: Path,
    target: Path,
    state: Mapping[str, Tensor] | None,
) -> None:
    """Write the trained ``model`` as a Hugging Face directory that sequence-classification loaders take.

    Adapters are added to the weights; they and the head stand in the folder ``adapter`` as well, by the
    name that the user gave the policy.

    Args:
        config: the settings.
        model: from :func:`load_reward_model`, trained; unusable afterwards.
        policy: the policy's directory.
        start: of the reward model that it started from, if any.
        tokenizer: folder with the tokenizer's files, chat template included.
        target: folder to fill.
        state: gathered weights by name where the model's own are sharded; all of them, or only the
            trained ones where there are adapters.
    """
    target.mkdir(parents=True, exist_ok=True)
    dtype = saved_dtype(config.save_dtype, policy)
    if config.adapter == "none":
        save_whole(model, start or policy, target, dtype, state)
    else:
        trained = state or trained_state(model)
        _save_adapter(config, model, trained, target / ADAPTER_FOLDER)
        save_whole(_merged(model, trained, policy), policy, target, dtype, None)
    copy_files(tokenizer, target, files_below(tokenizer))


def rehearse_reward_model(config: RewardModelConfig, policy: Path) -> None:
    """See :func:`~kubealign_components.training.rehearsal.rehearse_saving`."""
    rehearse_saving(
        config,
        policy,
        kind=AutoModelForSequenceClassification,
        targets=linear_layers,
        task=None,
        num_labels=1,
    )


def _load(path: Path, dtype: torch.dtype, *, quantise: bool = False) -> tuple[Any, bool]:
    """The model, and whether its checkpoint had a head."""
    model, missing = load_checkpoint(
        path,
        dtype,
        kind=AutoModelForSequenceClassification,
        optional=[HEAD_KEY],
        num_labels=1,
        quantization_config=four_bits(dtype, unquantised=["score"]) if quantise else None,
    )
    if not hasattr(model, "score"):
        raise EngineError(
            f"{path} is a {model.config.model_type}, expected a decoder, read at its last token"
        )
    return model, not missing


def _resume_adapter(config: RewardModelConfig, model: Any, folder: Path) -> Any:
    """``model`` with the trained adapters of ``folder``, to be trained on."""
    from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training

    lora = LoraConfig.from_pretrained(str(folder))
    for name, value, trained in (
        ("lora_r", config.lora_r, lora.r),
        ("lora_alpha", config.lora_alpha, lora.lora_alpha),
    ):
        if value != trained:
            raise ConfigError(name, value, f"{trained}, as the adapters that training starts from have it")
    targets = set(lora.target_modules)
    if config.lora_targets and set(config.lora_targets) != targets:
        raise ConfigError(
            "lora_targets", config.lora_targets, f"those that it starts from, {sorted(targets)}"
        )
    if config.adapter == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora.lora_dropout = config.lora_dropout
    lora.inference_mode = False
    lora.task_type = None
    torch.manual_seed(config.seed)
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True, config=lora)
    except (ValueError, RuntimeError) as error:
        raise ConfigError("start", str(folder), f"adapters that fit the policy ({error})") from error


def _save_adapter(config: RewardModelConfig, model: Any, trained: Mapping[str, Tensor], folder: Path) -> None:
    save_adapter(model, folder, name=config.policy, state=trained, task="CAUSAL_LM")
    head = next(weight for name, weight in trained.items() if name.endswith(HEAD_KEY))
    safetensors.torch.save_file({HEAD_KEY: head.float().contiguous()}, folder / HEAD_FILE)


def _merged(model: Any, trained: Mapping[str, Tensor], policy: Path) -> Any:
    """The model with its adapters added to exact weights: not to rounded or sharded ones."""
    settings = model.peft_config[model.active_adapter]
    settings.task_type = None
    fresh, _ = _load(policy, torch.float32)
    fresh.config.pad_token_id = _base(model).config.pad_token_id
    return merged(fresh, settings, trained, model.active_adapter)


def _new_head(config: RewardModelConfig, model: Any) -> Tensor:
    hidden = int(_base(model).config.get_text_config().hidden_size)
    if config.head == "zero":
        return torch.zeros(1, hidden)
    return torch.randn(1, hidden, generator=torch.Generator().manual_seed(config.seed)) / math.sqrt(
        hidden + 1
    )


def _write_head(model: Any, head_1H: Tensor) -> None:
    weight = _base(model).score.weight
    with _whole(weight), torch.no_grad():
        if weight.shape != head_1H.shape:
            raise ConfigError("start", tuple(head_1H.shape), f"a head of shape {tuple(weight.shape)}")
        weight.copy_(head_1H)


@contextmanager
def _whole(parameter: nn.Parameter) -> Iterator[None]:
    """``parameter`` in one piece, also where ZeRO-3 has sharded it on loading."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
