"""Noise shares of draws whose share is known by construction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from variance import nested_shares, noise_share


@given(st.floats(0.0, 5.0), st.floats(0.1, 5.0))
def test_the_noise_share_of_a_known_mixture(signal: float, noise: float) -> None:
    """Draws are a vector of known length plus noise of known variance, in many dimensions."""
    stream = torch.Generator().manual_seed(0)
    size = 4000
    mean = torch.randn(size, generator=stream, dtype=torch.float64)
    mean *= signal * size**0.5 / mean.norm()
    draws = mean + noise * torch.randn(20, size, generator=stream, dtype=torch.float64)
    assert noise_share(draws) == pytest.approx(noise**2 / (signal**2 + noise**2), abs=0.02)


def test_equal_draws_have_no_noise() -> None:
    """The scale of the vectors does not matter."""
    draws = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    assert noise_share(draws[:1].expand(6, -1)) == pytest.approx(0, abs=1e-6)
    assert noise_share(1000 * draws) == pytest.approx(noise_share(draws), rel=1e-5)


@pytest.mark.parametrize(("batches", "views"), [(1.0, 0.5), (0.0, 1.0), (2.0, 0.1)])
def test_nested_shares_separate_batches_from_views(batches: float, views: float) -> None:
    """Draws of a batch share one noise and each has its own; with few views the latter must not count for batches."""
    stream = torch.Generator().manual_seed(2)
    shape = (30, 2, 3000)
    common = batches * torch.randn(shape[0], 1, shape[2], generator=stream)
    draws = 1 + common + views * torch.randn(shape, generator=stream)
    total = 1 + batches**2 + views**2
    between, within = nested_shares(draws)
    assert between == pytest.approx(batches**2 / total, abs=0.02)
    assert within == pytest.approx(views**2 / total, abs=0.02)
