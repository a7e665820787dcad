"""Fixed views: what each does to an image, their order, and their gradient."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mkdt.config.views import check, expand, parse
from mkdt.data.pixels import denormalise, normalise
from mkdt.data.views import decode
from mkdt.errors import UserError

MEAN, STD = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.3, 0.2, 0.5])
NAMES = ["identity", "mirror", "shift 1 -2", "rotate 17", "crop 0.75 bottom_left", "colour 0.1 0 -0.2", "colour 0.25"]


def pictures(count: int = 2, size: int = 8) -> Tensor:
    """Random pictures, uint8 [n,3,size,size]."""
    stream = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=stream, dtype=torch.uint8)


def seen(pixels: Tensor, *names: str) -> Tensor:
    """The pixels of all views, uint8."""
    return denormalise(decode(normalise(pixels, MEAN, STD), names, MEAN, STD), MEAN, STD)


def test_the_images_themselves_are_one_view() -> None:
    """A set without views is the case of one, and costs nothing."""
    images = normalise(pictures(), MEAN, STD)
    assert decode(images, ["identity"], MEAN, STD) is images


def test_views_come_one_after_the_other() -> None:
    """Row v * m + i is view v of image i."""
    pixels = pictures(3)
    both = seen(pixels, "identity", "mirror")
    assert torch.equal(both[:3], pixels)
    assert torch.equal(both[3:], pixels.flip(3))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 2), (0, -3), (2, 2)])
def test_a_shift_moves_pixels_and_black_comes_in(right: int, down: int) -> None:
    """Pixel (y, x) moves to (y + down, x + right)."""
    pixels = pictures(1)
    moved = seen(pixels, f"shift {right} {down}")[0]
    for y in range(8):
        for x in range(8):
            inside = 0 <= y - down < 8 and 0 <= x - right < 8
            wanted = pixels[0, :, y - down, x - right] if inside else torch.zeros(3, dtype=torch.uint8)
            assert torch.equal(moved[:, y, x], wanted)


def test_a_quarter_turn_is_exact() -> None:
    """Counter-clockwise about the centre; the square turns into itself."""
    pixels = pictures(1)
    turned = seen(pixels, "rotate 90").int()
    assert (turned - torch.rot90(pixels, 1, (2, 3)).int()).abs().max() <= 1


def test_a_turn_of_nothing_changes_nothing() -> None:
    """Bilinear sampling at the pixels' own centres returns them."""
    assert (seen(pictures(), "rotate 0").int() - pictures().int()).abs().max() <= 1


def test_a_crop_shows_its_corner() -> None:
    """Of a picture whose corners have one colour each, a crop of half shows that colour alone."""
    colours = {"top_left": 10, "top_right": 60, "bottom_left": 110, "bottom_right": 200}
    pixels = torch.empty(1, 3, 8, 8, dtype=torch.uint8)
    for place, colour in colours.items():
        rows = slice(0, 4) if place.startswith("top") else slice(4, 8)
        columns = slice(0, 4) if place.endswith("left") else slice(4, 8)
        pixels[:, :, rows, columns] = colour
    for place, colour in colours.items():
        assert (seen(pixels, f"crop 0.5 {place}").int() - colour).abs().max() <= 1
    middle = seen(pixels, "crop 0.5 centre")[0, 0]
    assert middle[0, 0] < middle[0, -1] < middle[-1, 0] < middle[-1, -1]


def test_a_colour_shift_adds_to_pixels() -> None:
    """The amounts are of pixels in [0, 1]."""
    pixels = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert seen(pixels, "colour 0.2 0 -0.1")[0, :, 0, 0].tolist() == [151, 100, 74]
    assert seen(pixels, "colour 0.2")[0, :, 0, 0].tolist() == [151, 151, 151]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_goes_through(name: str) -> None:
    """Every view is affine in the images, so a finite difference equals the gradient."""
    stream = torch.Generator().manual_seed(1)
    images, direction, weight = (torch.randn(2, 3, 6, 6, generator=stream, dtype=torch.float64) for _ in range(3))
    leaf = images.clone().requires_grad_()
    statistics = MEAN.double(), STD.double()
    (gradient,) = torch.autograd.grad((decode(leaf, [name], *statistics) * weight).sum(), leaf)
    change = decode(images + direction, [name], *statistics) - decode(images, [name], *statistics)
    assert float((gradient * direction).sum()) == pytest.approx(float((change * weight).sum()), rel=1e-9)


def test_shifts_are_eight() -> None:
    """In a documented order, without the image itself."""
    assert expand(["identity", "shifts 2"]) == [
        "identity", "shift -2 -2", "shift 0 -2", "shift 2 -2", "shift -2 0", "shift 2 0", "shift -2 2", "shift 0 2", "shift 2 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", "flip", "shift 1", "shift 0.5 1", "rotate", "rotate 300", "crop 0.5", "crop 2 centre", "colour 1 2", "shifts 0", "shift a b"]
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    """The sentence shows the name and how views are written."""
    with pytest.raises(UserError, match="shift RIGHT DOWN"):
        expand([name])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["shift 1 0", "identity"], "identity"),
        (["identity", "identity"], "'identity' is there twice"),
        (["identity", "rotate 10", "rotate 10.0"], "'rotate 10.0' is there twice, first as 'rotate 10'"),
        (["identity", "shift 1 0", "shifts 1"], "'shift 1 0' is there twice"),
        (["identity", "shift 0 0"], "'shift 0 0' changes nothing"),
        (["identity", "rotate 0"], "'rotate 0' changes nothing"),
        (["identity", "colour 0 0 0"], "'colour 0 0 0' changes nothing"),
        (["identity", "shift 8 0"], "8x8"),
        (["identity", "colour 0.1 0.2 0.3"], "1 channel"),
    ],
)
def test_views_that_are_one_or_none_are_refused(names: list[str], words: str) -> None:
    """Each would be paid for and add nothing, or does not fit the images."""
    with pytest.raises(UserError, match=words):
        check(expand(names), 1, 8)


@given(st.text(max_size=20))
def test_any_text_is_a_view_or_one_sentence(name: str) -> None:
    """No other error, whatever is typed."""
    outcome: Any = None
    try:
        outcome = [parse(one) for one in expand([name])]
    except UserError as error:
        outcome = str(error)
    assert outcome
