"""Encode images with a trained teacher."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mkdt.artifacts import Artifact
from mkdt.data.pixels import in_batches, normalise
from mkdt.networks.backbones import build_backbone

ENCODE_BATCH = 1024


class OwnView(nn.Module):
    """A backbone that sees the source's images enlarged, or grey ones as colour.

    Interpolation and normalisation are linear, so it does not matter that the images come normalised.
    """

    PIXELS = 2**22  # in one piece, so that large views of many images need no more memory than small ones

    def __init__(self, backbone: nn.Module, channels: int, size: int, interpolation: str) -> None:
        super().__init__()
        self.backbone, self.channels, self.size, self.interpolation = backbone, channels, size, interpolation

    def forward(self, images: Tensor) -> Tensor:
        """Features [n,D] of images [n,C,H,W] with C = 1 or the backbone's."""
        return torch.cat([self._features(part) for part in images.split(max(1, self.PIXELS // self.size**2))])

    def _features(self, images: Tensor) -> Tensor:
        images = images.expand(-1, self.channels, -1, -1)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        return cast(Tensor, self.backbone(images))


def load_teacher(
    file: Artifact, channels: int, size: int, mean: Tensor, std: Tensor
) -> tuple[nn.Module, Tensor, Tensor]:
    """The backbone of a ``teacher.safetensors``, trained here or brought, and the statistics to normalise with.

    Args:
        file: the artifact of the rule teacher; its header says which network it is and, for one that was brought, how
            it sees an image.
        channels, size: of the source's images.
        mean, std: float32 [C] of the source; a teacher that was brought may have its own.
    """
    parameters = file.header["parameters"]
    view = parameters.get("view", {})
    seen = view.get("size") or size, view.get("channels") or channels
    backbone = build_backbone(parameters["backbone"], seen[1], seen[0])
    backbone.load_state_dict({name: file.tensor(name) for name in file.names})
    if seen != (size, channels):
        backbone = OwnView(backbone, seen[1], seen[0], view["interpolation"])
    own = [torch.tensor(view[key]) if view.get(key) else given for key, given in (("mean", mean), ("std", std))]
    return backbone, own[0], own[1]


def represent(backbone: nn.Module, images: Tensor, mean: Tensor, std: Tensor, device: torch.device) -> Tensor:
    """The targets: a backbone's output for every image, in eval mode, batched; float32 [n,D] on the CPU.

    Args:
        backbone: any module [n,C,H,W] to [n,D]; set to eval mode, so that batch norm uses running statistics.
        images: uint8 [n,C,H,W].
        mean, std: float32 [C].
    """
    backbone.to(device).eval()
    mean, std = mean.to(device), std.to(device)
    return in_batches(
        lambda pixels: backbone(normalise(pixels.to(device), mean, std)).float(), images.split(ENCODE_BATCH)
    )
