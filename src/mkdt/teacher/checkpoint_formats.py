"""Recognise the format of a published checkpoint and convert its weights to those of a backbone of `mkdt.networks`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from mkdt.artifacts import HEADER_KEY, Artifact
from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.teacher.external_file import load_untrusted

Weights = dict[str, Tensor]

# Input that the published weights of torchvision were trained with.
IMAGENET_INPUT = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear"}
# ResNets for small images get the size of the source, and the statistics of `STATISTICS` or else of the source, unless the
# config overrides them.
SOURCE_INPUT = {"size": None, "mean": None, "std": None, "interpolation": "bilinear"}
# ResNet by number of blocks in each stage, and whether the blocks are bottlenecks.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
# Padding of a 3x3 first convolution in the published code of each format; checkpoints do not store it.
PADDING = {"krr_st": 2, "solo_learn": 2, "mix_bt": 1}
_CIFAR10, _IMAGENET = [0.4914, 0.4822, 0.4465], (IMAGENET_INPUT["mean"], IMAGENET_INPUT["std"])
_MIX_BT_CIFAR = _CIFAR10, [0.2023, 0.1994, 0.2010]
_MIX_BT_STL10 = [0.43, 0.42, 0.39], [0.27, 0.26, 0.27]
_SOLO_STL10 = [0.4914, 0.4823, 0.4466], [0.247, 0.243, 0.261]
# Mean and deviation that the published code of each format normalises with, by the kind of the data set; checkpoints do
# not store them. Read in
#   KRR-ST      github.com/db-Lee/selfsup_dd, data/augmentation.py: MEAN and STD, CIFAR at 32 and TinyImageNet at 64 pixels
#   solo-learn  github.com/vturrisi/solo-learn, solo/data/pretrain_dataloader.py: MEANS_N_STD; ImageNet's for other sets
#   mix-bt      github.com/wgcban/mix-bt, utils.py: CifarPairTransform for both CIFAR sets, TinyImageNet..., Stl...
STATISTICS: dict[str, dict[str, tuple[Any, Any]]] = {
    "krr_st": {
        "cifar10": (_CIFAR10, [0.2470, 0.2435, 0.2616]),
        "cifar100": ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
        "tiny_imagenet": ([0.4802, 0.4481, 0.3975], [0.2770, 0.2691, 0.2821]),
    },
    "solo_learn": {
        "cifar10": (_CIFAR10, [0.2470, 0.2435, 0.2616]),
        "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
        "stl10": _SOLO_STL10,
        "stl10_unlabeled": _SOLO_STL10,
        "tiny_imagenet": _IMAGENET,
    },
    "mix_bt": {
        "cifar10": _MIX_BT_CIFAR,
        "cifar100": _MIX_BT_CIFAR,
        "stl10": _MIX_BT_STL10,
        "stl10_unlabeled": _MIX_BT_STL10,
        "tiny_imagenet": ([0.480, 0.448, 0.398], [0.277, 0.269, 0.282]),
    },
}
# Buffers that the profiler thop added to the modules saved by mix-bt.
PROFILER_BUFFERS = ("total_ops", "total_params")
LISTED = 3  # keys of each kind that a message names


@dataclass
class TeacherCheckpoint:
    """A teacher trained elsewhere.

    Attributes:
        format: ``mkdt``, ``krr_st``, ``solo_learn``, ``mix_bt``, ``torchvision`` or ``timm``.
        backbone: config entry of the network, for ``backbones.build_backbone``.
        view: input of the network: ``channels``, ``size`` (None: that of the source), ``mean``, ``std`` (None: those of
            the source), ``interpolation``.
        weights: ``state_dict`` of the network.
        statistics: whose ``mean`` and ``std`` these are, in words.
        identity: SHA-256 of the file, or of the tensors if timm downloaded them.
        left_out: names of the tensors that were left out: heads used in training.
    """

    format: str
    backbone: dict[str, Any]
    view: dict[str, Any]
    weights: Weights
    statistics: str = "the source's"
    identity: str = ""
    left_out: list[str] = field(default_factory=list)
    dimension: int = 0


def read_checkpoint(path: Path, kind: str = "") -> TeacherCheckpoint:
    """Read a checkpoint of this project, KRR-ST, solo-learn, mix-bt or torchvision; its keys show the format.

    Args:
        path: the file.
        kind: of the source, for ``STATISTICS``; empty if it is not known.

    Raises:
        UserError: the file cannot be read safely or its format is unknown.
    """
    content, metadata = load_untrusted(path)
    if HEADER_KEY in metadata:
        return _read_own(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # PyTorch Lightning
    if not _is_state_dict(content):
        raise UserError(f"{path} is not a state dict (names and tensors), nor a Lightning file with one.")
    saved = {str(key): value for key, value in content.items()}
    saved = {key: value for key, value in saved.items() if key.rsplit(".", 1)[-1] not in PROFILER_BUFFERS}
    if not saved:
        raise UserError(f"{path} has no tensors: its state dict is empty.")
    name, weights, left_out, max_pool = _split_heads(saved)
    _expect_stem(path, weights)
    first = weights.get("conv1.weight")
    if first is None or first.shape[-2:] not in {(3, 3), (7, 7)}:
        raise UserError(
            f"{path} is of no known format (it has {listed(saved)}): docs/teachers.md lists them; otherwise give "
            "targets.file instead."
        )
    left_out += [key for key in weights if key.startswith("fc.")]
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    kernel = first.shape[-1]
    if kernel == 7 and name == "krr_st":
        name = "torchvision"
    backbone = {
        "architecture": "torchvision_resnet",
        "name": _resnet_name(path, weights),
        "kernel": kernel,
        "padding": 3 if kernel == 7 else PADDING[name],
        "max_pool": kernel == 7 or max_pool,
    }
    view = {"channels": first.shape[1]} | (IMAGENET_INPUT if kernel == 7 else SOURCE_INPUT)
    statistics = "ImageNet's" if kernel == 7 else "the source's"
    published = STATISTICS[name].get(kind) if kernel == 3 and first.shape[1] == 3 else None
    if published:
        view["mean"], view["std"] = published
        statistics = f"those of {name} for {kind}"
    return TeacherCheckpoint(name, backbone, view, weights, statistics, left_out=sorted(left_out))


def _expect_stem(path: Path, weights: Weights) -> None:
    """Raise if these are tensors of a ResNet, but without one of those that show its format."""
    stages = {match[1] for key in weights if (match := re.match(r"layer([1-4])\.\d+\.", key))}
    missing = {"conv1.weight", "layer1.0.conv1.weight"} - set(weights)
    if len(stages) > 1 and missing:
        raise UserError(f"{path} has the tensors of a ResNet, but lacks {listed(missing)}: fetch it again.")


def _split_heads(saved: Weights) -> tuple[str, Weights, list[str], bool]:
    """Separate the ResNet from the heads and rename its tensors as torchvision does.

    Returns:
        the format, the weights of the ResNet, the names of the other tensors, and whether a ResNet with a 3x3 first
        convolution has a max-pool. The format is ``krr_st`` if the names are already those of torchvision.
    """
    if any(re.match(r"f\.[0-8]\.", key) for key in saved):
        # A Sequential of the children of torchvision's ResNet. A max-pool (TinyImageNet, STL-10) has no weights and
        # shifts the stages by one.
        weights, heads = _with_prefix("f.", saved)
        max_pool = not any(key.startswith("3.") for key in weights)
        stages = {str(index + 3 + max_pool): f"layer{index + 1}" for index in range(4)}
        return "mix_bt", _rename_modules(weights, {"0": "conv1", "1": "bn1", **stages}), heads, max_pool
    for prefix in ("backbone.", "encoder."):
        if any(key.startswith(prefix) for key in saved):
            return "solo_learn", *_with_prefix(prefix, saved), False
    return "krr_st", saved, [], False


def _with_prefix(prefix: str, weights: Weights) -> tuple[Weights, list[str]]:
    """Return the entries with a prefix, which is removed, and the names of the other entries."""
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return inside, [key for key in weights if not key.startswith(prefix)]


def _rename_modules(weights: Weights, names: Mapping[str, str]) -> Weights:
    """Rename the first part of each key; parts without a new name stay and are later reported as left over."""
    parts = {key: key.split(".", 1) for key in weights}
    return {".".join([names.get(first, first), *rest]): weights[key] for key, (first, *rest) in parts.items()}


def _resnet_name(path: Path, weights: Iterable[str]) -> str:
    """Name of the ResNet with these keys.

    Raises:
        UserError: the numbers of blocks are those of no known ResNet.
    """
    weights = set(weights)
    blocks = tuple(
        len({match[1] for key in weights if (match := re.match(rf"layer{stage}\.(\d+)\.", key))})
        for stage in range(1, 5)
    )
    bottleneck = any(re.match(r"layer\d\.\d+\.conv3\.", key) for key in weights)
    if (blocks, bottleneck) not in RESNETS:
        known = ", ".join(f"{name} {list(counts)}" for (counts, _), name in RESNETS.items())
        raise UserError(
            f"{path} has {list(blocks)} residual blocks, which is none of {known}: blocks are missing or left over."
        )
    return RESNETS[blocks, bottleneck]


def _read_own(path: Path) -> TeacherCheckpoint:
    """Read a ``teacher.safetensors`` of this project."""
    file = Artifact(path, "teacher")
    weights = {name: file.tensor(name) for name in file.names}
    parameters = file.header["parameters"]
    first = [weights[name] for name in ("conv1.weight", *weights) if name in weights and weights[name].ndim == 4]
    if not first or not isinstance(parameters, dict) or not isinstance(parameters.get("backbone"), dict):
        raise UserError(
            f"{path} does not say which network it is: fetch it again, or make it again with the rule 'teacher'."
        )
    view = {"channels": first[0].shape[1]} | SOURCE_INPUT | dict(parameters.get("view", {}))
    statistics = "those in its header" if view["mean"] else "the source's"
    return TeacherCheckpoint("mkdt", parameters["backbone"], view, weights, statistics)


def timm_checkpoint(name: str, path: str | Path | None, any_size: bool, download: bool) -> TeacherCheckpoint:
    """Take a model of timm with the weights of a file; if ``path`` is None, with those of timm, or random ones.

    Args:
        name: a model of ``timm.list_models()``.
        path: file of the weights; None takes those of timm.
        any_size: whether a vision transformer is to take images of any size.
        download: whether timm may download its weights; otherwise random ones stand for them.

    Raises:
        UserError: timm is not installed, has no such model or no weights for it, or the file is not a state dict.
    """
    backbone = {"architecture": "timm", "name": name, "any_size": any_size}
    model = build_backbone(backbone, 3, 0)
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    view = {
        "channels": 3,
        "size": config["input_size"][-1],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": "bicubic" if config["interpolation"] == "bicubic" else "bilinear",
    }
    if path is None:
        weights = _download(name) if download else _random(name, model)
        return TeacherCheckpoint("timm", backbone, view, weights, "timm's")
    content, _ = load_untrusted(path)
    if not _is_state_dict(content):
        raise UserError(f"{path} is not a state dict (names and tensors).")
    classifiers = cast(Any, model).pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    weights = {key: value for key, value in content.items() if not key.startswith(heads)}
    left_out = sorted(set(content) - set(weights))
    return TeacherCheckpoint("timm", backbone, view, weights, "timm's", left_out=left_out)


def _download(name: str) -> Weights:
    import timm

    try:
        return cast(Weights, timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"timm could not provide weights for '{name}' ({reason}): give teacher.checkpoint.file."
        ) from error


def _random(name: str, model: nn.Module) -> Weights:
    """Return the random weights of a model, of which timm must have trained ones to download."""
    import timm

    # Names with a colon are those of repositories (`hf-hub:...`).
    if ":" not in name and not timm.is_model_pretrained(name):
        raise UserError(f"timm has no weights for '{name}': give teacher.checkpoint.file.")
    return dict(model.state_dict())


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def listed(names: Iterable[str]) -> str:
    """Return the first few names, and the number of the others, for a message."""
    names = sorted(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
