"""How much of a random vector can be foreseen: runs from one start, or gradients over batches and views.

Of a random vector x with mean m, E|x|^2 = |m|^2 + E|x - m|^2: what repeats from draw to draw, and what does not. The second
part's share of the sum is 0 where every draw is the same and near 1 where they have nothing in common. With x the way
from a start to an expert's weights, no synthetic set, which sees the start and not the draw, can on average come nearer than this share: where
all ways are of about equal length, it is the floor of the mean matching loss for one start (that is a mean of ratios, this
a ratio of means).
"""

from torch import Tensor


def noise_share(draws: Tensor) -> float:
    """E|x - m|^2 / E|x|^2 from independent draws, float [R,P], R > 1; from 0 to, by chance, R / (R - 1)."""
    noise = draws.var(0).sum()
    return float(noise / draws.square().sum(1).mean())


def nested_shares(draws: Tensor) -> tuple[float, float]:
    """The noise share of gradients in its parts: by batches, and by the views of one batch.

    Args:
        draws: float [J,K,P], J > 1 batches, each with K > 1 draws of its views.

    Returns:
        the shares of E|x|^2 that the expectation over views varies between batches with, and that is left within a
        batch. The first may come out slightly negative where it is near 0, since it is unbiased.
    """
    views = draws.shape[1]
    total = draws.square().sum(2).mean()
    within = draws.var(1).mean(0).sum()
    between = draws.mean(1).var(0).sum() - within / views
    return float(between / total), float(within / total)
