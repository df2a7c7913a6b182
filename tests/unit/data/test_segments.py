"""Orders of flat arrays by row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.segments import order_by

ROWS = st.sampled_from([0, 1, 2, 2**16])


@given(st.lists(st.tuples(ROWS, st.integers(0, 5) | st.just(2**40), st.floats(0, 1, width=16)), max_size=20))
def test_an_order_by_row_is_the_stable_one(elements: list[tuple[int, int, float]]) -> None:
    row, first, second = (np.array([e[i] for e in elements]) for i in range(3))
    for keys in ((first,), (second,), (first, second), (second, first)):
        order = order_by(row.astype(np.int64), *keys)
        assert order.tolist() == np.lexsort((*reversed(keys), row)).tolist()
