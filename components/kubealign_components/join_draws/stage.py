"""join_draws: the prompts that more completions were drawn of take the place that they had with fewer.

What ``sample`` gives for a larger number begins with what it gave for the smaller one, so the later row of a
prompt holds all of the earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kubealign_components.config import execution, require, semantic_params
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.schemas import REWARDED, RewardedCompletion, RewardedRow
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.rewarded_union import abreast, require_rewarded_alike, write_joined

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinDrawsConfig:
    """Settings of ``join_draws``."""

    to: int = 16
    """Most completions that are drawn of a prompt, with which tokens are compared."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(self.to >= 2, "to", self.to, "2 or more")


def run(config: JoinDrawsConfig, *, earlier: Dataset, later: Dataset, output: str) -> Stats:
    """Write each prompt with all of its completions so far to ``output`` (``kubealign.rewarded/v1``).

    ``prompts_with_N_draws`` counts prompts by their draws, ``prompts_never_differed`` those whose rewards are
    all equal, and ``share_of_tokens`` is how many tokens were sampled of those that ``to`` draws of every
    prompt would take, were a prompt's further completions as long as those that it has.

    Args:
        config: the settings.
        earlier: ``kubealign.rewarded/v1`` of all prompts.
        later: ``kubealign.rewarded/v1`` of the prompts that more was drawn of.
        output: URI of the dataset to make.

    Raises:
        ConfigError: the two were not rewarded alike.
        DataError: prompts stand in another order, or a later row lacks a completion of the earlier one.
    """
    if later.ended_early:
        return pass_on("later", later, stage="join_draws", version=VERSION, schema=REWARDED, output=output)
    require_rewarded_alike(earlier, later)
    provenance = derive(
        "join_draws",
        VERSION,
        semantic_params(config),
        inputs={"earlier": earlier, "later": later},
        slug=[f"draws{config.to}"],
    )

    def make() -> Stats:
        stats = Stats(rows_in=earlier.rows)
        return write_joined(_joined(config, earlier, later, stats), output, provenance, stats)

    return once(output_request(config, provenance, output), make)


class _Spent:
    """What was drawn of the prompts so far, and of what."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._prompts: Counter[int] = Counter()
        self._never_differed = 0
        self._tokens = self._of_all = 0.0

    def add(self, row: RewardedRow) -> None:
        """Count a prompt's draws."""
        kept = [c for c in row["completions"] if c["reference"]]
        drawn = len(kept) + (row["dropped_completions"] or 0)
        tokens = sum(c["num_tokens"] or 0 for c in kept)
        self._prompts[drawn] += 1
        self._never_differed += len(kept) > 1 and len({c["reward"] for c in kept}) == 1
        self._tokens += tokens
        self._of_all += tokens * max(self._to, drawn) / max(drawn, 1)

    def numbers(self) -> dict[str, float]:
        """As :func:`run` describes them."""
        return {
            **{f"prompts_with_{drawn}_draws": n for drawn, n in sorted(self._prompts.items())},
            "prompts_never_differed": self._never_differed,
            "share_of_tokens": self._tokens / self._of_all if self._of_all else 1.0,
        }


def _joined(config: JoinDrawsConfig, earlier: Dataset, later: Dataset, stats: Stats) -> Iterator[RewardedRow]:
    """Each prompt with all of its completions so far."""
    spent = _Spent(config.to)
    for row, other in abreast(earlier, later):
        if other is not None:
            _require_all(row["completions"], other["completions"], later.uri)
        spent.add(other or row)
        yield other or row
    stats.numbers |= spent.numbers()


def _require_all(before: list[RewardedCompletion], after: list[RewardedCompletion], uri: str) -> None:
    missing = {c["completion_id"] for c in before} - {c["completion_id"] for c in after}
    if missing:
        raise DataError(
            f"{uri} lacks {len(missing)} completions of the earlier draws of a prompt, first {min(missing)}: "
            "expected draws of the same policy, by the same settings"
        )
