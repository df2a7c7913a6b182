"""The models as lm-eval asks them: loaded as everywhere here, refused where they are not whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def open_transformers(model: Path, *, dtype: str, max_model_len: int, batch_size: int, device: str) -> LM:
    """``model`` by transformers.

    Args:
        model: a Hugging Face model directory.
        dtype: of weights and activations.
        max_model_len: most tokens that it reads and writes together; 0 for what it was made for.
        batch_size: sequences that it reads at once.
        device: cuda or cpu.

    Raises:
        EngineError: it cannot be loaded, or is not whole.
    """
    from lm_eval.models.huggingface import HFLM

    from kubealign_components.data.chat.tokenizer import load_tokenizer
    from kubealign_components.engines.loading import load_checkpoint

    loaded, _ = load_checkpoint(model, dtype)
    return HFLM(
        pretrained=loaded.to(device),
        tokenizer=load_tokenizer(model),
        batch_size=batch_size,
        max_length=max_model_len or None,
    )


def open_vllm(
    model: Path,
    *,
    dtype: str,
    max_model_len: int,
    seed: int,
    tensor_parallel_size: int,
    memory_fraction: float,
) -> LM:
    """``model`` by vLLM.

    Args:
        model: a Hugging Face model directory.
        dtype: of weights and activations.
        max_model_len: most tokens that it reads and writes together; 0 for what it was made for.
        seed: of tasks that sample.
        tensor_parallel_size: GPUs that it is spread over.
        memory_fraction: share of each GPU's memory.

    Raises:
        EngineError: vLLM is not installed, or cannot start with this model.
    """
    from kubealign_components.errors import EngineError

    try:
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(model),
            dtype=dtype,
            max_model_len=max_model_len or None,
            seed=seed,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=memory_fraction,
            batch_size="auto",
        )
    except Exception as error:  # whatever an engine raises that does not start
        raise EngineError(
            f"vLLM does not start with {model.name}: {error}; engine: transformers does without it"
        ) from error
