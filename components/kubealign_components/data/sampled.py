"""Which completions a policy has sampled, and which a source brought."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.segments import Bools
from kubealign_components.data.shard_rows import completion_columns

FACTS = completion_columns("reference", "finish_reason")
"""Columns of a file that :func:`sampled` reads."""
_ENDS = ("stop", "length")
"""How a sampler ends a completion."""
_ROUND = re.compile(r" \(round (\d+)\)$")


def named_in_round(model: str | None, number: int) -> str:
    """The name of a completion's ``model`` that was sampled in a further round, from 2."""
    return f"{model} (round {number})"


def round_of_model(model: str | None) -> int:
    """The round whose policy gave a completion, by the name of its ``model``; 1 for the first policy."""
    number = _ROUND.search(model or "")
    return int(number[1]) if number else 1


def sampled(completions: pa.StructArray) -> Bools:
    """Which of ``completions``, shape (n,), a policy of the run has sampled: the reference policy, or that of
    a further round, whose completions are no references."""
    reference = pc.fill_null(completions.field("reference"), False)
    ends = pa.array(_ENDS)  # here, and not when the module is loaded: an array loads pandas
    ended = pc.fill_null(pc.is_in(completions.field("finish_reason"), value_set=ends), False)
    mask: Bools = pc.or_(reference, ended).to_numpy(zero_copy_only=False)
    return mask
