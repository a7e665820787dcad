"""Real subsets: random, high loss, k-means."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mkdt.distill.kmeans import kmeans_subset
from mkdt.distill.source import Source
from mkdt.distill.subsets import high_loss_subset, random_subset


def source(total: int = 12, **known: Any) -> Source:
    """Empty images with what a test wants to be known of them."""
    fields = {"targets": torch.zeros(total, 2)} | known
    return Source(torch.zeros(total, 1, 1, 1, dtype=torch.uint8), torch.zeros(1), torch.ones(1), **fields)


def hardest(losses: list[Tensor], count: int) -> Tensor:
    """The high-loss subset of these losses."""
    return high_loss_subset(source(losses=losses), {"count": count}, 0, 0)


def test_high_loss_averages_over_all_experts() -> None:
    """Fault of the public code: only the first expert counted. Here no single one names the right rows."""
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
    """An unstable order would make equal runs choose different images."""
    got = hardest([torch.tensor(row, dtype=torch.float32) for row in table], count)
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
    rows = random_subset(source(total), {"count": count}, seed, distill_seed)
    torch.manual_seed(1)
    assert torch.equal(rows, random_subset(source(total), {"count": count}, seed, distill_seed))
    assert len(rows.unique()) == len(rows) == count
    assert int(rows.min()) >= 0
    assert int(rows.max()) < total


def test_random_subsets_of_different_seeds_differ() -> None:
    """Both seeds must reach the draw, or the deviation over initial sets would be zero."""
    rows = {tuple(random_subset(source(1000), {"count": 20}, *seeds).tolist()) for seeds in ((0, 0), (0, 1), (1, 0))}
    assert len(rows) == 3


def test_subsets_own_their_memory() -> None:
    """A slice of the full permutation would drag it into every file."""
    for rows in (random_subset(source(1000), {"count": 5}, 0, 0), hardest([torch.rand(1000)], 5)):
        assert rows.untyped_storage().nbytes() == 5 * 8


def clouds(clusters: int, each: int, seed: int = 0) -> Tensor:
    """Targets in well separated clouds, in turn; the first row of each cloud is its centre."""
    stream = torch.Generator().manual_seed(seed)
    centres = 20 * torch.randn(clusters, 5, generator=stream)
    noise = torch.randn(each, clusters, 5, generator=stream)
    noise = torch.cat([noise[:1] * 0, noise - noise.mean(0)])  # the centre is the mean of its cloud
    return (centres + noise).reshape(-1, 5)


def test_kmeans_takes_the_middle_of_each_cloud() -> None:
    """With as many clusters as clouds every centroid is a cloud's mean, and the nearest image its first row."""
    rows = kmeans_subset(source(targets=clouds(4, 30)), {"count": 4}, 0, 0)
    assert sorted(rows.tolist()) == [0, 1, 2, 3]
    assert rows.dtype == torch.int64


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@given(total=st.integers(1, 20), data=st.data())
def test_kmeans_rows_are_distinct_even_among_equal_images(total: int, data: st.DataObject) -> None:
    """Two centroids may be nearest to one image; the budget must be filled all the same."""
    values = data.draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    count = data.draw(st.integers(1, total))
    targets = torch.tensor(values, dtype=torch.float32)[:, None]
    rows = kmeans_subset(source(total, targets=targets), {"count": count}, 0, 0)
    assert len(rows.unique()) == len(rows) == count
    assert torch.equal(rows, kmeans_subset(source(total, targets=targets), {"count": count}, 0, 0))


def test_kmeans_of_different_seeds_differ() -> None:
    """The start of k-means is what its seeds vary."""
    targets = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    found = {tuple(sorted(kmeans_subset(source(targets=targets), {"count": 15}, 0, k).tolist())) for k in range(3)}
    assert len(found) == 3
