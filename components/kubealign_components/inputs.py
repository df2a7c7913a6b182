"""What each stage takes: its datasets and models by name, as ``run`` of its module has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubealign_components.data.choice_rows import CHOICE
from kubealign_components.data.schemas import (
    COMPLETIONS,
    EVALUATION,
    JUDGED,
    MODEL,
    PREFERENCES,
    PROMPTS,
    REWARDED,
    SELECTION,
    TOKENIZED,
    TRAINING,
)


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a stage."""

    schemas: tuple[str, ...]
    """Kinds of dataset that it may be."""
    optional: bool = False
    many: bool = False
    """Whether it takes any number of them."""
    by_uri: bool = False
    """Whether the stage wants to know where it is, and opens it itself."""


INPUTS: Mapping[str, Mapping[str, Input]] = {
    "import_prompts": {},
    "filter": {"prompts": Input((PROMPTS, TOKENIZED, COMPLETIONS, REWARDED))},
    "sample": {"dataset": Input((TOKENIZED,))},
    "rewards": {"dataset": Input((COMPLETIONS, TOKENIZED))},
    "rank": {"dataset": Input((COMPLETIONS, TOKENIZED))},
    "draw_more": {"prompts": Input((TOKENIZED,)), "rewarded": Input((REWARDED,))},
    "join_draws": {"earlier": Input((REWARDED,)), "later": Input((REWARDED,))},
    "next_round": {
        "prompts": Input((TOKENIZED,)),
        "evaluation": Input((EVALUATION,)),
        "earlier": Input((EVALUATION,), optional=True),
    },
    "join_rounds": {"earlier": Input((REWARDED,)), "later": Input((REWARDED,))},
    "select": {"rewarded": Input((REWARDED, COMPLETIONS, TOKENIZED))},
    "logprobs": {"dataset": Input((COMPLETIONS, REWARDED, SELECTION))},
    "mix": {
        "selections": Input((SELECTION,), many=True),
        "training": Input((TRAINING,), many=True, optional=True),
    },
    "train": {"training": Input((TRAINING,))},
    "evaluate": {
        "rewarded": Input((REWARDED, COMPLETIONS, TOKENIZED)),
        "model": Input((MODEL,), by_uri=True),
        "selection": Input((SELECTION,), optional=True),
    },
    "benchmark": {"model": Input((MODEL,), by_uri=True)},
    "choose": {"evaluations": Input((EVALUATION,), many=True), "earlier": Input((CHOICE,), optional=True)},
    "clean_prompts": {},
    "judge": {"dataset": Input((COMPLETIONS,))},
    "aggregate": {"judged": Input((JUDGED,))},
    "clean_pmp": {},
    "train_reward_model": {
        "preferences": Input((PREFERENCES,)),
        "start": Input((MODEL,), optional=True),
    },
    "rl_prompts": {"prompts": Input((PROMPTS,), optional=True)},
    "train_ppo": {
        "prompts": Input((TOKENIZED,)),
        "reward_model": Input((MODEL,), optional=True),
    },
}
"""By stage, in the order in which a call names them; ``dataset`` is the one that is cut into chunks."""
