"""A comparison of two policies in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

_COMPARED = {
    *("prompts", "reward_reference", "reward_aligned", "length_ratio"),
    *("reward_gain", "reward_gain_low", "reward_gain_high"),
}
"""Numbers of an evaluation that the sentence needs."""


def verdict(numbers: Mapping[str, float]) -> str:
    """The comparison in one sentence; empty where there is none, or not all of it."""
    if not numbers.keys() >= _COMPARED:
        return ""
    low, high = numbers["reward_gain_low"], numbers["reward_gain_high"]
    moved = "rose" if low > 0 else "fell" if high < 0 else "did not change measurably:"
    text = (
        f"The mean reward on {numbers['prompts']:.0f} held-out prompts {moved} from "
        f"{numbers['reward_reference']:.4g} to {numbers['reward_aligned']:.4g} "
        f"({numbers['reward_gain']:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}), "
        f"at {numbers['length_ratio']:.2f} times the length"
    )
    if "kl_per_completion" in numbers:
        text += f" and a KL of {numbers['kl_per_completion']:.3g} nats a completion"
    return text + "."
