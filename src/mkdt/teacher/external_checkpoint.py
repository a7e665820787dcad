"""Import a teacher from a published checkpoint and check that it fits the source's images."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkdt.artifacts import digest, tensor_digest
from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.teacher.checkpoint_formats import TeacherCheckpoint, listed, read_checkpoint, timm_checkpoint
from mkdt.teacher.external_file import sha256

SIZES = (32, 64, 96, 128, 224)  # tried where a network does not take the size that it would see


def load_checkpoint(
    path: str | Path | None,
    options: Mapping[str, Any],
    channels: int,
    size: int,
    kind: str = "",
    *,
    download: bool = True,
) -> TeacherCheckpoint:
    """Load a checkpoint and check that it is a teacher for images [n,channels,size,size].

    Args:
        path: the file; None downloads the weights of timm for ``options["model"]``.
        options: ``teacher.checkpoint`` of the config: ``model`` (None recognises the format by the keys), ``sha256``,
            ``image_size``, ``mean``, ``std`` and ``padding``; None takes the value of the format.
        channels, size: shape of the source's images.
        kind: of the source; decides the statistics of formats whose code has some of each data set.
        download: whether timm may download weights; otherwise random ones stand for them, and the rest is checked.

    Returns:
        the checkpoint, with weights float32 (or integer).

    Raises:
        UserError: the file has another digest, cannot be read safely, has an unknown format, lacks a tensor, has an
            extra tensor or one of another shape, has values that are not finite, or does not take such images.
    """
    with _naming_the_key(path):
        return _load(path, options, channels, size, kind, download)


@contextmanager
def _naming_the_key(path: str | Path | None) -> Iterator[None]:
    """Begin messages about a file with the key that names it, if they name none."""
    try:
        yield
    except UserError as error:
        if path is None or "teacher.checkpoint." in str(error).replace(str(path), ""):
            raise
        raise UserError(f"teacher.checkpoint.file: {error}") from error


def _load(
    path: str | Path | None, options: Mapping[str, Any], channels: int, size: int, kind: str, download: bool
) -> TeacherCheckpoint:
    """Do what ``load_checkpoint`` says."""
    file_digest = _expect_sha256(path, options["sha256"]) if path is not None else ""
    model = (options["model"] or "").removeprefix("timm:")
    if model:
        checkpoint = timm_checkpoint(model, path, options["image_size"] is not None, download)
    else:
        checkpoint = read_checkpoint(Path(str(path)), kind)
    weights = checkpoint.weights
    checkpoint.identity = file_digest or digest({key: tensor_digest(value) for key, value in weights.items()})
    if options["padding"] is not None:
        if checkpoint.backbone.get("kernel") != 3:
            raise UserError(
                "teacher.checkpoint.padding is for the 3x3 first convolution of a ResNet from a file; "
                f"{path or model} has none: set it to null."
            )
        checkpoint.backbone["padding"] = options["padding"]
    own_size = checkpoint.view["size"]
    for key, option in (("size", "image_size"), ("mean", "mean"), ("std", "std")):
        if options[option] is not None:
            checkpoint.view[key] = options[option]
    given = [f"teacher.checkpoint.{key}" for key in ("mean", "std") if options[key] is not None]
    if given:
        rest = f", otherwise {checkpoint.statistics}" if len(given) == 1 else ""
        checkpoint.statistics = f"{' and '.join(given)}{rest}"
    _check(checkpoint, f"{path or options['model']}", channels, size, own_size)
    # A checkpoint in half precision becomes a teacher like any other.
    checkpoint.weights = {k: value.float() if value.is_floating_point() else value for k, value in weights.items()}
    return checkpoint


def _expect_sha256(path: str | Path, expected: str | None) -> str:
    """Return the SHA-256 of a file; raise if it is not the expected one."""
    actual = sha256(path)
    if expected not in (None, actual):
        raise UserError(
            f"{path} has the SHA-256 {actual}, but teacher.checkpoint.sha256 is {expected}: it is another file than "
            "you expect."
        )
    return actual


def _check(checkpoint: TeacherCheckpoint, source: str, channels: int, size: int, own_size: int | None) -> None:
    """Build the network, load its weights, and apply it to two images of the source's shape.

    A message about the size of images names one that works, if possible ``own_size``, that of the checkpoint.
    """
    view = checkpoint.view
    if channels not in (1, view["channels"]):
        raise UserError(f"{source} takes images of {view['channels']} channels, the source's have {channels}.")
    for key in ("mean", "std"):
        if view[key] is not None and len(view[key]) != view["channels"]:
            raise UserError(
                f"teacher.checkpoint.{key} has {len(view[key])} values, {source} takes {view['channels']} channels."
            )
    size = view["size"] or size
    try:
        backbone = build_backbone(checkpoint.backbone, view["channels"], size)
    # The header of a file may name any network and arguments.
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} asks for a network that cannot be built ({error!r}): fetch it again.") from error
    load_weights(backbone, checkpoint.weights, source)
    features = _features(backbone, view["channels"], size)
    if isinstance(features, Exception):
        tried = [own_size, *SIZES] if own_size else SIZES
        working = [other for other in tried if isinstance(_features(backbone, view["channels"], other), Tensor)]
        advice = f"set teacher.checkpoint.image_size to {working[0]}, which works" if working else "fetch it again"
        reason = str(features).strip().split("\n")[0]
        raise UserError(f"{source} does not take images of {size}x{size} ({reason}): {advice}.") from features
    if features.ndim != 2 or not bool(features.isfinite().all()):
        raise UserError(
            f"{source} gives features of shape {list(features.shape)}, or not finite ones; expected finite [n, D]."
        )
    checkpoint.dimension = features.shape[1]


def _features(backbone: nn.Module, channels: int, size: int) -> Tensor | Exception:
    """Return the features of two black images, or the error of a network that does not take images of this size."""
    try:
        with torch.no_grad():
            features: Tensor = backbone.eval()(torch.zeros(2, channels, size, size))
        return features
    # Transformers assert the size of an image; a convolution raises if the image is too small.
    except (RuntimeError, AssertionError, ValueError) as error:
        return error


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` into ``backbone``; all tensors must match.

    Raises:
        UserError: tensors of ``source`` are missing, left over, of another shape or not finite; nothing was loaded.
    """
    expected = backbone.state_dict()
    faults = []
    if missing := set(expected) - set(weights):
        faults.append(f"lacks {listed(missing)}")
    if extra := set(weights) - set(expected):
        faults.append(f"has {listed(extra)} left over")
    misshapen = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    if misshapen:
        key = misshapen[0]
        more = f" (and {len(misshapen) - 1} more)" if len(misshapen) > 1 else ""
        faults.append(f"has {key} of shape {list(weights[key].shape)} instead of {list(expected[key].shape)}{more}")
    infinite = [key for key, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if infinite:
        faults.append(f"has values that are not finite in {listed(infinite)}")
    if faults:
        raise UserError(f"{source} does not fit the network it was recognised as: it {'; it '.join(faults)}.")
    backbone.load_state_dict(dict(weights))


def summary(checkpoint: TeacherCheckpoint) -> str:
    """Return one line for the log: the format, the assumed network and input, whose statistics, the tensors left out."""
    left_out = f"; left out: {listed(checkpoint.left_out)}" if checkpoint.left_out else ""
    network, view = json.dumps(checkpoint.backbone), json.dumps(checkpoint.view)
    input_ = f"seeing images as {view}, mean and std: {checkpoint.statistics}"
    return f"recognised as {checkpoint.format}: {network}, {input_}{left_out}"


def caution(checkpoint: TeacherCheckpoint) -> str:
    """Return a sentence for the log if nothing says which statistics the teacher was trained with; else an empty one."""
    if checkpoint.view["mean"] is not None and checkpoint.view["std"] is not None:
        return ""
    return (
        "nothing says which mean and std this teacher was trained with, so it sees images normalised with the source's: "
        "if they were others, set teacher.checkpoint.mean and teacher.checkpoint.std (docs/teachers.md)."
    )
