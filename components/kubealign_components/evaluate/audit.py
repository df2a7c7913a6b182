"""What a gain may be instead of better answers: length, repetition, or one answer to every prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from kubealign_components.data.schemas import Completion
from kubealign_components.reports.sides import SIDES, SidesRow, length_change

GRAM = 4
"""Tokens of which a run that stood in the text before counts as repetition."""
MORE = 0.1
"""Rise of a share from which a reader is told."""
MOST = 0.5
"""Share of the gain from which it is called one of length."""
CHANCE = 0.5
"""A judge that knows nothing: how often either side wins, and the most that its two orders agree."""
WIN_RATE = "judge_win_rate"
"""What begins the names of the judge's win rates."""


def audit(rows: Sequence[SidesRow]) -> dict[str, float]:
    """The numbers of both policies by which a reader sees what a gain is made of.

    ``repetition_…``: mean share of a completion's runs of four tokens that stood in it before.
    ``same_answer_…``: share of the completions that another prompt has too, token by token.
    ``gain_by_length``: the gain that the length change alone would give, see :func:`_gain_by_length`; only
    with rewards, and where the reference's completions of a prompt differ in length.

    Args:
        rows: held-out prompts with both sides' completions, at least one of each.
    """
    answers = {side: [row[side] for row in rows] for side in SIDES}
    numbers = {f"repetition_{side}": _repetition(own) for side, own in answers.items()}
    numbers |= {f"same_answer_{side}": _same_answer(own) for side, own in answers.items()}
    gain = _gain_by_length(rows)
    return numbers if gain is None else numbers | {"gain_by_length": gain}


def findings(numbers: Mapping[str, float]) -> list[str]:
    """What in ``numbers`` says that the gain is not better answers, in words.

    Args:
        numbers: of the evaluation, those of :func:`audit` among them.
    """
    texts = []
    gain, by_length = numbers.get("reward_gain", 0.0), numbers.get("gain_by_length")
    if by_length is not None and numbers["reward_gain_low"] > 0 and by_length >= MOST * gain:
        texts.append(
            f"The gain may be one of length: the mean length went from {numbers['length_reference']:.0f} to "
            f"{numbers['length_aligned']:.0f} tokens, and by how reward goes with length among the "
            f"reference's own completions of a prompt that alone gives {by_length:+.4f} of {gain:+.4f}. "
            "Read the texts for what else is better."
        )
    if (agreed := numbers.get("judge_consistency", 1.0)) <= CHANCE:
        texts.append(
            f"The judge's two orders agree on {agreed:.1%} of what it compared. A judge without an opinion "
            "reaches at most 50 %, one that looks at the position alone 0 %: its win rates say nothing. "
            "Take a stronger judge."
        )
    for name, what in (
        ("repetition", "of what a completion says it has said before: read the texts for loops"),
        ("same_answer", "of the completions answer another prompt word for word as well: read the texts"),
    ):
        before, after = (numbers.get(f"{name}_{side}", 0.0) for side in SIDES)
        if after > before + MORE:
            texts.append(f"{after:.0%} {what}; it was {before:.0%} before.")
    return texts


def decided_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """``numbers`` without the judge's win rates that say nothing: those of the principles whose 95 % interval
    holds one half are counted, under ``judge_undecided_principles``."""
    rates = [name.removesuffix("_low") for name in numbers if name.endswith("_low")]
    undecided = [
        name
        for name in rates
        if name.startswith(f"{WIN_RATE}_") and numbers[f"{name}_low"] <= CHANCE <= numbers[f"{name}_high"]
    ]
    left_out = {f"{name}{end}" for name in undecided for end in ("", "_low", "_high")}
    kept = {name: value for name, value in numbers.items() if name not in left_out}
    return kept | ({"judge_undecided_principles": float(len(undecided))} if undecided else {})


def repeated_share(token_ids: Sequence[int]) -> float:
    """Share of the runs of :data:`GRAM` tokens that stood in the text before; 0 for shorter texts."""
    runs = [tuple(token_ids[i : i + GRAM]) for i in range(len(token_ids) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _repetition(answers: Sequence[Sequence[Completion]]) -> float:
    return float(np.mean([np.mean([repeated_share(c["token_ids"]) for c in own]) for own in answers]))


def _same_answer(answers: Sequence[Sequence[Completion]]) -> float:
    texts = [[tuple(c["token_ids"]) for c in own] for own in answers]
    prompts = Counter(text for of_prompt in texts for text in set(of_prompt))
    return float(np.mean([prompts[text] > 1 for of_prompt in texts for text in of_prompt]))


def _gain_by_length(rows: Sequence[SidesRow]) -> float | None:
    """Slope of reward over length among the reference's completions of a prompt, times the length change.

    The slope is that of least squares with a level of its own for every prompt, so that prompts that ask for
    long answers do not count as a reward of length. It says what goes together, not what causes what.
    """
    lengths, rewards = [], []
    for row in rows:
        if row["reward_difference"] is None:
            return None
        own = np.array([(c["num_tokens"], c["reward"]) for c in row[SIDES[0]]], dtype=np.float64)
        centred = own - own.mean(axis=0)
        lengths.append(centred[:, 0])
        rewards.append(centred[:, 1])
    length, reward = np.concatenate(lengths), np.concatenate(rewards)
    spread = float(length @ length)
    if not spread:
        return None
    return float(length @ reward) / spread * float(np.mean([length_change(row) for row in rows]))
