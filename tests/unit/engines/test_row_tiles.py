"""A row's product has the same bits whatever rows are multiplied with it, and wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kubealign_components.engines import row_tiles
from kubealign_components.engines.row_tiles import log_sum_exp, rows_at_once, tile_rows, tiled_linear

CPU = torch.device("cpu")
SIZES = [(576, 192), (24, 24), (24, 72), (7, 5), (40, 300), (8, 24)]
"""Inputs and outputs: of whole vectors, and odd ones."""


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Three share rows out between two vectors."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ins", "outs"), SIZES)
def test_rows_do_not_depend_on_their_batch(
    threads: int, ins: int, outs: int, dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(1)
    many = rows_at_once(CPU) + 2 * tile_rows(CPU) + 3
    rows, weight = torch.randn(many, ins).to(dtype), torch.randn(outs, ins).to(dtype)
    own_bias = torch.randn(outs).to(dtype) if bias else None
    whole = tiled_linear(rows, weight, own_bias)
    torch.testing.assert_close(whole.float(), (rows.float() @ weight.float().t()) + (own_bias if bias else 0),
                               atol=0.5 if dtype == torch.bfloat16 else 1e-3, rtol=1e-2)  # fmt: skip
    order = torch.randperm(many)
    assert torch.equal(tiled_linear(rows[order], weight, own_bias), whole[order])
    for first, count in ((5, 1), (70, 130), (33, 601)):
        part = tiled_linear(rows[first : first + count], weight, own_bias)
        assert torch.equal(part, whole[first : first + count])


def forget() -> None:
    row_tiles._way.cache_clear()
    row_tiles._changes_nothing.cache_clear()


def test_tiles_are_multiplied_at_once_only_where_no_bit_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose large products round otherwise is found out by trying."""

    def counted(rounds_otherwise: bool) -> list[int]:
        sizes: list[int] = []
        multiply = torch.mm

        def mm(one: torch.Tensor, other: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
            sizes.append(len(one))
            multiply(one, other, out=out)
            return out.mul_(1 + 2**-20) if rounds_otherwise and len(one) > tile_rows(CPU) else out

        monkeypatch.setattr(row_tiles.torch, "mm", mm)
        forget()
        rows, weight = torch.randn(2 * rows_at_once(CPU), 32), torch.randn(64, 32)
        tiled_linear(rows, weight)
        sizes.clear()
        tiled_linear(rows, weight)
        monkeypatch.undo()
        forget()
        return sizes

    assert counted(rounds_otherwise=False) == [rows_at_once(CPU)] * 2
    assert counted(rounds_otherwise=True) == [tile_rows(CPU)] * 16


def test_trying_leaves_the_random_numbers_alone() -> None:
    forget()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiled_linear(torch.ones(600, 11), torch.ones(13, 11))
    assert torch.equal(torch.rand(3), expected)


def test_log_sum_exp_does_not_depend_on_its_batch(threads: int) -> None:
    torch.manual_seed(0)
    rows = 5 * torch.randn(640, 301)
    rows[3, :] = -torch.inf
    rows[4, 7] = -torch.inf
    whole = log_sum_exp(rows)
    torch.testing.assert_close(whole, rows.double().logsumexp(1).float(), atol=1e-5, rtol=1e-6)
    assert torch.equal(log_sum_exp(rows[37:300]), whole[37:300])
