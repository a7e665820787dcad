"""Test k-means subsets."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from mkdt.distill.kmeans import clusters, kmeans_subset
from mkdt.distill.source import Source


def clouds(clusters: int, each: int, seed: int = 0) -> Tensor:
    """Make targets in well separated clouds, one row of each in turn; the first row of a cloud is its centre."""
    stream = torch.Generator().manual_seed(seed)
    centres = 20 * torch.randn(clusters, 5, generator=stream)
    noise = torch.randn(each, clusters, 5, generator=stream)
    noise = torch.cat([noise[:1] * 0, noise - noise.mean(0)])  # the centre is the mean of its cloud
    return (centres + noise).reshape(-1, 5)


def test_kmeans_takes_the_middle_of_each_cloud() -> None:
    """With as many clusters as clouds, the centroids are the means of the clouds, near their first rows."""
    rows = kmeans_subset(Source(targets=clouds(4, 30)), {"count": 4}, 0, 0)
    assert sorted(rows.tolist()) == [0, 1, 2, 3]
    assert rows.dtype == torch.int64


@given(total=st.integers(1, 20), data=st.data())
def test_kmeans_rows_are_distinct_even_among_equal_images(total: int, data: st.DataObject) -> None:
    """If two centroids have the same nearest image, the budget is still filled."""
    values = data.draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    count = data.draw(st.integers(1, total))
    targets = torch.tensor(values, dtype=torch.float32)[:, None]
    rows = kmeans_subset(Source(targets=targets), {"count": count}, 0, 0)
    assert len(rows.unique()) == len(rows) == count
    assert torch.equal(rows, kmeans_subset(Source(targets=targets), {"count": count}, 0, 0))


def test_kmeans_of_different_seeds_differ() -> None:
    """The distill seed changes the start of k-means."""
    targets = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    subsets = {tuple(sorted(kmeans_subset(Source(targets=targets), {"count": 15}, 0, k).tolist())) for k in range(3)}
    assert len(subsets) == 3


def test_clusters_are_as_tight_as_those_of_scikit_learn() -> None:
    """Over a few starts, within a hundredth, far from zero and with more dimensions than the start is chosen in."""
    features = clouds(40, 20) @ torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    features = 100 + features + 10 * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = 0.0, 0.0
    for k in range(5):
        centroids, nearest = clusters(features, 30, 0, "test", k)
        distances = torch.cdist(features.double(), centroids.double()).square()
        assert torch.equal(nearest, distances.argmin(1))
        ours += float(distances.min(1).values.sum())
        theirs += KMeans(30, n_init=1, random_state=k).fit(features.numpy()).inertia_
    assert ours < 1.01 * theirs
