"""Teachers from elsewhere: published checkpoints, recognised by their keys, as a backbone with its own view of an image."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mkdt.artifacts import HEADER_KEY, Artifact, digest, tensor_digest
from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.teacher import external_file as foreign

# What torchvision's published weights were trained with.
IMAGENET = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"}
# Small-image ResNets see the source's own size and statistics, unless the config says otherwise.
AS_THE_SOURCE = {"size": None, "mean": None, "std": None, "interpolation": "bilinear"}
# Blocks a stage, and whether they are bottlenecks.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
# Padding of a 3x3 first convolution, which no file stores: their published code.
PADDING = {"krr_st": 2, "solo_learn": 2, "mix_bt": 1}
# Buffers that the profiler thop left in the modules that mix-bt saved.
PROFILER = ("total_ops", "total_params")
SHOWN = 3  # keys of each kind that a message names


@dataclass
class Checkpoint:
    """A teacher from elsewhere.

    Attributes:
        format: how it was recognised.
        backbone: config entry of the network, for ``models.build_backbone``.
        view: how the network sees an image: ``channels``, ``size`` (None: as the source's), ``mean``, ``std``
            (None: the source's), ``interpolation``.
        weights: the network's ``state_dict``.
        identity: SHA-256 of the file, or of the tensors where there was none.
        left_out: names of what the file holds besides: heads of the training.
    """

    format: str
    backbone: dict[str, Any]
    view: dict[str, Any]
    weights: dict[str, Tensor]
    identity: str = ""
    left_out: list[str] = field(default_factory=list)


def load_checkpoint(path: str | Path | None, options: Mapping[str, Any], channels: int, size: int) -> Checkpoint:
    """Read a checkpoint and make sure that it is a teacher for images of this shape.

    Args:
        path: the file; None downloads the weights that timm has for ``options["model"]``.
        options: ``teacher.checkpoint`` of the config: ``model`` (None: recognised by its keys), ``sha256``,
            ``image_size``, ``mean``, ``std`` and ``padding``; None stands for what the format has.
        channels, size: of the source's images.

    Raises:
        UserError: the file has another digest, cannot be read safely, is of no known format, lacks a tensor, has one
            too many or one of another shape, holds values that are not finite, or does not take such images.
    """
    identity = ""
    if path is not None:
        identity = foreign.sha256(path)
        if options["sha256"] not in (None, identity):
            raise UserError(
                f"{path} has the SHA-256 {identity}, but teacher.checkpoint.sha256 is {options['sha256']}: it is "
                "another file than you expect."
            )
    name = (options["model"] or "").removeprefix("timm:")
    found = _timm(name, path, options["image_size"] is not None) if name else _recognise(Path(str(path)))
    found.identity = identity or digest({key: tensor_digest(value) for key, value in found.weights.items()})
    if options["padding"] is not None:
        if found.backbone.get("kernel") != 3:
            raise UserError(
                f"teacher.checkpoint.padding is for the 3x3 first convolution of a ResNet from a file; {path or name} "
                "has none: set it to null."
            )
        found.backbone["padding"] = options["padding"]
    for key, option in (("size", "image_size"), ("mean", "mean"), ("std", "std")):
        if options[option] is not None:
            found.view[key] = options[option]
    _check(found, f"{path or options['model']}", channels, size)
    return found


def _recognise(path: Path) -> Checkpoint:
    content, metadata = foreign.read(path)
    if HEADER_KEY in metadata:
        return _own(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # PyTorch Lightning
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state dict (names and tensors), nor a Lightning file with one.")
    weights = {str(key): value for key, value in content.items() if str(key).rsplit(".", 1)[-1] not in PROFILER}
    heads: list[str] = []
    max_pool = False
    if any(key.startswith("f.0.") for key in weights):
        origin = "mix_bt"
        inside, heads = _under("f.", weights)
        # A Sequential of torchvision's children; with max-pool (TinyImageNet, STL-10) the stages start one later.
        max_pool = not any(key.startswith("3.") for key in inside)
        stages = {str(index + 3 + max_pool): f"layer{index + 1}" for index in range(4)}
        weights = _renamed(inside, {"0": "conv1", "1": "bn1", **stages})
    elif any(key.startswith(("backbone.", "encoder.")) for key in weights):
        origin = "solo_learn"
        prefix = "backbone." if any(key.startswith("backbone.") for key in weights) else "encoder."
        weights, heads = _under(prefix, weights)
    else:
        origin = "krr_st"
    first = weights.get("conv1.weight")
    if first is None or first.shape[-2:] not in {(3, 3), (7, 7)} or "layer1.0.conv1.weight" not in weights:
        raise UserError(
            f"{path} is of no known format (it has {_some(weights)}): docs/teachers.md lists them; otherwise give "
            "targets.file instead."
        )
    heads += [key for key in weights if key.startswith("fc.")]
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    kernel = first.shape[-1]
    if kernel == 7 and origin == "krr_st":
        origin = "torchvision"
    padding = 3 if kernel == 7 else PADDING[origin]
    backbone = {
        "architecture": "torchvision_resnet",
        "name": _resnet(path, weights),
        "kernel": kernel,
        "padding": padding,
        "max_pool": kernel == 7 or max_pool,
    }
    view = {"channels": first.shape[1]} | (IMAGENET if kernel == 7 else AS_THE_SOURCE)
    return Checkpoint(origin, backbone, view, weights, left_out=sorted(heads))


def _own(path: Path) -> Checkpoint:
    """A teacher.safetensors of this project."""
    file = Artifact(path, "teacher")
    weights = {name: file.tensor(name) for name in file.names}
    parameters = file.header["parameters"]
    first = [weights[name] for name in ("conv1.weight", *weights) if name in weights and weights[name].ndim == 4]
    if not first or not isinstance(parameters, dict) or not isinstance(parameters.get("backbone"), dict):
        raise UserError(
            f"{path} does not say which network it is: fetch it again, or make it again with the rule 'teacher'."
        )
    view = {"channels": first[0].shape[1]} | AS_THE_SOURCE | dict(parameters.get("view", {}))
    return Checkpoint("mkdt", parameters["backbone"], view, weights)


def _timm(name: str, path: str | Path | None, any_size: bool) -> Checkpoint:
    """A model of timm with the weights of a file, or with those that timm downloads."""
    spec = {"architecture": "timm", "name": name, "any_size": any_size}
    model = build_backbone(spec, 3, 0)
    import timm
    from timm.data import resolve_model_data_config

    seen = resolve_model_data_config(model)
    view = {
        "channels": 3,
        "size": seen["input_size"][-1],
        "mean": list(seen["mean"]),
        "std": list(seen["std"]),
        "interpolation": "bicubic" if seen["interpolation"] == "bicubic" else "bilinear",
    }
    if path is None:
        try:
            weights = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"timm could not provide weights for '{name}' ({reason}): give teacher.checkpoint.file."
            ) from error
        return Checkpoint("timm", spec, view, weights)
    content, _ = foreign.read(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a state dict (names and tensors).")
    classifiers = cast(Any, model).pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    weights = {key: value for key, value in content.items() if not key.startswith(heads)}
    return Checkpoint("timm", spec, view, weights, left_out=sorted(set(content) - set(weights)))


def _under(prefix: str, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries under a prefix, without it, and the names of the others."""
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return inside, [key for key in weights if not key.startswith(prefix)]


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The first part of each key by its new name; what has none keeps the old one and is found left over."""
    parts = {key: key.split(".", 1) for key in weights}
    return {".".join([names.get(first, first), *rest]): weights[key] for key, (first, *rest) in parts.items()}


def _resnet(path: Path, weights: Iterable[str]) -> str:
    """Which ResNet has these keys; an incomplete one has the block counts of none."""
    weights = set(weights)
    blocks = tuple(
        len({found[1] for key in weights if (found := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in range(1, 5)
    )
    bottleneck = any(re.match(r"layer1\.0\.conv3\.", key) for key in weights)
    if (blocks, bottleneck) not in RESNETS:
        known = ", ".join(f"{name} {list(counts)}" for (counts, _), name in RESNETS.items())
        raise UserError(
            f"{path} has {list(blocks)} residual blocks, which is none of {known}: blocks are missing or left over."
        )
    return RESNETS[blocks, bottleneck]


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def fill(backbone: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy ``weights`` into ``backbone``, every tensor and no other.

    Raises:
        UserError: names what is missing, left over, of another shape or not finite in ``source``.
    """
    wanted = backbone.state_dict()
    faults = []
    if missing := set(wanted) - set(weights):
        faults.append(f"lacks {_some(missing)}")
    if extra := set(weights) - set(wanted):
        faults.append(f"has {_some(extra)} left over")
    shapes = [key for key in wanted if key in weights and weights[key].shape != wanted[key].shape]
    if shapes:
        key = shapes[0]
        more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
        faults.append(f"has {key} of shape {list(weights[key].shape)} instead of {list(wanted[key].shape)}{more}")
    spoilt = [key for key, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if spoilt:
        faults.append(f"has values that are not finite in {_some(spoilt)}")
    if faults:
        raise UserError(f"{source} does not fit the network it was recognised as: it {'; it '.join(faults)}.")
    backbone.load_state_dict(dict(weights))


def _check(found: Checkpoint, source: str, channels: int, size: int) -> None:
    """Build the network, fill it, and let it see two images."""
    view = found.view
    if channels not in (1, view["channels"]):
        raise UserError(f"{source} takes images of {view['channels']} channels, the source's have {channels}.")
    for key in ("mean", "std"):
        if view[key] is not None and len(view[key]) != view["channels"]:
            raise UserError(
                f"teacher.checkpoint.{key} has {len(view[key])} values, {source} takes {view['channels']} channels."
            )
    try:
        backbone = build_backbone(found.backbone, view["channels"], view["size"] or size)
    # A record that a file brings along may ask for anything.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} asks for a network that cannot be built ({error!r}): fetch it again.") from error
    fill(backbone, found.weights, source)
    seen = view["size"] or size
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(2, view["channels"], seen, seen))
    # A transformer asserts, a convolution raises: both mean that the size does not suit.
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{source} does not take images of {seen}x{seen} ({reason}): set teacher.checkpoint.image_size."
        ) from error
    if features.ndim != 2 or not bool(features.isfinite().all()):
        raise UserError(
            f"{source} gives features of shape {list(features.shape)}, or not finite ones; expected finite [n, D]."
        )
    # Floats of one precision, so that a checkpoint in halves is a teacher like any other.
    found.weights = {key: value.float() if value.is_floating_point() else value for key, value in found.weights.items()}


def describe(found: Checkpoint) -> str:
    """One line for the log: what was recognised, and what is not in the file but was assumed."""
    view = json.dumps(found.view)
    left_out = f"; left out: {_some(found.left_out)}" if found.left_out else ""
    return f"recognised as {found.format}: {json.dumps(found.backbone)}, seeing images as {view}{left_out}"
