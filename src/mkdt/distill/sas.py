"""Subset method ``sas``: images whose random views are most similar to those of other images of their latent class.

Joshi and Mirzasoleiman, "Data-efficient contrastive self-supervised learning", ICML 2023 (arXiv 2302.09195). Within
each approximate latent class V_k, F(S) = sum over i in V_k \\ S and j in S of s_ij is maximised greedily; the budget is
shared in proportion to the class sizes. s_ij is a constant minus the expected distance between a view of i and a view
of j under a proxy model. Here the proxy is the teacher, and the latent classes are clusters of its targets, so no
labels are needed.

With unit representations z and squared distances, s_ij = const + 2 E<z_i, z_j>. The constant adds the same to F for all
sets of one size. Views are drawn independently, so for i != j the mean over all pairs of views is <m_i, m_j>, the
product of the mean vectors. With T the sum of m over V_k, adding e gains <m_e, T - m_e - 2 sum of m over S>: the greedy
step is exact in n D operations, without an n x n matrix.
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
    """Average the unit representations of ``views`` random views of each image, float32 [n,D]."""
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
    """Maximise F greedily over sets of ``count`` rows; return int64 [count], in the order of choice.

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
    """Divide ``count`` in proportion to ``sizes`` (int64 [K], sum at least ``count``), largest remainders first."""
    exact = sizes.double() * count / int(sizes.sum())
    shares = exact.floor().long()
    missing = count - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1
    return shares.tolist()


def sas_subset(source: Source, settings: Mapping[str, Any], seed: int, distill_seed: int) -> Tensor:
    """Choose ``count`` distinct rows, int64, class after class.

    Args:
        source: its images, mean and std, targets and teacher.
        settings: ``count``; ``classes``, number of latent classes; ``views``, number of views of an image; ``augment``.
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
