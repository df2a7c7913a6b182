"""Scoring: the log-probability of given completions under a model, many prompts at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from kubealign_components.config import require, require_choice
from kubealign_components.data.chat.tokenizer import check_ids
from kubealign_components.engines.dtypes import DTYPES, on_cuda, resolved_dtype
from kubealign_components.engines.loading import free_memory, load_checkpoint
from kubealign_components.engines.packing import Group, computing_in, pack, packs, prepare, summed_logprobs
from kubealign_components.errors import ConfigError, EngineError

NF4 = "nf4"
"""Weights in 4 bits."""
POSITIVE_SLACK = 1e-3
"""Nats by which rounding can lift the log-probability of a certain token above zero."""
PROBE = (Group((1, 2, 3, 4, 5, 6), ((7, 8, 9, 10), (11, 12))), Group((13, 14), ((15, 16, 17),)))
"""What a model is tried on when it is loaded: twentieths of its vocabulary."""


class Scorer:
    """A causal language model that scores completions; use as a context to free its memory.

    Packs hold about ``token_budget`` tokens, are filled longest prompt first so that too large a
    budget fails at once, and do not change a bit of the sums.

    Args:
        model: Hugging Face model directory.
        dtype: of products: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32). A half
            one is autocast's, as in training; logits are fp32 whatever it is.
        weights: what weights are held in: one of these dtypes, nf4 (4 bits, which need CUDA; what is left
            whole is then float32), or empty for ``dtype``.
        device: auto (CUDA where there is one), or a torch device; more than one GPU shares a model
            that does not fit on one.
        token_budget: tokens of a pack, each prompt counted once.

    Raises:
        EngineError: the model cannot be loaded, or its packed forward is not its plain one.
        ConfigError: a dtype or budget that cannot be used.
    """

    def __init__(
        self,
        model: Path,
        *,
        dtype: str = "auto",
        weights: str = "",
        device: str = "auto",
        token_budget: int = 4096,
    ) -> None:
        require(token_budget > 0, "token_budget", token_budget, "a positive number of tokens")
        require_choice("dtype", dtype, DTYPES)
        self.token_budget = token_budget
        self._dtype = getattr(torch, resolved_dtype(dtype, device))
        if weights == NF4:
            self._model = in_4_bits(
                load_for_inference(model, resolved_dtype(dtype, device), device, quantise=True)
            )
        else:
            self._model = load_for_inference(model, weights or dtype, device)
        _prepare_and_compare(self._model, 1e-3 if (weights or str(self._dtype)).endswith("float32") else 0.25)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        free_memory()

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """For each group the summed fp32 log-probability of each completion, in nats, in order.

        Raises:
            DataError: an empty prompt or completion.
            EngineError: token ids outside the embedding; a sum that is positive or not finite, with the names
                of prompt and completion; or the device is out of memory.
        """
        rows = self._model.get_input_embeddings().weight.shape[0]
        check_ids((ids for g in groups for ids in (g.prompt, *g.completions)), rows, "the dataset")
        sums: list[list[float]] = [[0.0] * len(group.completions) for group in groups]
        for members in packs(groups, self.token_budget):
            packed = [
                Group(groups[number].prompt, [groups[number].completions[c] for c in chosen])
                for number, chosen in members
            ]
            positions = [(number, completion) for number, chosen in members for completion in chosen]
            names = [f"completion {c} of prompt {groups[n].name or n}" for n, c in positions]
            for (number, completion), name, value in zip(positions, names, self._sums(packed, names)):
                sums[number][completion] = checked_logprob(value, name)
        return sums

    def _sums(self, groups: Sequence[Group], names: Sequence[str]) -> list[float]:
        batch = pack(groups)
        try:
            on_device = batch.to(self._model.get_input_embeddings().weight.device)
            with computing_in(self._dtype, on_device.input_ids.device):
                return summed_logprobs(self._model, on_device, names).tolist()  # type: ignore[no-any-return]
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory scoring {batch.input_ids.numel()} tokens at once; lower "
                f"token_budget={self.token_budget}"
            ) from error


def load_for_inference(
    model: Path,
    dtype: str,
    device: str = "auto",
    *,
    adapter: Path | None = None,
    quantise: bool = False,
) -> Any:
    """A causal language model for inference; ``model``, ``dtype`` and ``device`` as for :class:`Scorer`.

    Args:
        model: Hugging Face model directory.
        dtype: of weights and activations, or of what is computed with weights in 4 bits.
        device: where it runs.
        adapter: folder of a PEFT adapter, put on the model's layers and not merged.
        quantise: load linear layers in 4 bits (nf4), which needs a CUDA device.

    Raises:
        EngineError: the model cannot be loaded.
        ConfigError: a dtype that is none, 4 bits without CUDA, or an adapter that does not fit.
    """
    require_choice("dtype", dtype, DTYPES)
    cuda = on_cuda(device)
    require(cuda or not quantise, "quantise", quantise, "false on this machine: 4 bits need a CUDA device")
    chosen = getattr(torch, resolved_dtype(dtype, device))
    target = ("auto" if torch.cuda.device_count() > 1 else "cuda") if device == "auto" and cuda else device
    loaded, _ = load_checkpoint(
        model,
        chosen,
        device_map=None if target in ("auto", "cpu") and not cuda else target,
        quantization_config=four_bits(chosen) if quantise else None,
    )
    return (loaded if adapter is None else _with_adapter(loaded, adapter)).eval()


def in_4_bits(model: Any) -> Any:
    """``model``, loaded in 4 bits, frozen and with what is left whole in float32, as adapters want it."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def four_bits(dtype: torch.dtype, *, unquantised: Sequence[str] | None = None) -> BitsAndBytesConfig:
    """Linear layers in 4 bits, computed in ``dtype`` (QLoRA, arXiv 2305.14314).

    Args:
        dtype: of the products.
        unquantised: layers that stay as they are; the head by default.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantised,
    )


def _with_adapter(model: Any, adapter: Path) -> Any:
    """``model`` with the adapter's layers in place of its own; the adapter's tokens would not be packed."""
    from peft import PeftConfig, PeftModel

    settings = PeftConfig.from_pretrained(str(adapter))
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    require(
        not settings.is_prompt_learning,
        "adapter",
        str(adapter),
        f"one on the layers, such as LoRA, not {kind}",
    )
    try:
        with warnings.catch_warnings():
            # Adapters that the file lacks would stay as they were made, which changes nothing.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(adapter)).get_base_model()
    except (ValueError, RuntimeError, UserWarning) as error:
        raise ConfigError("adapter", str(adapter), f"an adapter of this policy ({error})") from error


def checked_logprob(value: float, name: str) -> float:
    """``value`` if it can be a log-probability; what rounding lifted above zero becomes zero.

    Raises:
        EngineError: a probability above one; says whose.
    """
    if value > POSITIVE_SLACK:
        raise EngineError(f"{name} has log-probability {value}, a probability above one; the model is broken")
    return min(value, 0.0)


@torch.inference_mode()
def _prepare_and_compare(model: Any, limit: float) -> None:
    """Prepare ``model`` for packing and hold its packed forward to the plain one on a few tokens, within
    ``limit`` nats per token.

    Packing relies on what a model's code does with keyword arguments and after its head; this shows it.
    """
    weight = model.get_input_embeddings().weight
    step, device = len(weight) // 20, weight.device
    groups = [Group(_times(g.prompt, step), [_times(c, step) for c in g.completions]) for g in PROBE]
    plain = torch.tensor([_plain_sum(model, g.prompt, c, device) for g in groups for c in g.completions])
    batch = pack(groups)
    packed = summed_logprobs(prepare(model), batch.to(device)).cpu()
    apart = float(((packed - plain).abs() / batch.lengths()).max())
    if not apart <= limit:
        raise EngineError(
            f"{model.config.model_type}: packed and plain forward differ by {apart:.3g} nats per token in "
            f"{model.dtype}; such models are not supported for scoring and training"
        )


def _times(numbers: Sequence[int], step: int) -> list[int]:
    return [number * step for number in numbers]


def _plain_sum(model: Any, prompt: Sequence[int], completion: Sequence[int], device: Any) -> float:
    logits = model(torch.tensor([[*prompt, *completion]], device=device)).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(completion, device=logprobs.device)[:, None]).sum())
