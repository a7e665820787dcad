"""Test SAS: its objective, greedy steps, shares, and views that are equal in all runs."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mkdt.distill.sas import greedy, mean_views, proportional, sas_subset
from mkdt.distill.source import Source
from mkdt.teacher.ssl import build_views

AUGMENT = {
    "crop_scale": [0.5, 1.0], "flip": False, "rotate": 0, "shift": 0.1, "jitter": 0.2, "grayscale": 0, "blur": 0, "noise": 0.05
}  # fmt: skip


def value(similarity: Tensor, subset: tuple[int, ...]) -> float:
    """Compute F(S) as in the paper: the similarities of chosen images to the others."""
    others = [i for i in range(len(similarity)) if i not in subset]
    return float(sum(similarity[i, j] for i in others for j in subset))


@given(seed=st.integers(0, 200), k=st.integers(2, 8), data=st.data())
def test_greedy_takes_the_best_next_image_of_the_papers_objective(seed: int, k: int, data: st.DataObject) -> None:
    """Each step is compared with all candidates by F itself, for similarities with a constant."""
    count = data.draw(st.integers(1, k))
    vectors = torch.randn(k, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    similarity = 5 + 2 * vectors @ vectors.T
    chosen = tuple(greedy(vectors, count).tolist())
    assert len(set(chosen)) == count
    for step in range(count):
        candidates = [i for i in range(k) if i not in chosen[:step]]
        best = max(value(similarity, (*chosen[:step], i)) for i in candidates)
        assert value(similarity, chosen[: step + 1]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_within_its_guarantee_of_the_best_set(seed: int) -> None:
    """Greedy reaches 1 - 1/e of the best of all sets of a size at which F is monotone."""
    vectors = F.normalize(torch.rand(10, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)
    similarity = vectors @ vectors.T
    best = max(value(similarity, subset) for subset in itertools.combinations(range(10), 3))
    assert value(similarity, tuple(greedy(vectors, 3).tolist())) >= (1 - 1 / 2.71828) * best


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), data=st.data())
def test_shares_are_proportional_and_use_the_whole_budget(sizes: list[int], data: st.DataObject) -> None:
    """The shares sum to the budget, and no class gives more images than it has."""
    count = data.draw(st.integers(1, sum(sizes)))
    shares = proportional(torch.tensor(sizes), count)
    assert sum(shares) == count
    for size, share in zip(sizes, shares, strict=True):
        assert share <= size
        assert abs(share - size * count / sum(sizes)) < 1


@pytest.fixture
def source() -> Source:
    """Make random images, and a teacher that is a fixed projection."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=stream, dtype=torch.uint8)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    with torch.no_grad():
        teacher[1].weight.copy_(torch.randn(5, 64, generator=stream))
    mean, std = torch.tensor([0.5]), torch.tensor([0.3])
    targets = teacher((images.float() / 255 - 0.5) / 0.3).detach()
    return Source(images, mean, std, targets, teacher=teacher)


def test_the_mean_vectors_are_the_mean_over_all_pairs_of_views(source: Source) -> None:
    """<m_i, m_j> is the mean cosine over all pairs of a view of i and a view of j."""
    found = mean_views(source, AUGMENT, 3, 0, 0)
    from mkdt import seeding

    views = build_views(AUGMENT, 1, 8)
    seen = []
    for view in range(3):
        with torch.no_grad(), seeding.global_stream(0, "sas views", 0, view):
            pixels = (views(source.images.float() / 255) - 0.5) / 0.3
            seen.append(F.normalize(source.teacher(pixels), dim=1))  # type: ignore[misc]
    pairs = torch.stack([one @ other.T for one in seen for other in seen]).mean(0)
    torch.testing.assert_close(found @ found.T, pairs, rtol=1e-4, atol=1e-5)


def test_the_subset_is_seeded_distinct_and_spread_over_classes(source: Source) -> None:
    """Equal seeds give equal rows, whatever the state of the global generators; other seeds give other rows."""
    settings: dict[str, Any] = {"count": 9, "classes": 4, "views": 2, "augment": AUGMENT}
    torch.manual_seed(0)
    rows = sas_subset(source, settings, 0, 0)
    torch.manual_seed(1)
    assert torch.equal(rows, sas_subset(source, settings, 0, 0))
    assert len(rows.unique()) == len(rows) == 9
    others = [sas_subset(source, settings, 0, k).sort().values for k in (1, 2, 3)]
    assert any(not torch.equal(rows.sort().values, other) for other in others)
