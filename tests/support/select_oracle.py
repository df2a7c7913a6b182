"""``select`` the slow and obvious way: one prompt at a time, plain Python."""

from __future__ import annotations

from itertools import combinations
from statistics import NormalDist
from typing import Any

from kubealign_components.data.seeds import seed_for
from kubealign_components.select.stage import SelectConfig

MASK = 2**64 - 1
Row = dict[str, Any]
Pair = tuple[Row, Row]


def splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def key_of(completion_id: str, seed: int, purpose: str = "select") -> int:
    return splitmix(int(completion_id[:16], 16) ^ seed_for(seed, purpose))


def quantile(completion: Row, references: list[Row], method: str) -> float:
    others = [r["reward"] for r in references]
    if method == "leave_one_out" and completion["reference"]:
        others.remove(completion["reward"])
    below = sum(r < completion["reward"] for r in others)
    equal = sum(r == completion["reward"] for r in others)
    if method == "inclusive":
        return (below + equal) / len(others)
    return (below + equal / 2) / len(others)


def candidates(pool: list[Row], n: int, config: SelectConfig) -> list[Pair]:
    def key(c: Row) -> int:
        return key_of(c["completion_id"], config.seed)

    def pair_key(pair: Pair) -> int:
        return splitmix((key(pair[0]) + key(pair[1])) & MASK)

    ranked = sorted(pool, key=lambda c: (-c["reward"], key(c)))
    if config.strategy == "best_worst":
        return [(ranked[i], ranked[-1 - i]) for i in range(len(ranked) // 2)]
    if config.strategy == "best_random":
        return [(ranked[0], c) for c in sorted(ranked[1:], key=lambda c: splitmix(key(c)))]
    if config.strategy == "random_pairs":
        return sorted(combinations(pool, 2), key=pair_key)
    if config.strategy == "top_bottom_k":
        k = min(config.k, len(ranked) // 2)
        return sorted(((a, b) for a in ranked[:k] for b in ranked[len(ranked) - k :]), key=pair_key)
    return bands(pool, n, config, key)


def bands(pool: list[Row], n: int, config: SelectConfig, key: Any) -> list[Pair]:
    if len(pool) < 2:
        return []
    ranked = sorted(pool, key=lambda c: (-c["quantile_reward"], key(c)))
    best = [c for c in ranked if c["quantile_reward"] >= config.best_quantile]
    rest = [c for c in ranked if c not in best]
    worst = [c for c in rest if c["quantile_reward"] <= max(config.worst_quantile, 1 / n)]
    middle = [c for c in rest if c not in worst]
    chosen = (best or middle or worst)[0]
    for band in (best, middle, worst):
        if chosen in band:
            band.remove(chosen)
    rejected = (worst or middle or best)[0]
    left = [c for c in ranked if c not in (chosen, rejected)]
    left.sort(key=lambda c: splitmix(key(c)))
    upper = [c for c in left if c["quantile_reward"] >= config.middle_quantile]
    lower = [c for c in left if c["quantile_reward"] < config.middle_quantile]
    pairs = [(chosen, rejected)]
    while len(upper) + len(lower) >= 2:
        a = (upper or lower).pop(0)
        b = (lower or upper).pop(0)
        pairs.append((a, b))
    return pairs


def apart(chosen: Row, rejected: Row, level: float) -> bool:
    """Whether the intervals of both rewards have nothing in common."""
    width = NormalDist().inv_cdf((1 + level) / 2)
    low, high = (
        c["reward"] + sign * width * (c["reward_se"] or 0) for c, sign in ((chosen, -1), (rejected, 1))
    )
    return bool(low > high)


def select_row(row: Row, config: SelectConfig) -> tuple[str | None, Row | None]:
    """The reason why the prompt is dropped, or its output row."""
    references = [c for c in row["completions"] if c["reference"]]
    if len(references) < config.min_references:
        return "too_few_references", None
    wanted = {"reference": [True], "offline": [False], "both": [True, False]}[config.pool]
    pool: list[Row] = []
    for c in sorted(row["completions"], key=lambda c: not c["reference"]):
        if c["reference"] in wanted and c["completion_id"] not in [p["completion_id"] for p in pool]:
            pool.append(c | {"quantile_reward": quantile(c, references, config.quantile)})
    if not pool:
        return "empty_pool", None
    if len({c["reward"] for c in [*pool, *references]}) == 1:
        return "all_rewards_tie", None
    pairs: list[Pair] = []
    overlap = False
    if config.strategy != "all":
        for a, b in candidates(pool, len(references), config):
            chosen, rejected = (a, b) if a["reward"] >= b["reward"] else (b, a)
            gap = chosen["quantile_reward"] - rejected["quantile_reward"]
            if chosen["reward"] > rejected["reward"] and gap >= config.min_quantile_gap - 1e-9:
                if apart(chosen, rejected, config.reward_interval):
                    pairs.append((chosen, rejected))
                else:
                    overlap = True
        pairs = pairs[: config.pairs_per_prompt]
        if not pairs:
            return "rewards_overlap" if overlap else "no_pair", None
    return None, assemble(row, pool, references, pairs)


def assemble(row: Row, pool: list[Row], references: list[Row], pairs: list[Pair]) -> Row:
    in_pairs = [c for pair in pairs for c in pair]
    kept = [c for c in pool if not pairs or c in in_pairs]
    places = [(c["completion_id"], c["reference"]) for c in row["completions"]]
    kept.sort(key=lambda c: places.index((c["completion_id"], c["reference"])))
    return row | {
        "completions": kept,
        "pairs": [{"chosen": kept.index(a), "rejected": kept.index(b)} for a, b in pairs],
        "reference_rewards": [c["reward"] for c in references],
    }
