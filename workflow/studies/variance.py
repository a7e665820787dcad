"""Share of noise in a random vector: the weights of runs from one start, or gradients over batches and views.

For a random vector x with mean m, E|x|^2 = |m|^2 + E|x - m|^2. The noise share is E|x - m|^2 / E|x|^2: 0 where all draws are
equal, near 1 where they have nothing in common.

Let x be the difference between a start and an expert's weights. A synthetic set depends on the start and not on the draw, so
it cannot on average come closer than the noise share. Where all x have about the same length, the share is a lower bound of
the mean matching loss for one start (which is a mean of ratios, the share a ratio of means).
"""

from torch import Tensor


def noise_share(draws: Tensor) -> float:
    """Estimate E|x - m|^2 / E|x|^2 from independent draws, float [R,P], R > 1; the estimate is at most R / (R - 1)."""
    noise = draws.var(0).sum()
    return float(noise / draws.square().sum(1).mean())


def nested_shares(draws: Tensor) -> tuple[float, float]:
    """Split the noise share of gradients into a part of the batches and a part of the views of a batch.

    Args:
        draws: float [J,K,P], J > 1 batches, each with K > 1 draws of its views.

    Returns:
        the share of the variance between batches (of expectations over views), and of the variance within a batch. The
        first estimate is unbiased, so it can be slightly negative where the share is near 0.
    """
    views = draws.shape[1]
    total = draws.square().sum(2).mean()
    within = draws.var(1).mean(0).sum()
    between = draws.mean(1).var(0).sum() - within / views
    return float(between / total), float(within / total)
