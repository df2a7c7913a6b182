"""One base model with an adapter for each part that PPO needs: policy, value, reward and reference.

The base is in memory once, in 4 bits where CUDA is and the settings say so. The reference is the base
itself, or a frozen copy of the policy adapter that training starts from.

Shape suffixes: T tokens of a pack, M completion tokens, K rollouts, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kubealign_components.engines.head import Head, chosen_logprobs
from kubealign_components.engines.last_token import SHORTEST_PREFIX, common_length
from kubealign_components.engines.packing import Group, PackedBatch, hidden_states, lay_out, prepare
from kubealign_components.engines.reward_model import load_head
from kubealign_components.errors import ConfigError, NotFinite
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.objectives import entropy
from kubealign_components.training.models import (
    adapted,
    compute_dtype,
    disable_dropout,
    load_base,
    lora_config,
)

POLICY, VALUE, REWARD, REFERENCE = "policy", "value", "reward", "reference"
_OfLogits = Callable[[Tensor, Tensor], Tensor]
"""What is measured of each token, (M,), by its logits (M, V) and the token itself (M,)."""


class Adapters(NamedTuple):
    """Local folders of adapters in PEFT format; None where there is none."""

    reward: Path | None = None
    """Of the reward model, with its head."""
    policy: Path | None = None
    """That training starts from."""


class PpoModel(nn.Module):
    """The base with its adapters and heads, of which policy and value are trained.

    Args:
        config: the settings.
        base: a Hugging Face model directory.
        adapters: what it starts with.
        device: where it goes.

    Raises:
        ConfigError: an adapter of another base, or ``lora_targets`` that the base does not have.
        EngineError: no causal language model, one that cannot be packed, or a reward adapter without head.
    """

    def __init__(self, config: PpoConfig, base: Path, adapters: Adapters, device: torch.device) -> None:
        super().__init__()
        self.config = config
        dtype = compute_dtype(config.dtype)
        model = load_base(base, dtype, quantise=config.adapter == "qlora")
        if config.adapter == "qlora":
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        else:
            model.to(device)
        self.own_attention = model.config.get_text_config()._attn_implementation
        self.peft = _with_adapters(config, model, adapters)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        disable_dropout(self.peft)
        self.has_reference = adapters.policy is not None
        hidden = int(model.config.get_text_config().hidden_size)
        self.value_head = nn.Linear(hidden, 1).to(device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.reward_head_1H = None if adapters.reward is None else _head(adapters.reward, hidden).to(device)
        self.base = prepare(self.peft.get_base_model())

    @property
    def device(self) -> torch.device:
        """Where the first layer is."""
        device: torch.device = self.base.device
        return device

    def trained(self, part: str) -> dict[str, nn.Parameter]:
        """The trained weights of ``policy`` or ``value`` (its head included), by name."""
        weights = {n: p for n, p in self.peft.named_parameters() if f".{part}." in n and "lora_" in n}
        if part == VALUE:
            weights |= {f"head.{name}": p for name, p in self.value_head.named_parameters()}
        return weights

    @contextmanager
    def acting(self, part: str) -> Iterator[Any]:
        """The base as policy, value, reward or reference while the block runs.

        A backward pass has to stay in the block: with checkpointing it runs the model again.
        """
        if part == REFERENCE and not self.has_reference:
            with self.peft.disable_adapter():
                yield self.base
            return
        self.peft.set_adapter(part, inference_mode=part in (REWARD, REFERENCE))
        yield self.base

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """The policy with its own attention, which knows padding and a cache."""
        packed = self.base.config.get_text_config()._attn_implementation
        self.eval()
        self.base.set_attn_implementation(self.own_attention)
        try:
            with self.acting(POLICY):
                yield self.base
        finally:
            self.base.set_attn_implementation(packed)

    def logprobs(self, part: str, batch: PackedBatch) -> Tensor:
        """Log-probability of each completion token as the policy samples, (M,) fp32; differentiable.

        To be called while ``part`` is :meth:`acting`.

        Raises:
            NotFinite: one of them.
        """
        (logprob_M,) = self._of_tokens(part, batch, chosen_logprobs)
        return logprob_M

    @torch.no_grad()
    def logprobs_and_entropy(self, part: str, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """As :meth:`logprobs`, and the entropy of what each token is drawn from, in nats, (M,) fp32."""
        logprob_M, entropy_M = self._of_tokens(
            part, batch, chosen_logprobs, lambda logits_MV, _: entropy(logits_MV)
        )
        return logprob_M, entropy_M

    def _of_tokens(self, part: str, batch: PackedBatch, *functions: _OfLogits) -> list[Tensor]:
        hidden_MH = hidden_states(self.base, batch)[batch.predictors]
        head, heat = Head(self.base), self.config.temperature
        slices = [
            _token_slice(head, hidden, targets, heat, functions)
            for hidden, targets in zip(hidden_MH.split(head.rows), batch.targets.split(head.rows))
        ]
        columns = [torch.cat(column) for column in zip(*slices)]
        if not torch.isfinite(columns[0]).all():
            raise NotFinite(
                f"a log-probability of the {part} is not finite: in the first step its model is broken, or "
                "dtype=float32 is needed; later the training has diverged, lower learning_rate"
            )
        return columns

    def values(self, batch: PackedBatch) -> Tensor:
        """Value of the state before each completion token, (M,) fp32; while ``value`` is :meth:`acting`."""
        hidden_MH = hidden_states(self.base, batch)[batch.predictors]
        values_M: Tensor = self.value_head(hidden_MH.float())[:, 0]
        return values_M

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward adapter's score of each token sequence, in fp32."""
        assert self.reward_head_1H is not None
        with self.acting(REWARD):
            batch = pack_rollouts([(ids[:-1], ids[-1:]) for ids in sequences]).to(self.device)
            # The prediction of the last token is read one token later: at the token itself.
            hidden_KH = hidden_states(self.base, batch)[batch.predictors + 1].float()
        return (hidden_KH @ self.reward_head_1H.T)[:, 0].tolist()  # type: ignore[no-any-return]


