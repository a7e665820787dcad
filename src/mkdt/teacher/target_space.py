"""The space of the targets: centred, fewer principal components, another scale.

Representations have a mean and a few strong directions, and a mean squared error in them is badly conditioned. The space
is fitted on the targets of the training images alone:

    y = (t - m) V S

with the mean m (zero if not centred), the principal directions V [D,K] (eigenvectors of the second moments about m, the
largest first) and a diagonal scale S. PHI-S (arXiv 2410.01680) argues for one scale for all directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkdt.errors import UserError

NEGLIGIBLE = 1e-6  # a component with less than this share of the largest variance is not scaled up any further


@dataclass(frozen=True)
class TargetSpace:
    """An affine map of representations.

    Attributes:
        mean: float32 [D], m.
        basis: float32 [D,K], V S.
        inverse: float32 [K,D], the inverse of S times the transpose of V.
        explained: float32 [K], the share of the second moments about m that each component has.
    """

    mean: Tensor
    basis: Tensor
    inverse: Tensor
    explained: Tensor

    PREFIX = "space_"
    NAMES = ("mean", "basis", "inverse", "explained")

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are stored beside the targets."""
        return {f"{self.PREFIX}{name}": getattr(self, name) for name in self.NAMES}

    def apply(self, representations: Tensor) -> Tensor:
        """Map representations float32 [n,D] to targets float32 [n,K]."""
        return ((representations.double() - self.mean.double()) @ self.basis.double()).float()

    def restore(self, targets: Tensor) -> Tensor:
        """Map targets, or predictions of them, float32 [n,K], back to representations float32 [n,D].

        What the components that were left out held is replaced by its mean.
        """
        return (targets.double() @ self.inverse.double() + self.mean.double()).float()


def fit_space(representations: Tensor, settings: Mapping[str, Any]) -> TargetSpace:
    """Fit a space.

    Args:
        representations: float32 [n,D], of the training images.
        settings: ``center``, ``components`` and ``scale``, as in the config.

    Raises:
        UserError: more components are asked for than there are.
    """
    values = representations.double()
    dimension, count = values.shape[1], settings["components"] or values.shape[1]
    if count > dimension:
        raise UserError(f"config: targets.space.components is {count}, but the targets have {dimension} dimensions.")
    mean = values.mean(0) if settings["center"] else torch.zeros(dimension, dtype=torch.float64)
    values = values - mean
    moments, directions = torch.linalg.eigh(values.T @ values / len(values))
    moments, directions = moments.flip(0).clamp_min(0), directions.flip(1)
    signs = directions.gather(
        0, directions.abs().argmax(0, keepdim=True)
    ).sign()  # eigenvectors have no sign of their own
    directions = (directions * signs)[:, :count]
    scale = _scale(moments[:count], settings["scale"])
    return TargetSpace(
        mean.float(),
        (directions * scale).float(),
        (directions / scale).T.float().contiguous(),
        (moments[:count] / moments.sum().clamp_min(1e-30)).float(),
    )


def _scale(moments: Tensor, scale: float | str) -> Tensor:
    """Return the factor of each component, float64 [K]."""
    if scale == "none" or not moments.any():
        return torch.ones_like(moments)
    if scale == "isotropic":
        return moments.mean().rsqrt().expand_as(moments)
    return moments.clamp_min(NEGLIGIBLE * float(moments.max())) ** (-float(scale) / 2)


def stored_space(tensors: Mapping[str, Tensor]) -> TargetSpace:
    """Return the space from tensors that ``TargetSpace.tensors`` returned."""
    return TargetSpace(*(tensors[f"{TargetSpace.PREFIX}{name}"] for name in TargetSpace.NAMES))
