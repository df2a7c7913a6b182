"""Cutting optimiser steps into micro-batches: nothing lost, nothing over the budget, alike everywhere."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.train.data import Sizes
from kubealign_components.training.microbatches import Micro, StepPlan, StepSampler, cut


def sizes_of(examples: list[tuple[int, int]]) -> Sizes:
    """``(prompt, completion tokens)`` of examples; a prompt's own length follows from its number."""
    prompts, completions = np.array(examples).T
    return Sizes(prompt_of=prompts, prompt_tokens=3 + prompts * 7 % 40, completion_tokens=completions)


def tokens(micro: Micro, sizes: Sizes) -> int:
    prompts = {int(sizes.prompt_of[e]): int(sizes.prompt_tokens[e]) for e in micro.examples}
    return sum(prompts.values()) + int(sizes.completion_tokens[list(micro.examples)].sum())


EXAMPLES = st.lists(st.tuples(st.integers(0, 9), st.integers(2, 60)), min_size=1, max_size=40)


@settings(max_examples=200)
@given(examples=EXAMPLES, budget=st.integers(1, 300), processes=st.integers(1, 5))
def test_every_example_is_in_one_micro_batch_within_the_budget(
    examples: list[tuple[int, int]], budget: int, processes: int
) -> None:
    sizes = sizes_of(examples)
    shares = cut(range(len(examples)), sizes, budget, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1, "every process runs as many forward passes"
    counted = [micro for share in shares for micro in share if micro.step_examples]
    assert sorted(chain.from_iterable(m.examples for m in counted)) == list(range(len(examples)))
    assert {m.step_examples for m in counted} == {len(examples)}
    assert all(tokens(m, sizes) <= budget or len(m.examples) == 1 for m in counted)
    idle = [micro for share in shares for micro in share if not micro.step_examples]
    assert len(idle) < processes, "no round of forward passes in which nobody has work"


def test_examples_of_a_prompt_stay_together_and_processes_get_equal_loads() -> None:
    sizes = sizes_of([(0, 50), (1, 20), (0, 50), (1, 20), (2, 45), (3, 110)])
    one = cut(range(6), sizes, 160, 1)[0]
    assert next(set(m.examples) for m in one if 0 in m.examples) >= {0, 2}
    assert next(set(m.examples) for m in one if 1 in m.examples) >= {1, 3}
    first, second = (sum(tokens(m, sizes) for m in share) for share in cut(range(6), sizes, 160, 2))
    assert abs(first - second) < 0.2 * first


def test_one_prompt_is_spread_over_processes() -> None:
    shares = cut(range(8), sizes_of([(0, 30)] * 8), 4096, 4)
    assert [sorted(len(m.examples) for m in share) for share in shares] == [[2]] * 4


def test_the_order_is_new_every_epoch_and_can_be_gone_on_with() -> None:
    sizes = sizes_of([(i, 10 + i) for i in range(20)])

    def sampler(rank: int = 0, epoch: int = 0, seed: int | None = 3) -> StepSampler:
        made = StepSampler(sizes, StepPlan(batch_size=6, budget=80, processes=2, rank=rank, seed=seed))
        made.set_epoch(epoch)
        return made

    steps = list(sampler())
    assert len(steps) == len(sampler()) == 4
    seen = Counter(
        e for rank in (0, 1) for step in sampler(rank) for m in step if m.step_examples for e in m.examples
    )
    assert seen == Counter(range(20))
    assert [m.step_examples for m in steps[-1]] == [2]
    assert steps == list(sampler()) != list(sampler(epoch=1))
    assert list(sampler(seed=None)) == list(sampler(seed=None, epoch=1))
