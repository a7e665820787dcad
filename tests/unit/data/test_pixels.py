"""Pixels as pictures side by side."""

import torch

from mkdt.data.pixels import image_grid


def test_grid_makes_a_colour_picture() -> None:
    """Pictures side by side, enlarged by whole factors, three channels."""
    picture = image_grid(torch.zeros(14, 1, 8, 8, dtype=torch.uint8))
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 2 * 52 + 4, 10 * 52 + 4)