def pack_rollouts(rollouts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PackedBatch:
    """Prompts with their completions in one row; targets are the completions' tokens.

    What all prompts begin with, such as a system message, is computed once.
    """
    shared = _beginning_of_all([prompt for prompt, _ in rollouts])
    texts = [(*prompt[len(shared) :], *completion) for prompt, completion in rollouts]
    tokens, positions, segments = lay_out([Group(shared, texts)])
    lengths = torch.tensor([len(completion) for _, completion in rollouts])
    ends = [stop for *_, first, stop in segments if stop > first]
    starts = [stop - len(completion) for stop, (_, completion) in zip(ends, rollouts, strict=True)]
    spans = [torch.arange(start, start + len(c)) for start, (_, c) in zip(starts, rollouts)]
    target_positions_M = torch.cat(spans)
    input_ids = torch.tensor([tokens])
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        predictors=target_positions_M - 1,
        targets=input_ids[0, target_positions_M],
        owners=torch.repeat_interleave(lengths),
        completions=len(rollouts),
    )


def _beginning_of_all(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all ``prompts`` begin with, but for the last token of the shortest; nothing where that is so short
    that attending in two parts does not pay."""
    first, *others = map(tuple, prompts)
    shared = min((common_length(first, other) for other in others), default=0)
    shared = min(shared, *(len(prompt) - 1 for prompt in prompts))
    return first[:shared] if shared >= SHORTEST_PREFIX else ()


def _head(adapter: Path, hidden: int) -> Tensor:
    """The scalar head of a reward adapter, (1, H) fp32: without it, rewards would be random."""
    head_1H = load_head(adapter)
    if head_1H.shape[1] != hidden:
        raise ConfigError(
            "reward_model",
            str(adapter),
            f"a head of width {hidden}, that of the policy's base; it has {head_1H.shape[1]}",
        )
    return head_1H


def _with_adapters(config: PpoConfig, base: Any, adapters: Adapters) -> Any:
    """The base under PEFT, with the adapters that ``config`` and ``adapters`` ask for."""
    from peft import PeftModel

    torch.manual_seed(config.seed)
    if adapters.policy is None:
        model = adapted(base, lora_config(config), config.lora_targets, POLICY)
    else:
        with _named("policy_adapter", adapters.policy):
            model = PeftModel.from_pretrained(base, adapters.policy, adapter_name=POLICY, is_trainable=True)
            _load(model, adapters.policy, REFERENCE, trainable=False)
            started = model.peft_config[POLICY]
            if started.peft_type != "LORA" or started.modules_to_save or started.bias != "none":
                raise ValueError("only LoRA can be trained on, without modules_to_save and biases")
    if adapters.reward is None:
        model.add_adapter(VALUE, lora_config(config))
    else:
        with _named("reward_model", adapters.reward):
            _load(model, adapters.reward, VALUE, trainable=True)
            _load(model, adapters.reward, REWARD, trainable=False)
    return model


def _load(model: Any, folder: Path, name: str, *, trainable: bool) -> None:
    """Load the adapter at ``folder`` as ``name``; ValueError unless all of it fits."""
    report = model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
    missing = [key for key in report.missing_keys if f".{name}." in key]
    if missing or report.unexpected_keys:
        raise ValueError(f"{len(missing)} weights are missing, {len(report.unexpected_keys)} fit nowhere")


@contextmanager
def _named(field: str, folder: Path) -> Iterator[None]:
    """What PEFT says of an adapter that does not fit becomes an error of the setting ``field``."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            field, str(folder), f"a PEFT adapter of the policy's base ({lines[-1].strip()})"
        ) from error


def _token_slice(
    head: Head, hidden_MH: Tensor, targets_M: Tensor, heat: float, functions: Sequence[_OfLogits]
) -> tuple[Tensor, ...]:
    def compute(hidden_MH: Tensor) -> tuple[Tensor, ...]:
        logits_MV = head(hidden_MH) / heat
        return tuple(function(logits_MV, targets_M) for function in functions)

    if torch.is_grad_enabled():
        result: tuple[Tensor, ...] = checkpoint(compute, hidden_MH, use_reentrant=False)
        return result
    return compute(hidden_MH)
