"""Label draws: stratified, and the same for every method."""

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mkdt.evaluate.labels import draw_labels


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    fraction=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
def test_label_draws_are_stratified_with_one_a_class(counts: list[int], fraction: float, seed: int) -> None:
    """The total is the rounded fraction. Each class has at least one image and otherwise its share to within one, less
    what small classes take; a larger class never has fewer."""
    labels = torch.cat([torch.full((count,), 3 * k) for k, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    assume(round(fraction * len(labels)) >= len(counts))
    rows = draw_labels(labels, fraction, seed, "x", 0)
    assert torch.equal(rows, rows.unique())  # ascending, distinct
    drawn = [int((labels[rows] == 3 * k).sum()) for k in range(len(counts))]
    assert len(rows) == round(fraction * len(labels))
    small = any(fraction * count < 1 for count in counts)
    for count, got in zip(counts, drawn, strict=True):
        assert 1 <= got <= count
        assert got == 1 or got - fraction * count < 1
        assert small or fraction * count - got < 1
    by_size = [got for _, got in sorted(zip(counts, drawn, strict=True))]
    assert by_size == sorted(by_size)


def test_large_classes_give_up_the_labels_of_small_ones() -> None:
    """99 classes of ten images at 5.5 % get one label each; the large class gets the rest of the total."""
    labels = torch.cat([torch.zeros(1000), torch.arange(1, 100).repeat(10)]).long()
    rows = draw_labels(labels, 0.055, 0, "uneven", 0)
    assert len(rows) == 109
    assert labels[rows].bincount().tolist() == [10] + [1] * 99


def test_with_fewer_labels_than_classes_the_classes_are_drawn_too() -> None:
    """1 % of 2,000 images of 200 classes are 20 labels of 20 classes, which differ between draws."""
    labels = torch.arange(2000) % 200
    first, second = (draw_labels(labels, 0.01, 0, "birds", draw) for draw in (0, 1))
    for rows in (first, second):
        assert len(labels[rows].unique()) == len(rows) == 20
    assert set(labels[first].tolist()) != set(labels[second].tolist())


def test_label_draws_depend_on_their_identity_only() -> None:
    """They are the same whatever ran before, and differ by seed, data set and draw."""
    labels = torch.arange(300) % 10
    torch.manual_seed(1)
    first = draw_labels(labels, 0.1, 0, "digits", 0)
    torch.manual_seed(2)
    assert torch.equal(first, draw_labels(labels, 0.1, 0, "digits", 0))
    for other in ((1, "digits", 0), (0, "mnist", 0), (0, "digits", 1)):
        assert not torch.equal(first, draw_labels(labels, 0.1, *other))
