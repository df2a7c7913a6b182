"""How many examples of each source a mix holds."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor

# Rates are ratios of floats; a product that should be whole may fall short of it by this much.
ROUNDING = 1e-9


def quotas(
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    caps: Mapping[str, int],
    temperature: float,
    max_examples: int,
) -> dict[str, int]:
    """Examples to keep of each source.

    Shares are proportional to ``weight * min(size, cap) ** (1 / temperature)``: mixing by size with
    an artificial limit, tempered (T5, arXiv 1910.10683, section 3.5.2), times the weight. No example
    is repeated: it is the largest mix in which those shares hold, within one example, and no source
    gives more than it has. With a temperature of 1, equal weights keep everything, and a weight half
    as large as the largest keeps half of its source; with a high temperature shares follow the
    weights alone.

    Args:
        sizes: examples of each source.
        weights: relative weight of each source, 0 to leave it out; 1 where not named.
        caps: most examples of a source.
        temperature: above 0.
        max_examples: most examples of the mix; 0 for no limit.
    """
    room = {name: min(size, caps.get(name, size)) for name, size in sizes.items()}
    rate = {name: weights.get(name, 1.0) * room[name] ** (1 / temperature) for name in sizes if room[name]}
    highest = max(rate.values(), default=0.0)
    if not highest:
        return dict.fromkeys(sizes, 0)
    rate = {name: value / highest for name, value in rate.items() if value / highest > 0}
    scale = min(room[name] / value for name, value in rate.items())
    total = scale * sum(rate.values())
    if max_examples and total > max_examples:
        scale *= max_examples / total
    exact = {name: scale * value for name, value in rate.items()}
    kept = {name: floor(value + ROUNDING) for name, value in exact.items()}
    left = floor(sum(exact.values()) + ROUNDING) - sum(kept.values())
    by_remainder = sorted(exact, key=lambda name: (kept[name] - exact[name], name))
    for name in by_remainder[: max(left, 0)]:
        kept[name] = min(kept[name] + 1, room[name])
    return {name: kept.get(name, 0) for name in sizes}
