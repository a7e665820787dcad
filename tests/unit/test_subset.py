"""Random and high-loss subsets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mkdt.subset import high_loss_subset, random_subset


def test_high_loss_averages_over_all_experts() -> None:
    """Fault of the public code: only the first expert counted. Here no single one names the right rows."""
    losses = [
        torch.tensor([9.0, 0.0, 5.0, 0.0]),
        torch.tensor([0.0, 9.0, 5.0, 0.0]),
        torch.tensor([0.0, 0.0, 5.0, 9.0]),
    ]
    assert high_loss_subset(losses, 1).tolist() == [2]
    for one in losses:
        assert high_loss_subset([one], 1).tolist() != [2]


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_high_loss_is_hardest_first_and_ties_keep_the_order_of_rows(table: list[list[int]], count: int) -> None:
    """An unstable order would make equal runs choose different images."""
    got = high_loss_subset([torch.tensor(row, dtype=torch.float32) for row in table], count)
    sums = [sum(row[k] for row in table) for k in range(6)]
    assert got.tolist() == sorted(range(6), key=lambda k: (-sums[k], k))[:count]
    assert got.dtype == torch.int64


@given(total=st.integers(1, 60), data=st.data(), seed=st.integers(0, 5), distill_seed=st.integers(0, 5))
def test_random_rows_are_distinct_seeded_and_in_range(
    total: int, data: st.DataObject, seed: int, distill_seed: int
) -> None:
    """A repeated image would waste the budget; an unseeded draw could not be made again."""
    count = data.draw(st.integers(1, total))
    torch.manual_seed(0)
    rows = random_subset(total, count, seed, distill_seed)
    torch.manual_seed(1)
    assert torch.equal(rows, random_subset(total, count, seed, distill_seed))
    assert len(rows.unique()) == len(rows) == count
    assert int(rows.min()) >= 0
    assert int(rows.max()) < total


def test_random_subsets_of_different_seeds_differ() -> None:
    """Both seeds must reach the draw, or the deviation over initial sets would be zero."""
    rows = {tuple(random_subset(1000, 20, *seeds).tolist()) for seeds in ((0, 0), (0, 1), (1, 0))}
    assert len(rows) == 3


def test_subsets_own_their_memory() -> None:
    """A slice of the full permutation would drag it into every file."""
    for rows in (random_subset(1000, 5, 0, 0), high_loss_subset([torch.rand(1000)], 5)):
        assert rows.untyped_storage().nbytes() == 5 * 8
