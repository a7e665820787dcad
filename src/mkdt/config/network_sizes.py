"""What networks cost in memory: parameters and activations, counted without building them where their form is known."""

import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from math import ceil
from typing import Any, cast

from mkdt.config.architectures import network
from mkdt.config.extensions import is_extension
from mkdt.config.sections import Backbone, Config, Network
from mkdt.config.sizes import image_shape
from mkdt.config.teacher_origin import teacher_origin
from mkdt.errors import UserError


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        parameters: number of trainable ones.
        features: length of its output.
        activations: floats that the graph of a forward pass keeps for one image.
        largest: floats of the largest feature map of one image.
    """

    parameters: int
    features: int
    activations: int
    largest: int


# Networks of one form, counted by torch on one image of 3x32x32; all but the parameters grow with the area. The second
# number is how often the network halves an image before its output is flattened; None where it is averaged.
_FIXED = {
    "vgg11": (Size(9_225_984, 512, 399_704, 65_536), 5),
    "alexnet": (Size(1_843_392, 3072, 586_872, 131_072), 3),
    "mobilenet": (Size(2_223_872, 1280, 4_767_870, 147_456), None),
}
_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}
# A network that the user brings is not known before it is read: ResNet-50 at the size it sees stands for any.
_BROUGHT = Size(25_600_000, 2048, 33_000_000, 802_816)
_BROUGHT_PIXELS = 224


def backbone_size(spec: Backbone, channels: int, size: int) -> Size:
    """Return the size of ``networks.backbones.build_backbone(spec, channels, size)``."""
    if spec["architecture"] == "convnet":
        return _convnet_size(cast(Network, spec), channels, size)
    if spec["architecture"] in _FIXED:
        fixed, halvings = _FIXED[spec["architecture"]]
        scale = (size / 32) ** 2
        left = 1.0 if halvings is None else (size >> halvings) ** 2 / (32 >> halvings) ** 2
        activations, largest = ceil(fixed.activations * scale), ceil(fixed.largest * scale)
        return Size(fixed.parameters, int(fixed.features * left), activations, largest)
    if is_extension(spec["architecture"]):
        return _built_size(json.dumps(network(spec)), channels, size)
    # An entry that overrides another architecture's may have kept keys of that one.
    resnet = spec["architecture"] == "resnet"
    blocks, width = (spec["blocks"], spec["width"]) if resnet else (_BLOCKS[spec["architecture"]], 64)
    return _resnet_size(blocks, width, channels, size)


def _convnet_size(spec: Network, channels: int, size: int) -> Size:
    parameters, kept, largest, inputs, width = 0, 0, 0, channels, spec["width"]
    for _ in range(spec["depth"]):
        area = size * size
        parameters += width * (9 * inputs + 1) + (2 * width if spec["norm"] != "none" else 0)
        # Backward needs the outputs of convolution, norm and ReLU, and the pooled map.
        kept += (3 * area + (size // 2) ** 2) * width
        largest, inputs, size = max(largest, width * area), width, size // 2
    return Size(parameters, width * size * size, kept, largest)


def _resnet_size(blocks: list[int], width: int, channels: int, size: int) -> Size:
    area = size * size
    parameters = 9 * channels * width + 2 * width
    kept, largest, inputs = 3 * width * area, width * area, width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            size = -(-size // stride)
            area = size * size
            parameters += 9 * outputs * (inputs + outputs) + 4 * outputs
            if stride != 1 or inputs != outputs:
                parameters += inputs * outputs + 2 * outputs
            kept += 7 * outputs * area  # two convolutions, two norms, two ReLUs, the sum
            largest, inputs = max(largest, outputs * area), outputs
    return Size(parameters, inputs, kept, largest)


@cache
def _built_size(spec: str, channels: int, size: int) -> Size:
    """Return the size of an extension's network: build it and show it one image, since nothing is known of it.

    Raises:
        UserError: it cannot be built, or does not take the image.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    entry: dict[str, Any] = json.loads(spec)
    name, kept = entry.pop("architecture"), [0]

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.extend(part.numel() for part in tree_leaves(output) if isinstance(part, torch.Tensor))

    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            built = import_module(f"mkdt.extensions.{name}").build(channels, size, **entry).eval()
            for module in built.modules():
                if not list(module.children()):
                    module.register_forward_hook(keep)
            features = built(torch.zeros(1, channels, size, size))
        shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if shape != [1, built.dimension]:
            raise ValueError(f"of one image it makes {shape}, expected [1, {built.dimension}], its `dimension`")
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the student of architecture '{name}' cannot be used for images of {channels}x{size}x{size}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return Size(sum(weight.numel() for weight in built.parameters()), built.dimension, sum(kept), max(kept))


def forget_built() -> None:
    """Drop the sizes of networks that were built: their files may have changed."""
    _built_size.cache_clear()


def student_size(config: Config, student: str) -> Size:
    """Return the size of a student on the source's images: its backbone, and the linear head to the targets."""
    body = backbone_size(config["students"][student], *image_shape(config, config["source"]))
    return _with_head(body, (body.features + 1) * targets_dimension(config))


def ssl_student_size(config: Config) -> Size:
    """Return the size of a student on the source's images with the projector of ``mtt_ssl`` in the place of its head."""
    body = backbone_size(config["students"][config["student"]], *image_shape(config, config["source"]))
    widths = [body.features, *config["mtt_ssl"]["projector"]]
    return _with_head(body, mlp_parameters(widths) + 2 * sum(widths[1:-1]))


def _with_head(body: Size, head: int) -> Size:
    return Size(body.parameters + head, body.features, body.activations, body.largest)


def mlp_parameters(widths: list[int]) -> int:
    """Return the number of weights of linear layers between these widths, biases left out."""
    return sum(inputs * outputs for inputs, outputs in pairwise(widths))


def teacher_size(config: Config) -> Size:
    """Return the size of the teacher's backbone; one that the user brings is taken for a ResNet-50."""
    if teacher_origin(config) == "trained":
        return backbone_size(config["teacher"]["backbone"], *image_shape(config, config["source"]))
    area = ((config["teacher"]["checkpoint"]["image_size"] or _BROUGHT_PIXELS) / _BROUGHT_PIXELS) ** 2
    activations, largest = ceil(_BROUGHT.activations * area), ceil(_BROUGHT.largest * area)
    return Size(_BROUGHT.parameters, _BROUGHT.features, activations, largest)


def targets_dimension(config: Config) -> int:
    """Return the length of a target: of the teacher's representation, or the number of components that are kept."""
    return config["targets"]["space"]["components"] or teacher_size(config).features
