"""Subset method ``sas``: images whose random views are most like those of the others of their latent class.

Joshi and Mirzasoleiman, "Data-efficient contrastive self-supervised learning", ICML 2023 (arXiv 2302.09195): within each
approximate latent class V_k, maximise F(S) = sum over i in V_k \\ S and j in S of s_ij, greedily, with the budget shared in
proportion to the classes; s_ij is a constant minus the expected distance of a view of i and a view of j under a proxy
model. Here the proxy is the teacher and the latent classes are clusters of its targets: no labels.

With unit representations z and squared distances, s_ij = const + 2 E<z_i, z_j>. The constant adds the same to F for
every set of one size, and views are drawn independently, so for i != j the mean over all pairs of views is the product
of mean vectors, <m_i, m_j>. Hence the gain of adding e is <m_e, T - m_e - 2 sum of m over S>, T the sum over V_k: the
greedy step is exact in n D operations, and no n x n matrix is needed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data.pixels import in_batches
from mkdt.distill.kmeans import clusters
from mkdt.distill.source import Source
from mkdt.teacher.ssl import build_views

ENCODE_BATCH = 1024


def mean_views(source: Source, augment: Mapping[str, Any], views: int, seed: int, distill_seed: int) -> Tensor:
    """The mean unit representation of ``views`` random views of each image, float32 [n,D]."""
    assert source.teacher is not None
    teacher, device = source.teacher.to(source.device).eval(), source.device
    augmentation = build_views(augment, *source.images.shape[1:3]).to(device)
    mean, std = (part.to(device)[:, None, None] for part in (source.mean, source.std))

    def encode(pixels: Tensor) -> Tensor:
        seen = (augmentation(pixels.to(device).float() / 255) - mean) / std
        return F.normalize(teacher(seen).float(), dim=1)

    total = torch.zeros(())
    for view in range(views):
        with seeding.global_stream(seed, "sas views", distill_seed, view):
            total = total + in_batches(encode, source.images.split(ENCODE_BATCH))
    return total / views


def greedy(vectors: Tensor, count: int) -> Tensor:
    """Greedy maximisation of F over sets of ``count`` rows, int64 [count] in the order of their choice.

    Args:
        vectors: float [k,D], the mean unit representations of one latent class.
        count: at most k.
    """
    vectors = vectors.double()
    rest = vectors.sum(0)  # T - 2 * sum of m over S
    squares = vectors.square().sum(1)
    taken = torch.zeros(len(vectors), dtype=torch.bool)
    rows = []
    for _ in range(count):
        gain = (vectors @ rest - squares).masked_fill(taken, -torch.inf)
        rows.append(int(gain.argmax()))
        taken[rows[-1]] = True
        rest = rest - 2 * vectors[rows[-1]]
    return torch.tensor(rows, dtype=torch.int64)


def proportional(sizes: Tensor, count: int) -> list[int]:
    """Shares of ``count`` in proportion to ``sizes`` (int64 [K], sum at least ``count``), largest remainders first."""
    exact = sizes.double() * count / int(sizes.sum())
    shares = exact.floor().long()
    missing = count - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1
    return shares.tolist()


def sas_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """``count`` distinct rows, int64, class after class.

    Args:
        source: with the teacher.
        settings: ``count``; ``classes``, the number of latent classes; ``views``, how many of each image; ``augment``.
        seed, distill_seed: decide the views and the start of k-means.
    """
    total, count = len(source.images), settings["count"]
    _, latent = clusters(source.targets, min(settings["classes"], total), seed, "sas classes", distill_seed)
    vectors = mean_views(source, settings["augment"], settings["views"], seed, distill_seed)
    shares = proportional(latent.bincount(minlength=int(latent.max()) + 1), count)
    rows = []
    for label, share in enumerate(shares):
        members = (latent == label).nonzero().flatten()
        rows.append(members[greedy(vectors[members], share)])
    return torch.cat(rows)
