"""Test random and high-loss subsets."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mkdt.distill.source import Source
from mkdt.distill.subsets import high_loss_subset, random_subset


def source(total: int = 12, **known: Any) -> Source:
    """Make a source of empty images, with the given fields."""
    fields = {"targets": torch.zeros(total, 2)} | known
    return Source(torch.zeros(total, 1, 1, 1, dtype=torch.uint8), torch.zeros(1), torch.ones(1), **fields)


def hardest(losses: list[Tensor], count: int) -> Tensor:
    """Choose the high-loss subset of these losses."""
    return high_loss_subset(source(losses=losses), {"count": count}, 0, 0)


def test_high_loss_averages_over_all_experts() -> None:
    """In the public code only the first expert counted. Here no single expert finds the right rows."""
    losses = [
        torch.tensor([9.0, 0.0, 5.0, 0.0]),
        torch.tensor([0.0, 9.0, 5.0, 0.0]),
        torch.tensor([0.0, 0.0, 5.0, 9.0]),
    ]
    assert hardest(losses, 1).tolist() == [2]
    for one in losses:
        assert hardest([one], 1).tolist() != [2]


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_high_loss_is_hardest_first_and_ties_keep_the_order_of_rows(table: list[list[int]], count: int) -> None:
    """With an unstable order, equal runs would choose different images."""
    got = hardest([torch.tensor(row, dtype=torch.float32) for row in table], count)
    sums = [sum(row[k] for row in table) for k in range(6)]
    assert got.tolist() == sorted(range(6), key=lambda k: (-sums[k], k))[:count]
    assert got.dtype == torch.int64


@given(total=st.integers(1, 60), data=st.data(), seed=st.integers(0, 5), distill_seed=st.integers(0, 5))
def test_random_rows_are_distinct_seeded_and_in_range(
    total: int, data: st.DataObject, seed: int, distill_seed: int
) -> None:
    """A repeated image would waste the budget; a draw without seed could not be repeated."""
    count = data.draw(st.integers(1, total))
    torch.manual_seed(0)
    rows = random_subset(source(total), {"count": count}, seed, distill_seed)
    torch.manual_seed(1)
    assert torch.equal(rows, random_subset(source(total), {"count": count}, seed, distill_seed))
    assert len(rows.unique()) == len(rows) == count
    assert int(rows.min()) >= 0
    assert int(rows.max()) < total


def test_random_subsets_of_different_seeds_differ() -> None:
    """Both seeds change the draw; otherwise the deviation over initial sets would be zero."""
    rows = {tuple(random_subset(source(1000), {"count": 20}, *seeds).tolist()) for seeds in ((0, 0), (0, 1), (1, 0))}
    assert len(rows) == 3


def test_subsets_own_their_memory() -> None:
    """A slice of the full permutation would put all of it into each file."""
    for rows in (random_subset(source(1000), {"count": 5}, 0, 0), hardest([torch.rand(1000)], 5)):
        assert rows.untyped_storage().nbytes() == 5 * 8
