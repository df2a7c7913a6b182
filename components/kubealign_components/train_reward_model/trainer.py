"""The trainer of the reward model: Bradley-Terry on pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kubealign_components.train_reward_model.pairs import PairBatch
from kubealign_components.training.objectives import bradley_terry_loss
from kubealign_components.training.step_trainer import StepTrainer


class RewardTrainer(StepTrainer):
    """Trains :class:`~kubealign_components.train_reward_model.model.PairScores` on pairs.

    Measured over pairs: the loss; ``reward_margin``, chosen minus rejected; ``reward_accuracy``, how often
    that is positive, a tie counting half; ``reward_mean``, of both scores; and the tokens of forward passes.
    """

    measured = ("loss", "reward_margin", "reward_accuracy", "reward_mean", "tokens")
    program = "train reward model"

    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the loss over the pairs of ``batch``."""
        scores_P2 = model(batch)
        chosen_P, rejected_P = scores_P2.unbind(1)
        loss = bradley_terry_loss(chosen_P, rejected_P, batch.margin_P, centring=self.config.centring).sum()
        if batch.step_examples:
            self._measure(batch, loss, scores_P2.detach())
        return loss

    def _measure(self, batch: PairBatch, loss: Tensor, scores_P2: Tensor) -> None:
        margin_P = scores_P2[:, 0] - scores_P2[:, 1]
        self.meter.add_total("loss", loss, len(margin_P))
        self.meter.add("reward_margin", margin_P)
        self.meter.add("reward_accuracy", (margin_P.sign() + 1) / 2)
        self.meter.add("reward_mean", scores_P2.mean(1))
        self.meter.add_total("tokens", loss.new_tensor(batch.tokens), 1)
