"""Resizing, normalising, converting and batching images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mkdt.data import pixels


@given(channels=st.sampled_from([1, 3]), seed=st.integers(0, 50))
def test_denormalise_inverts_normalise(channels: int, seed: int) -> None:
    """All 256 byte values come back, for random statistics."""
    stream = torch.Generator().manual_seed(seed)
    mean = torch.rand(channels, generator=stream)
    std = torch.rand(channels, generator=stream) + 0.05
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, -1, -1)
    normal = pixels.normalise(images, mean, std)
    assert normal.dtype == torch.float32
    assert torch.equal(pixels.denormalise(normal, mean, std), images)


@given(count=st.integers(1, 12), size=st.integers(1, 13), seed=st.integers(0, 99))
def test_images_normalised_on_access_equal_images_normalised_at_once(count: int, size: int, seed: int) -> None:
    """Rows in any order and batches of any size have the same bits."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    mean, std = torch.rand(3, generator=generator), torch.rand(3, generator=generator) + 0.1
    lazy, whole = pixels.Normalised(images, mean, std), pixels.normalise(images, mean, std)
    assert (len(lazy), lazy.shape, lazy.device) == (count, whole.shape, whole.device)
    rows = torch.randint(0, count, (7,), generator=generator)
    assert torch.equal(lazy.to(torch.device("cpu"))[rows], whole[rows])
    batches = list(lazy.split(size))
    assert [len(batch) for batch in batches] == [len(batch) for batch in whole.split(size)]
    assert torch.equal(torch.cat(batches), whole)


def test_normalise_uses_the_statistics_of_each_channel() -> None:
    """Compare with numpy on channels that differ."""
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    values = images.numpy() / 255
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    normal = pixels.normalise(images, torch.tensor(mean).float(), torch.tensor(std).float()).numpy()
    expected = (values - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normal, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std((0, 2, 3)), 1, atol=1e-5)


def test_resize_keeps_constants_averages_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving with antialiasing averages; plain bilinear interpolation would select single pixels."""
    images = torch.full((3, 1, 8, 8), 77, dtype=torch.uint8)
    for size in (4, 8, 16):
        resized = pixels.resize(images, size)
        assert resized.shape == (3, 1, size, size)
        assert resized.dtype == torch.uint8
        assert bool((resized == 77).all())
    stripes = torch.tensor([200, 0, 0, 200], dtype=torch.uint8).repeat(4).expand(1, 1, 16, 16)
    centre = pixels.resize(stripes, 4)[..., 1:3]
    assert int(centre.min()) >= 80
    assert int(centre.max()) <= 120
    many = torch.randint(0, 256, (4100, 1, 4, 4), dtype=torch.uint8)
    for chunk in (1, 100 * 36, pixels.FLOATS):
        monkeypatch.setattr(pixels, "FLOATS", chunk)
        assert torch.equal(pixels.resize(many, 6)[4090:], pixels.resize(many[4090:], 6))
        assert torch.equal(pixels.adapt(many.expand(-1, 3, -1, -1), 1, 4), many)


def test_adapt_repeats_grey_and_converts_colour_to_luma() -> None:
    """The result has the shape of the source and the brightness of the input."""
    grey = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    colour = pixels.adapt(grey, 3, 8)
    assert colour.shape == (4, 3, 8, 8)
    assert all(torch.equal(colour[:, k], grey[:, 0]) for k in range(3))
    assert torch.equal(pixels.adapt(colour, 1, 8), grey)
    assert torch.equal(pixels.adapt(grey, 1, 8), grey)
    pure = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    pure[0, 0] = pure[1, 1] = pure[2, 2] = 255
    assert pixels.adapt(pure, 1, 8)[:, 0, 0, 0].tolist() == [76, 150, 29]  # 255 times 0.299, 0.587, 0.114
    assert pixels.adapt(pure, 3, 4).shape == (3, 3, 4, 4)


def test_in_batches_joins_in_order_and_returns_an_ordinary_tensor() -> None:
    """Autograd cannot save an inference tensor."""
    images = torch.arange(10.0, requires_grad=True).view(10, 1)
    joined = pixels.in_batches(lambda batch: batch * 2, images.split(3))
    assert torch.equal(joined, images.detach() * 2)
    assert not joined.requires_grad
    assert not joined.is_inference()


def test_an_image_grid_is_a_colour_picture() -> None:
    """Images are side by side, enlarged by whole factors, with three channels."""
    picture = pixels.image_grid(torch.zeros(14, 1, 8, 8, dtype=torch.uint8))
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 2 * 52 + 4, 10 * 52 + 4)
