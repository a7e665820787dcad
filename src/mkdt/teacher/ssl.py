"""Self-supervised learning: the losses as pure functions, and the random views that they compare."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def barlow_twins(first: Tensor, second: Tensor, *, off_diagonal: float) -> Tensor:
    """Compute the Barlow Twins loss (Zbontar et al., 2021, equation 1), divided by the dimension D.

    The division makes learning rates comparable across projector widths; it changes nothing else.

    Args:
        first, second: projections float [n,D] of two views of the same images.
        off_diagonal: weight of the redundancy term (lambda).
    """
    count, dimension = first.shape
    standardised = [(view - view.mean(0)) / (view.var(0, unbiased=False) + 1e-5).sqrt() for view in (first, second)]
    correlation = standardised[0].T @ standardised[1] / count
    diagonal = correlation.diagonal()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    return ((1 - diagonal).square().sum() + off_diagonal * redundancy) / dimension


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Compute SimCLR's NT-Xent loss (Chen et al., 2020, equation 1), the mean over 2n views.

    Args:
        first, second: projections float [n,D] of two views of the same images.
        temperature: divisor of the cosine similarities.
    """
    count = len(first)
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partners = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(similarity, partners)


def vicreg(first: Tensor, second: Tensor, *, invariance: float, variance: float, covariance: float) -> Tensor:
    """Compute the VICReg loss (Bardes, Ponce and LeCun, 2022, algorithm 1), with margin 1 and epsilon 1e-4.

    Args:
        first, second: projections float [n,D] of two views of the same images.
        invariance: weight of the mean squared difference between the views (lambda).
        variance: weight of the hinge loss that keeps the standard deviation of each dimension above 1 (mu).
        covariance: weight of the squared covariances of two dimensions (nu).
    """
    count, dimension = first.shape
    hinge = redundancy = first.new_zeros(())
    for view in (first, second):
        centred = view - view.mean(0)
        covariances = centred.T @ centred / (count - 1)
        hinge = hinge + F.relu(1 - (covariances.diagonal() + 1e-4).sqrt()).mean()
        redundancy = redundancy + (covariances.square().sum() - covariances.diagonal().square().sum()) / dimension
    return invariance * F.mse_loss(first, second) + variance * hinge + covariance * redundancy


LOSSES: dict[str, Callable[..., Tensor]] = {"barlow_twins": barlow_twins, "simclr": nt_xent, "vicreg": vicreg}


class Views(nn.Module):
    """A sequence of kornia augmentations whose random draws for an image depend only on its row in the whole batch."""

    WHOLE = ("order", "forward_input_shape")  # parameters of kornia that are not per image

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images: Tensor, batch: int | None = None, first: int = 0) -> Tensor:
        """Return one random view of each image.

        Every process draws for the whole batch and applies its part, so the views of an image do not depend on the
        number of processes.

        Args:
            images: float [n,C,H,W] in [0, 1]: the whole batch, or the part of it that starts at row ``first``.
            batch: number of images in the whole batch; None if ``images`` is the whole batch.
            first: row of the first image in the whole batch.
        """
        batch = len(images) if batch is None else batch
        rows = slice(first, first + len(images))
        for step in self.steps:
            drawn = step.forward_parameters(torch.Size((batch, *images.shape[1:])))  # type: ignore[operator]
            images = step(images, {name: v if name in self.WHOLE else v[rows] for name, v in drawn.items()})
        return images


def build_views(settings: Mapping[str, Any], channels: int, size: int) -> Views:
    """Build a module that returns one random view of each image, float [n,C,H,W] in [0, 1].

    kornia draws from torch's global generators: wrap calls in ``seeding.global_stream``.

    Args:
        settings: ``teacher.augment`` (see config/README.md); an entry of 0 or false leaves that step out.
        channels: channels of the images; jitter of hue and saturation and conversion to grey need 3.
        size: height and width of the views.
    """
    import kornia.augmentation as K

    steps: list[nn.Module] = [K.RandomResizedCrop((size, size), scale=tuple(settings["crop_scale"]))]
    if settings["flip"]:
        steps.append(K.RandomHorizontalFlip(p=0.5))
    if settings["rotate"] or settings["shift"]:
        shift = settings["shift"]
        steps.append(K.RandomAffine(settings["rotate"], translate=(shift, shift) if shift else None, p=1.0))
    jitter = settings["jitter"]
    if jitter:
        # Proportions of SimCLR: hue changes a quarter as much as brightness, contrast and saturation.
        if channels == 3:
            steps.append(K.ColorJitter(jitter, jitter, jitter, jitter / 4, p=0.8))
        else:
            steps.append(K.ColorJitter(jitter, jitter, 0.0, 0.0, p=0.8))
    if settings["grayscale"] and channels == 3:
        steps.append(K.RandomGrayscale(p=settings["grayscale"]))
    if settings["blur"]:
        width = max(3, size // 10 * 2 + 1)
        steps.append(K.RandomGaussianBlur((width, width), (0.1, 2.0), p=settings["blur"]))
    if settings["noise"]:
        steps.append(K.RandomGaussianNoise(std=settings["noise"], p=1.0))
    return Views(steps)
