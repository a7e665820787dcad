"""How many images a network encodes at once, without gradients: what the CPU's cache or the GPU's memory holds."""

from collections.abc import Sequence
from math import prod

import torch

# 16 images of 32x32: the maps of a ResNet-18 stay in the cache. With 1,024 it took 1.4 times the CPU time, and 1.3 GB.
CPU_PIXELS = 2**14
GPU_PIXELS, GPU_IMAGES = 2**20, 1024  # more of them keep no GPU busier
GPU_BYTES = 2**13  # of a GPU's memory for each pixel: a ResNet-18 needs an eighth of that


def images_at_once(shape: Sequence[int], device: torch.device) -> int:
    """Return a number of images, at least 1. It depends on the device alone, so equal runs give equal bits.

    Args:
        shape: [n,C,H,W] of the images; [n,D] of what is no image.
        device: that encodes them.
    """
    area = prod(shape[2:])
    if device.type == "cpu":
        return max(1, CPU_PIXELS // area)
    pixels = min(GPU_PIXELS, torch.cuda.get_device_properties(device).total_memory // GPU_BYTES)
    return max(1, min(GPU_IMAGES, pixels // area))
