"""Rollouts: completions that the policy adapter samples, as token ids that are never made anew.

What a rollout is depends on the policy, its prompt and its seed, not on what is sampled beside it,
beyond rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kubealign_components.engines.generation import (
    Prompt,
    SamplingSpec,
    check_room,
    context_limit,
    end_token_ids,
)
from kubealign_components.engines.token_batches import longest_first
from kubealign_components.engines.transformers_engine import choose
from kubealign_components.errors import EngineError
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import POLICY, PpoModel
from kubealign_components.train_ppo.prompts import Turn, noise_for
from kubealign_components.training.models import compute_dtype


class Sample(NamedTuple):
    """One sampled completion."""

    token_ids: list[int]
    """Never empty; the end-of-turn token is its last when the policy ended the turn."""
    ended: bool
    """Whether it did."""


class Sampler(Protocol):
    """Samples one completion for each turn with the policy as it is now."""

    def sample(self, turns: Sequence[Turn]) -> list[Sample]:
        """The completions, in order."""
        ...

    def close(self) -> None:
        """Free what the sampler holds."""
        ...


def open_sampler(
    config: PpoConfig, model: PpoModel, base: Path, processes: int = 1, ends: Sequence[int] | None = None
) -> Sampler:
    """The sampler that ``config.engine`` names, for the policy in ``model`` on the base at ``base``.

    Args:
        config: the settings.
        model: in training.
        base: its directory.
        processes: that sample side by side, each with a sampler of its own.
        ends: the tokens that end a turn; None for those of the base's own template.

    Raises:
        EngineError: vLLM is not installed or cannot start.
    """
    if config.engine == "vllm":
        return VllmSampler(config, model, base, processes, ends)
    return TransformersSampler(config, model, base, ends)


class TransformersSampler:
    """Samples with the very weights that are trained, in batches that are padded on the left."""

    def __init__(
        self, config: PpoConfig, model: PpoModel, base: Path, ends: Sequence[int] | None = None
    ) -> None:
        self._config, self._model = config, model
        self._ends = torch.tensor(ends or end_token_ids(base))
        self._limit = context_limit(SamplingSpec(), base)

    def sample(self, turns: Sequence[Turn]) -> list[Sample]:
        """See :class:`Sampler`.

        Raises:
            DataError: a prompt that leaves no room for ``max_new_tokens``.
            EngineError: the device is out of memory.
        """
        for turn in turns:
            question = turn.question
            check_room(question.prompt_id, len(question.token_ids), self._config.max_new_tokens, self._limit)
        samples: dict[int, Sample] = {}
        with self._model.generating() as policy:
            for batch in self._batches(turns):
                samples.update(zip(batch, self._decode(policy, [turns[i] for i in batch]), strict=True))
        return [samples[number] for number in range(len(turns))]

    def close(self) -> None:
        """Nothing to free: the weights belong to the training."""

    def _batches(self, turns: Sequence[Turn]) -> Iterator[list[int]]:
        """Numbers of turns, those with long prompts first, as many as ``generation_tokens`` hold."""
        lengths = [len(turn.question.token_ids) + self._config.max_new_tokens for turn in turns]
        return longest_first(lengths, self._config.generation_tokens, padded=True)

    def _decode(self, policy: object, turns: Sequence[Turn]) -> list[Sample]:
        try:
            with torch.no_grad():
                return self._sampled(policy, turns)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory sampling {len(turns)} rollouts of up to {self._config.max_new_tokens} "
                f"tokens; lower generation_tokens={self._config.generation_tokens}"
            ) from error

    def _sampled(self, policy: Any, turns: Sequence[Turn]) -> list[Sample]:
        config, device = self._config, policy.device
        noise_BL = torch.from_numpy(
            np.stack([noise_for(config, turn).random(config.max_new_tokens) for turn in turns])
        ).to(device)
        ids_BT, mask_BT = left_padded([turn.question.token_ids for turn in turns])
        ids_BT, mask_BT, ends = ids_BT.to(device), mask_BT.to(device), self._ends.to(device)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        output = policy(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, position_B = output.past_key_values, positions_BT[:, -1]
        drawn_BL = torch.zeros(len(turns), config.max_new_tokens, dtype=torch.long, device=device)
        length_B = torch.full((len(turns),), config.max_new_tokens, device=device)
        ended_B = torch.zeros(len(turns), dtype=torch.bool, device=device)
        active = torch.arange(len(turns), device=device)
        for step in range(config.max_new_tokens):
            token_B = choose(output.logits[:, -1].float(), noise_BL[active, step], config.temperature, 1.0)
            drawn_BL[active, step] = token_B
            done_B = torch.isin(token_B, ends)
            ended_B[active[done_B]] = True
            length_B[active[done_B]] = step + 1
            keep = (~done_B).nonzero()[:, 0]
            if not len(keep) or step + 1 == config.max_new_tokens:
                break
            if len(keep) < len(active):
                cache.batch_select_indices(keep)
                active, mask_BT, position_B, token_B = (
                    x[keep] for x in (active, mask_BT, position_B, token_B)
                )
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(active), 1)], dim=1)
            position_B = position_B + 1
            output = policy(
                input_ids=token_B[:, None],
                attention_mask=mask_BT,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        return [
            Sample(ids[:length], ended)
            for ids, length, ended in zip(drawn_BL.tolist(), length_B.tolist(), ended_B.tolist())
        ]


class VllmSampler:
    """Samples with vLLM, which gets the policy adapter anew whenever it samples.

    Raises:
        EngineError: vLLM is not installed or cannot start with this model.
    """

    def __init__(
        self,
        config: PpoConfig,
        model: PpoModel,
        base: Path,
        processes: int = 1,
        ends: Sequence[int] | None = None,
    ) -> None:
        from kubealign_components.engines.vllm_engine import VllmEngine

        self._model = model
        self._handed = 0
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-adapter-")
        engine_args: dict[str, Any] = {
            "enable_lora": True,
            "max_lora_rank": lora_rank_limit(model.peft.peft_config[POLICY].r),
        }
        if processes > 1:
            # Every training process has an engine of its own on its own GPU.
            engine_args["distributed_executor_backend"] = "external_launcher"
        spec = SamplingSpec(
            engine="vllm",
            n=1,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            max_model_len=config.max_prompt_tokens + config.max_new_tokens,
            dtype=str(compute_dtype(config.dtype)).removeprefix("torch."),
            seed=config.seed,
            memory_fraction=config.memory_fraction,
            engine_args=engine_args,
        )
        self._engine = VllmEngine(spec, base, ends)

    def sample(self, turns: Sequence[Turn]) -> list[Sample]:
        """See :class:`Sampler`."""
        self._handed += 1
        folder = Path(self._folder.name, str(self._handed))
        self._model.peft.save_pretrained(str(folder), selected_adapters=[POLICY])
        self._engine.use_adapter(folder / POLICY, self._handed)
        sampled = dict(self._engine.generate(Prompt(turn.name, turn.question.token_ids) for turn in turns))
        samples = [sampled[turn.name][0] for turn in turns]
        return [Sample(one.token_ids, one.finish_reason == "stop") for one in samples]

    def close(self) -> None:
        """See :class:`Sampler`."""
        self._engine.close()
        self._folder.cleanup()


def lora_rank_limit(rank: int) -> int:
    """The smallest ``max_lora_rank`` that vLLM knows for ``rank``.

    Raises:
        EngineError: a rank that vLLM does not take.
    """
    limits = (8, 16, 32, 64, 128, 256, 320, 512)
    fitting = [limit for limit in limits if limit >= rank]
    if not fitting:
        raise EngineError(
            f"vLLM takes adapters of rank {limits[-1]} at most, this one has {rank}; lower lora_r"
        )
    return fitting[0]


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, T) int64, padded with token 0 on the left."""
    longest = max(map(len, sequences))
    ids_BT = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in sequences])
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences])
    return ids_BT, mask_BT
