"""Which prompts each round samples: all of them once before any of them twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.data.asked import AskedPrompts, round_of
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import TOKENIZED
from kubealign_components.data.seeds import is_held_out
from support.datasets import MakeDataset
from support.tiny import prompt_row

NAMES = [f"{number:032x}" for number in range(200)]


def asked(number: int, share: float, seed: int = 0) -> AskedPrompts:
    return AskedPrompts(share=share, number=number, validation_fraction=0.1, split_seed=seed)


@settings(max_examples=30)
@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 2**31))
def test_others_are_taken_before_one_is_taken_again(share: float, seed: int) -> None:
    times: Counter[str] = Counter()
    others = [name for name in NAMES if not is_held_out(name, 0.1, seed)]
    for number in range(1, 9):
        taken = [name for name in others if name in asked(number, share, seed)]
        times.update(taken)
        assert max(times[name] for name in others) - min(times[name] for name in others) <= 1
        assert abs(len(taken) / len(others) - share) < 0.2


@settings(max_examples=30)
@given(share=st.floats(0.05, 1.0), number=st.integers(1, 9))
def test_held_out_prompts_are_asked_by_every_round(share: float, number: int) -> None:
    held_out = [name for name in NAMES if is_held_out(name, 0.1, 0)]
    assert held_out
    assert all(name in asked(number, share) for name in held_out)


def test_a_round_is_told_by_its_prompts_alone() -> None:
    """Prompts that come or go change nothing for the others."""
    first = {name for name in NAMES if name in asked(1, 0.25)}
    assert {name for name in NAMES[::2] if name in asked(1, 0.25)} == first & set(NAMES[::2])


def test_what_is_drawn_more_of_is_asked_in_the_round_of_the_others(make_dataset: MakeDataset) -> None:
    begun = make_dataset([prompt_row("a")], TOKENIZED, stage="next_round", params={"number": 3})
    more = begun
    for _ in range(2):
        step = derive("draw_more", 1, {}, inputs={"prompts": more, "rewarded": begun})
        kept = {name: getattr(step, name) for name in ("fingerprint", "recipe", "slug", "origins")}
        more = Dataset("more", Manifest(schema=TOKENIZED, rows=1, shards=(), **kept))
    assert (round_of(begun), round_of(more)) == (3, 3)
    assert round_of(make_dataset([prompt_row("a")], TOKENIZED, stage="filter")) == 1
