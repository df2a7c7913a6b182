"""Settings of ``train``."""

from __future__ import annotations

from dataclasses import dataclass

from kubealign_components.config import gate, require, require_choice
from kubealign_components.training.config import PAIRWISE, POINTWISE, TRANSFORMS, TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(TrainerConfig):
    """Settings of ``train``. The policy must be the one that the dataset was made with."""

    objective: str = "dpo"
    """dpo, dpo_norm, ipo, simpo, rebel (these need pairs), qrpo or kto (pairs or single completions; kto goes
    by people's labels)."""
    beta: float = 0.1
    """Pull to the reference. Its scale depends on the objective: 0.01 to 0.5 for dpo and kto, 0.01 to 1 for
    ipo, 0.0001 to 0.1 for qrpo, 1 to 20 for dpo_norm and simpo."""
    transform: str = "identity"
    """qrpo: what is regressed on, as a function of the quantile reward: identity, log, sqrt, square or
    normal_icdf."""
    length_normalise: bool = False
    """qrpo: β per token, so each completion has β divided by its length. The length-normalised DPO is
    the objective dpo_norm."""
    beta_max: float | None = None
    """qrpo: upper limit on a completion's β; none by default. Published code clamps to 0.1 unasked."""
    label_smoothing: float = 0.0
    """dpo, dpo_norm, simpo: probability that a preference is the wrong way round, in [0, 0.5)."""
    gamma: float = 0.5
    """simpo: target reward margin γ."""
    desirable_weight: float = 1.0
    """kto: factor of the losses of completions that people called good. The paper wants good times their
    number over bad times theirs between 1 and 4/3."""
    undesirable_weight: float = 1.0
    """kto: factor of the losses of completions that people called bad."""
    learning_rate: float = 5e-7
    """Peak learning rate of AdamW. Full training wants some 5e-7 to 5e-6, adapters ten times that."""
    max_grad_norm: float = 1e5
    """Clip the gradient norm to this; 0 never clips. The published recipe's 1e5 leaves it alone."""
    stop_after: float = 1.0
    """Share of the planned optimiser steps after which training stops; 1 for all. Learning rates and order
    are those of the whole training. A larger share goes on from where this one stopped, by the checkpoint in
    the work prefix, to the weights that it would have come to by itself."""
    merge_adapter: bool = True
    """Whether to add the adapters to the weights and save a whole model, or to save the adapters alone,
    which need the policy beside them and which no other stage takes for a model."""
    reference: str = ""
    """Model that the dataset's log-probabilities are of, where training starts at another policy: model
    directory, URI or hub id. Nothing of it is loaded; its digest is compared with the dataset's."""
    reference_revision: str | None = None
    """Branch, tag or commit of the reference, where that is a hub id."""
    max_initial_drift: float | None = gate(None)
    """Largest mean |log-ratio| per token before the first step, in nats. By default 0: the reference was
    computed as the policy is, to the last bit, or the run is refused. That holds on one device and, measured
    on two processes, of data parallelism, fsdp2, zero1, zero2 and zero3, in float32 and bfloat16: a forward
    pass has whole weights, and sharding changes the order of sums of gradients alone. The default is 0.05
    for log-probabilities of the sampler or from elsewhere. A number given here also accepts a reference that
    was scored in another precision."""

    def __post_init__(self) -> None:
        TrainerConfig.__post_init__(self)
        require_choice("objective", self.objective, PAIRWISE + POINTWISE)
        require_choice("transform", self.transform, TRANSFORMS)
        require(self.beta > 0, "beta", self.beta, "a positive number")
        require(0 < self.stop_after <= 1, "stop_after", self.stop_after, "a share, above 0 and at most 1")
        require(
            self.stop_after == 1 or bool(self.work),
            "work",
            self.work,
            f"a folder or URI for a checkpoint to go on from after stop_after={self.stop_after:g}",
        )
        drift = self.max_initial_drift
        require(drift is None or drift >= 0, "max_initial_drift", drift, "0 or more, or none for the default")
        require(
            not self.reference or self.objective != "kto",
            "reference",
            self.reference,
            "none with objective kto: its reference point is measured on the policy that training starts at",
        )
        for name in ("desirable_weight", "undesirable_weight"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.gamma >= 0, "gamma", self.gamma, "0 or more")
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "0 up to below 0.5")
        self._check_combinations()

    def _check_combinations(self) -> None:
        for name, idle in (("length_normalise", False), ("beta_max", None), ("transform", "identity")):
            value = getattr(self, name)
            require(
                self.objective == "qrpo" or value == idle,
                name,
                value,
                f"{idle} with objective {self.objective}: only qrpo has it"
                + (" (length-normalised DPO is dpo_norm)" if name == "length_normalise" else ""),
            )
        require(
            not self.label_smoothing or self.objective in ("dpo", "dpo_norm", "simpo"),
            "label_smoothing",
            self.label_smoothing,
            f"0 with objective {self.objective}: only dpo, dpo_norm and simpo have it",
        )
        for name in ("desirable_weight", "undesirable_weight"):
            require(
                self.objective == "kto" or getattr(self, name) == 1,
                name,
                getattr(self, name),
                f"1 with objective {self.objective}: only kto has it",
            )
        require(
            self.objective != "kto" or self.strategy == "none",
            "strategy",
            self.strategy,
            "none with objective kto: its reference point is measured on whole weights before the first step",
        )
        require(
            self.beta_max is None or self.beta_max > 0, "beta_max", self.beta_max, "a positive number or none"
        )
