"""join_rounds: what the policies of several rounds said to the same prompts, side by side with its rewards.

The two datasets are read at the same pace, because their prompts stand in the same order. Completions are
known by their tokens: what two rounds have both said is selected once, by ``select``, and scored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.sampled import named_in_round
from kubealign_components.data.schemas import REWARDED, RewardedCompletion, RewardedRow
from kubealign_components.data.stats import Stats
from kubealign_components.rewarded_union import abreast, require_rewarded_alike, write_joined

VERSION = 3
FIRST, LAST = "first", "last"


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinRoundsConfig:
    """Settings of ``join_rounds``."""

    number: int = 2
    """Of the later round, from 2."""
    references: str = FIRST
    """Whose rewards are reference rewards of a prompt: those of the first round that asked it, where the
    policy stays near the first one; or of the last one (last), where it stays near what it was when the round
    began."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(self.number >= 2, "number", self.number, "2 or more, the later round")
        require_choice("references", self.references, (FIRST, LAST))


def run(config: JoinRoundsConfig, *, earlier: Dataset, later: Dataset, output: str) -> Stats:
    """Write the completions of all rounds so far to ``output`` (``kubealign.rewarded/v1``).

    Token ids and identity are those of the first policy. A completion of the later round says so beside the
    name of its ``model``.

    Args:
        config: the settings.
        earlier: ``kubealign.rewarded/v1`` of the rounds before.
        later: ``kubealign.rewarded/v1`` of one more round, on the same prompts or some of them.
        output: URI of the dataset to make.

    Raises:
        ConfigError: the two were not rewarded alike.
        DataError: prompts that both have stand in another order.
    """
    if later.ended_early:
        return pass_on("later", later, stage="join_rounds", version=VERSION, schema=REWARDED, output=output)
    require_rewarded_alike(earlier, later)
    provenance = derive(
        "join_rounds",
        VERSION,
        semantic_params(config),
        inputs={"earlier": earlier, "later": later},
        identity=earlier.manifest.identity,
        settled=("policy",),
        slug=[f"rounds{config.number}"],
    )

    def make() -> Stats:
        stats = Stats(rows_in=earlier.rows)
        return write_joined(_joined(config, earlier, later, stats), output, provenance, stats)

    return once(output_request(config, provenance, output), make)


def _joined(
    config: JoinRoundsConfig, earlier: Dataset, later: Dataset, stats: Stats
) -> Iterator[RewardedRow]:
    """Each prompt of the earlier rounds, with what the later one added."""
    for row, other in abreast(earlier, later):
        added = other["completions"] if other else ()
        yield {**row, "completions": _side_by_side(config, row, added, stats)}


def _side_by_side(
    config: JoinRoundsConfig, row: RewardedRow, added: Sequence[RewardedCompletion], stats: Stats
) -> list[RewardedCompletion]:
    """The completions of both, with whose rewards are reference rewards: all samples of one policy, what it
    said twice or another one said as well among them. A prompt that one round alone has asked has no others
    than that round's."""
    before = row["completions"]
    anew = bool(added) and (config.references == LAST or not any(c["reference"] for c in before))
    said = {completion["completion_id"] for completion in before}
    stats.counts["completions_before"] += len(before)
    stats.counts["completions_added"] += len(added)
    stats.counts["completions_said_before"] += sum(c["completion_id"] in said for c in added)
    kept: list[RewardedCompletion] = [{**c, "reference": c["reference"] and not anew} for c in before]
    new: list[RewardedCompletion] = [
        {**c, "reference": anew, "model": named_in_round(c["model"], config.number)} for c in added
    ]
    return [*kept, *new]
