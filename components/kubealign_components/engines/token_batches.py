"""Rows in batches of so many tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(
    lengths: Sequence[int], budget: int, *, padded: bool = False, shared: int = 0
) -> Iterator[list[int]]:
    """Positions in ``lengths``, in their order, in batches; a row over the budget is a batch by itself.

    Args:
        lengths: tokens of each row.
        budget: most tokens of a batch.
        padded: whether the rows of a batch are as long as its longest.
        shared: tokens that every batch has once, beside its rows.
    """
    batch: list[int] = []
    used, longest = shared, 0
    for position, tokens in enumerate(lengths):
        longest = max(longest, tokens)
        if batch and (shared + longest * (len(batch) + 1) if padded else used + tokens) > budget:
            yield batch
            batch, used, longest = [], shared, tokens
        batch.append(position)
        used += tokens
    if batch:
        yield batch


def longest_first(lengths: Sequence[int], budget: int, *, padded: bool = False) -> Iterator[list[int]]:
    """Positions in ``lengths`` in batches of rows of similar length, as :func:`token_batches` makes them."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    for batch in token_batches([lengths[position] for position in order], budget, padded=padded):
        yield [order[i] for i in batch]
