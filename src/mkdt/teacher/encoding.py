"""Encode images with a trained or imported teacher."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkdt.artifacts import Artifact
from mkdt.data.pixels import in_batches, normalise
from mkdt.networks.backbones import build_backbone
from mkdt.networks.batching import images_at_once
from mkdt.networks.precision import forward


class InputAdapter(nn.Module):
    """A backbone with its input resized to the size it was trained on, and with grey images repeated to its channels.

    The images may be normalised before resizing, because interpolation and normalisation are both linear.
    """

    PIXELS = 2**22  # pixels resized at a time: large inputs need no more memory than small ones

    def __init__(self, backbone: nn.Module, channels: int, size: int, interpolation: str) -> None:
        super().__init__()
        self.backbone, self.channels, self.size, self.interpolation = backbone, channels, size, interpolation

    def forward(self, images: Tensor) -> Tensor:
        """Compute features [n,D] of images [n,C,H,W] with C = 1 or the channels of the backbone."""
        return torch.cat([self._features(chunk) for chunk in images.split(max(1, self.PIXELS // self.size**2))])

    def _features(self, images: Tensor) -> Tensor:
        images = images.expand(-1, self.channels, -1, -1)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        return cast(Tensor, self.backbone(images))


def load_teacher(
    file: Artifact, channels: int, size: int, mean: Tensor, std: Tensor
) -> tuple[nn.Module, Tensor, Tensor]:
    """Load the backbone of a ``teacher.safetensors`` and the statistics to normalise its input with.

    Args:
        file: artifact of the rule teacher or teacher_import. Its header has the config entry of the network and the ``view``
            of its input: mean and std; of an imported teacher also channels, size and interpolation.
        channels, size: shape of the source's images.
        mean, std: statistics float32 [C] of the source, used if the teacher has none of its own.

    Returns:
        the backbone (with an ``InputAdapter`` if its input has another shape), mean and std float32.
    """
    parameters = file.header["parameters"]
    view = parameters.get("view", {})
    own_size, own_channels = view.get("size") or size, view.get("channels") or channels
    backbone = build_backbone(parameters["backbone"], own_channels, own_size)
    backbone.load_state_dict({name: file.tensor(name) for name in file.names})
    if (own_size, own_channels) != (size, channels):
        backbone = InputAdapter(backbone, own_channels, own_size, view["interpolation"])
    own_mean = torch.tensor(view["mean"]) if view.get("mean") else mean
    own_std = torch.tensor(view["std"]) if view.get("std") else std
    return backbone, own_mean, own_std


def represent(backbone: nn.Module, images: Tensor, mean: Tensor, std: Tensor, device: torch.device) -> Tensor:
    """Encode images with a backbone, in batches.

    Args:
        backbone: any module [n,C,H,W] to [n,D]; set to eval mode, so that batch norm uses running statistics.
        images: uint8 [n,C,H,W].
        mean, std: float32 [C], for normalisation.
        device: device for the backbone.

    Returns:
        float32 [n,D] on the CPU: the targets, if ``images`` are the training images.
    """
    backbone.to(device).eval()
    mean, std = mean.to(device), std.to(device)
    return in_batches(
        lambda pixels: forward(backbone, normalise(pixels.to(device), mean, std)).float(),
        images.split(images_at_once(images.shape, device)),
    )
