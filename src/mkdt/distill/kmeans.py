"""Subset method ``kmeans``: cluster the targets, and take the image nearest to each centroid."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.distill.source import Source

MOST_ITERATIONS = 300
SHIFT = 1e-4  # Lloyd's iterations stop when the squared shift of all centroids is less than so many mean variances
CANDIDATES = 8  # points that are tried for each centroid of the start
SEEDING_DIMENSIONS = 32  # the start is chosen in so many principal directions; all of 512 took five times as long
FLOATS = 1 << 24  # distances that are computed at a time: 64 MB


def clusters(features: Tensor, count: int, seed: int, purpose: str, distill_seed: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's k-means from one k-means++ start; return centroids float32 [count,D] and assignments int64 [n].

    Args:
        features: float32 [n,D], with at least ``count`` rows.
        seed, purpose, distill_seed: name the random stream.
    """
    mean = features.mean(0)
    points = features - mean  # distances of points far from zero would be rounded
    centroids = points[_start(points, count, seeding.generator(seed, purpose, distill_seed))]
    enough = SHIFT * points.var(0, correction=0).mean()
    for _ in range(MOST_ITERATIONS):
        before, centroids = centroids, _means(points, _nearest(points, centroids), centroids)
        if (centroids - before).square().sum() <= enough:
            break
    return centroids + mean, _nearest(points, centroids)


def _start(points: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Choose ``count`` rows by greedy k-means++, int64.

    Candidates are drawn in proportion to their squared distance from the rows so far. The one that leaves the smallest sum
    of squared distances is taken.
    """
    points = _principal(points, stream)
    squares = points.square().sum(1)
    distances = torch.ones_like(squares)
    rows: list[int] = []
    for _ in range(count):
        reach = distances.double().cumsum(0)
        if reach[-1] == 0:  # each point has an equal one among the rows
            reach = torch.ones_like(reach).cumsum(0)
        draws = torch.rand(CANDIDATES, generator=stream, dtype=torch.float64).to(points.device)
        candidates = torch.searchsorted(reach, draws * reach[-1], right=True).clamp(max=len(points) - 1)
        apart = torch.addmm(squares + squares[candidates, None], points[candidates], points.T, alpha=-2).clamp_(min=0)
        if rows:
            apart = apart.minimum(distances)
        best = int(apart.sum(1).argmin())
        distances = apart[best]
        rows.append(int(candidates[best]))
    return torch.tensor(rows)


def _principal(points: Tensor, stream: torch.Generator) -> Tensor:
    """Project centred points on about their ``SEEDING_DIMENSIONS`` first principal directions, by one power iteration."""
    if points.shape[1] <= SEEDING_DIMENSIONS:
        return points
    directions = torch.randn(points.shape[1], SEEDING_DIMENSIONS, generator=stream).to(points.device)
    return points @ torch.linalg.qr(points.T @ (points @ directions)).Q


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the nearest centroid of each point, int64 [n]."""
    squares = centroids.square().sum(1)
    chunks = points.split(max(1, FLOATS // len(centroids)))
    return torch.cat([torch.addmm(squares, chunk, centroids.T, alpha=-2).min(1).indices for chunk in chunks])


def _means(points: Tensor, nearest: Tensor, centroids: Tensor) -> Tensor:
    """Return the mean of the points of each centroid; a centroid without points stays."""
    counts = nearest.bincount(minlength=len(centroids))[:, None]
    sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
    return torch.where(counts > 0, sums / counts.clamp(min=1), centroids)


def kmeans_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Choose for each of ``count`` centroids the nearest image that no earlier centroid took, int64 [count]."""
    targets = source.targets
    centroids, _ = clusters(targets, settings["count"], seed, "kmeans subset", distill_seed)
    mean = targets.mean(0)
    targets, centroids = targets - mean, centroids - mean  # distances of points far from zero would be rounded
    squares = targets.square().sum(1)
    free = torch.zeros(len(targets))
    rows: list[int] = []
    for some in centroids.split(max(1, FLOATS // len(targets))):
        for distance in torch.addmm(squares, some, targets.T, alpha=-2):
            rows.append(int((distance + free).argmin()))
            free[rows[-1]] = torch.inf
    return torch.tensor(rows)
