"""TRL's DPOTrainer on token ids: as its users set it up, but nothing is tokenised, cut or dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

Pair = dict[str, Any]
"""``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""


class TokenPairsTrainer(DPOTrainer):  # type: ignore[misc]
    """Takes the tokenised pairs as they are; all else is TRL's."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def trl_trainer(model: Path, dtype: str, pairs: Sequence[Pair], folder: Path, **settings: Any) -> DPOTrainer:
    """A trainer over ``pairs`` with their reference log-probabilities precomputed by TRL.

    Args:
        model: directory of the policy.
        dtype: of the weights.
        pairs: tokenised pairs.
        folder: for TRL's files.
        settings: of :class:`DPOConfig`.
    """
    config = DPOConfig(
        output_dir=str(folder),
        precompute_ref_log_probs=True,
        max_length=None,
        model_init_kwargs={"dtype": dtype},
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        **{"bf16": False, "gradient_checkpointing": False} | settings,
    )
    return TokenPairsTrainer(model=str(model), args=config, train_dataset=Dataset.from_list(list(pairs)))
