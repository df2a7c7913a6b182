"""The rows of a choice among the variants of a sweep."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

CHOICE = "kubealign.choice/v1"
"""One row a variant of a sweep: its settings, what it gained at which cost, and whether it was chosen
(``choose``)."""

CHOICE_ROW = pa.schema(
    [
        ("variant", pa.string()),  # its settings that differ, or a number
        ("settings", pa.string()),  # JSON object: those that differ between variants, by stage and name
        ("evaluation", pa.string()),  # fingerprint of its evaluation
        ("model", pa.string()),  # URI
        ("model_fingerprint", pa.string()),  # or null, of a model that KubeAlign did not train
        ("gain", pa.float64()),  # mean reward minus the reference's, on the prompts that all variants have
        ("gain_low", pa.float64()),  # of an interval that holds for all variants at once
        ("gain_high", pa.float64()),
        ("kl", pa.float64()),  # nats a completion, or null
        ("kl_low", pa.float64()),  # of its own 95 % interval, or null
        ("kl_high", pa.float64()),
        ("length", pa.float64()),  # mean tokens of a completion
        ("length_low", pa.float64()),  # of its own 95 % interval
        ("length_high", pa.float64()),
        ("behind", pa.float64()),  # mean reward of the chosen one minus this one's
        ("behind_low", pa.float64()),  # of an interval that holds for all pairs of variants at once
        ("behind_high", pa.float64()),
        ("on_front", pa.bool_()),  # no other variant is as good in reward, KL and length and better in one
        ("chosen", pa.bool_()),
        ("rung", pa.int64()),  # of successive halving, from 1: the last one, which its numbers are of
        ("share", pa.float64()),  # of its training steps that it was evaluated after
        ("dropped", pa.string()),  # why it was not trained further, or null
    ]
)

ENDED = "ended_variants"
"""Member of what the manifest of a choice says: names and reasons of variants, or of rounds, that ended early
and have no row."""


class ChoiceRow(TypedDict):
    """A row of :data:`CHOICE`."""

    variant: str
    settings: str
    evaluation: str
    model: str
    model_fingerprint: str | None
    gain: float
    gain_low: float
    gain_high: float
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    length: float
    length_low: float
    length_high: float
    behind: float
    behind_low: float
    behind_high: float
    on_front: bool
    chosen: bool
    rung: int
    share: float
    dropped: str | None
