"""Rows in batches of so many tokens: all of them, once, and no batch that could be fuller or is too full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.engines.token_batches import longest_first, token_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=30)
BUDGET, SHARED = st.integers(1, 200), st.integers(0, 80)


def size(lengths: list[int], padded: bool, shared: int) -> int:
    return shared + (max(lengths) * len(lengths) if padded else sum(lengths))


@given(LENGTHS, BUDGET, st.booleans(), SHARED)
def test_every_row_is_in_a_batch_that_the_next_row_would_not_fit_in(
    lengths: list[int], budget: int, padded: bool, shared: int
) -> None:
    made = list(token_batches(lengths, budget, padded=padded, shared=shared))
    assert [position for batch in made for position in batch] == list(range(len(lengths)))
    for batch, following in zip(made, [*made[1:], None]):
        rows = [lengths[position] for position in batch]
        assert len(batch) == 1 or size(rows, padded, shared) <= budget
        if following is not None:
            assert size([*rows, lengths[following[0]]], padded, shared) > budget


@given(LENGTHS, BUDGET, st.booleans())
def test_rows_of_similar_length_are_together(lengths: list[int], budget: int, padded: bool) -> None:
    made = list(longest_first(lengths, budget, padded=padded))
    order = [position for batch in made for position in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or size([lengths[i] for i in batch], padded, 0) <= budget for batch in made)
