"""SSL losses compared with transcriptions of their papers as loops, and the random views."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from mkdt import seeding
from mkdt.teacher.ssl import LOSSES, barlow_twins, build_views, nt_xent, vicreg

PLAIN: dict[str, Any] = {
    "crop_scale": [1.0, 1.0],
    "flip": False,
    "rotate": 0,
    "shift": 0,
    "jitter": 0,
    "grayscale": 0,
    "blur": 0,
    "noise": 0,
}
FULL: dict[str, Any] = {
    "crop_scale": [0.3, 1.0],
    "flip": True,
    "rotate": 10,
    "shift": 0.1,
    "jitter": 0.4,
    "grayscale": 0.2,
    "blur": 0.5,
    "noise": 0.05,
}


def barlow_by_loops(first: np.ndarray, second: np.ndarray, weight: float) -> float:
    """Compute equation 1 of Zbontar et al. (2021), one entry of the correlation matrix at a time, divided by D."""
    count, dimension = first.shape
    total = 0.0
    for i in range(dimension):
        for j in range(dimension):
            a, b = first[:, i], second[:, j]
            covariance = sum((a[n] - a.mean()) * (b[n] - b.mean()) for n in range(count)) / count
            correlation = covariance / (math.sqrt(a.var() + 1e-5) * math.sqrt(b.var() + 1e-5))
            total += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return total / dimension


def nt_xent_by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Compute equation 1 of Chen et al. (2020), one pair at a time."""
    views = [*first, *second]
    count = len(first)

    def similarity(i: int, j: int) -> float:
        a, b = views[i], views[j]
        return math.exp(float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)) / temperature)

    total = 0.0
    for i in range(2 * count):
        partner = i + count if i < count else i - count
        others = sum(similarity(i, k) for k in range(2 * count) if k != i)
        total -= math.log(similarity(i, partner) / others)
    return total / (2 * count)


def vicreg_by_loops(first: np.ndarray, second: np.ndarray, weights: tuple[float, float, float]) -> float:
    """Compute algorithm 1 of Bardes et al. (2022), one entry of each covariance matrix at a time."""
    count, dimension = first.shape
    invariance = sum((first[n, j] - second[n, j]) ** 2 for n in range(count) for j in range(dimension))
    hinge = redundancy = 0.0
    for view in (first, second):
        for i in range(dimension):
            hinge += max(0.0, 1 - math.sqrt(view[:, i].var(ddof=1) + 1e-4)) / dimension
            for j in range(dimension):
                if i != j:
                    redundancy += float(np.cov(view[:, i], view[:, j])[0, 1]) ** 2 / dimension
    return weights[0] * invariance / (count * dimension) + weights[1] * hinge + weights[2] * redundancy


