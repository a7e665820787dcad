"""Subset method ``kmeans``: cluster the targets, and take the image nearest to each centroid."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.distill.source import Source


def clusters(features: Tensor, count: int, seed: int, purpose: str, distill_seed: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's k-means from one k-means++ start; return centroids float32 [count,D] and assignments int64 [n].

    Args:
        features: float32 [n,D], with at least ``count`` rows.
        seed, purpose, distill_seed: name the random stream.
    """
    from sklearn.cluster import KMeans

    random_state = seeding.derive(seed, purpose, distill_seed) % 2**32
    fitted = KMeans(count, n_init=1, random_state=random_state).fit(features.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float(), torch.from_numpy(fitted.labels_).long()


def kmeans_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Choose for each of ``count`` centroids the nearest image that no earlier centroid took, int64 [count]."""
    targets = source.targets
    centroids, _ = clusters(targets, settings["count"], seed, "kmeans subset", distill_seed)
    squares = targets.square().sum(1)
    free = torch.zeros(len(targets))
    rows = []
    for centroid in centroids:  # one at a time, because all distances at once take count x n numbers
        distance = squares - 2 * targets @ centroid + free
        rows.append(int(distance.argmin()))
        free[rows[-1]] = torch.inf
    return torch.tensor(rows)