def pair(count: int, dimension: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two related sets of projections."""
    stream = torch.Generator().manual_seed(seed)
    first = torch.randn(count, dimension, generator=stream, dtype=torch.float64)
    return first, first + 0.5 * torch.randn(count, dimension, generator=stream, dtype=torch.float64)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99), st.floats(0, 0.1))
def test_barlow_twins_equals_its_equation(count: int, dimension: int, seed: int, weight: float) -> None:
    """A swapped axis or a missing square would change the result."""
    first, second = pair(count, dimension, seed)
    wanted = barlow_by_loops(first.numpy(), second.numpy(), weight)
    assert float(barlow_twins(first, second, off_diagonal=weight)) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 2))
def test_nt_xent_equals_its_equation(count: int, dimension: int, seed: int, temperature: float) -> None:
    """The positive of each view is the other view of the same image; the view itself is not a negative."""
    first, second = pair(count, dimension, seed)
    wanted = nt_xent_by_loops(first.numpy(), second.numpy(), temperature)
    assert float(nt_xent(first, second, temperature=temperature)) == pytest.approx(wanted, rel=1e-9)


WEIGHT = st.floats(0, 30)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99), st.tuples(WEIGHT, WEIGHT, WEIGHT))
def test_vicreg_equals_its_algorithm(
    count: int, dimension: int, seed: int, weights: tuple[float, float, float]
) -> None:
    """Each of the three terms has the right scale in batch size and dimension."""
    first, second = (
        0.7 * view for view in pair(count, dimension, seed)
    )  # standard deviations on both sides of the hinge
    wanted = vicreg_by_loops(first.numpy(), second.numpy(), weights)
    options = dict(zip(("invariance", "variance", "covariance"), weights, strict=True))
    assert float(vicreg(first, second, **options)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


OPTIONS = {
    "barlow_twins": {"off_diagonal": 0.005},
    "simclr": {"temperature": 0.5},
    "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
}


@pytest.mark.parametrize(("name", "options"), OPTIONS.items())
def test_losses_prefer_matching_views_and_have_finite_gradients(name: str, options: dict[str, float]) -> None:
    """Pairing views of different images raises the loss; constant (collapsed) projections give no NaN."""
    first, second = pair(8, 4, 0)
    loss = LOSSES[name]
    assert float(loss(first, second, **options)) < float(loss(first, second.roll(1, 0), **options))
    collapsed = torch.ones(4, 3, requires_grad=True)
    value = loss(collapsed, collapsed * 1.0, **options)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert bool(collapsed.grad.isfinite().all())  # type: ignore[union-attr]


def draw(views: nn.Module, images: Tensor, seed: int = 0) -> Tensor:
    """Draw one view of each image from a named random stream."""
    with torch.no_grad(), seeding.global_stream(seed, "views"):
        return views(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_the_shape_depend_on_the_stream_only_and_do_not_change_the_images(channels: int) -> None:
    """Equal random streams give equal views of grey and colour images, with all steps on."""
    views = build_views(FULL, channels, 16)
    images = torch.rand(4, channels, 16, 16)
    before = images.clone()
    first = draw(views, images)
    torch.manual_seed(5)
    assert first.shape == images.shape
    assert torch.equal(first, draw(views, images))
    assert torch.equal(first, draw(build_views(FULL, channels, 16), images))
    assert not torch.equal(first, draw(views, images, seed=1))
    assert torch.equal(images, before)
    assert bool(first.isfinite().all())


STEPS: list[dict[str, Any]] = [
    {"crop_scale": [0.2, 0.8]},
    {"flip": True},
    {"rotate": 20},
    {"shift": 0.2},
    {"jitter": 0.8},
    {"grayscale": 0.5},
    {"blur": 0.5},
    {"noise": 0.1},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: next(iter(step)))
def test_each_step_changes_images_and_draws_for_each_image(step: dict[str, Any]) -> None:
    """16 copies of an image do not all get the same view."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    copies = draw(build_views(PLAIN | step, 3, 16), image.expand(16, -1, -1, -1).contiguous())
    distinct = {copy.numpy().tobytes() for copy in copies}
    assert len(distinct) >= 2
    assert any(not torch.allclose(copy, image[0], atol=1e-4) for copy in copies)


@given(batch=st.integers(1, 12), parts=st.integers(1, 4), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
@example(batch=4, parts=2, channels=3, seed=0)  # the parameters of kornia that are not per image have four entries too
def test_the_views_of_a_part_equal_those_of_the_whole_batch(batch: int, parts: int, channels: int, seed: int) -> None:
    """The views of an image do not depend on how processes share the batch."""
    views = build_views(FULL, channels, 8)
    images = torch.rand(batch, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    whole = draw(views, images, seed)
    first = 0
    for part in images.chunk(parts):
        with torch.no_grad(), seeding.global_stream(seed, "views"):
            mine = views(part, batch, first)
        torch.testing.assert_close(mine, whole[first : first + len(part)], rtol=0, atol=1e-6)
        first += len(part)


def test_with_every_step_off_a_view_is_the_image() -> None:
    """0 and false leave a step out."""
    image = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(draw(build_views(PLAIN, 3, 16), image), image, rtol=1e-3, atol=1e-3)


def test_grey_images_stay_grey_through_the_colour_steps() -> None:
    """Digits and MNIST have one channel: colour steps are skipped or change brightness and contrast only."""
    for step in ({"jitter": 0.8}, {"grayscale": 1.0}):
        assert draw(build_views(PLAIN | step, 1, 8), torch.rand(4, 1, 8, 8)).shape == (4, 1, 8, 8)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_which_view_comes_first(name: str) -> None:
    """All losses are symmetric in the two views."""
    loss, options = LOSSES[name], OPTIONS[name]
    first, second = pair(6, 3, 1)
    assert float(loss(first, second, **options)) == pytest.approx(float(loss(second, first, **options)), rel=1e-9)
