"""The synthetic set, in one form for distilled sets, real subsets and sets that somebody else distilled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkdt import artifacts
from mkdt.data.pixels import denormalise
from mkdt.errors import UserError


@dataclass
class SyntheticSet:
    """A small training set for pre-training by regression.

    Attributes:
        images: float32 [m,C,H,W], normalised with ``mean`` and ``std``.
        targets: float32 [m,D], what a student is to predict for them.
        step_size: float32 [], the learned SGD step size; what it started from for a real subset.
        mean, std: float32 [C], the source's pixel statistics in [0, 1].
        init_index: int64 [m], the training row that each image started from.
        provenance: the file's header (stage, parameters, code, inputs, digests).
    """

    images: Tensor
    targets: Tensor
    step_size: Tensor
    mean: Tensor
    std: Tensor
    init_index: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    NAMES = ("images", "targets", "step_size", "mean", "std", "init_index")

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are stored."""
        return {name: getattr(self, name) for name in self.NAMES}

    def pixels(self, images: Tensor | None = None) -> Tensor:
        """The images (or others in the same normalisation) as uint8 [m,C,H,W]; values no pixel can have are clamped."""
        return denormalise(self.images if images is None else images, self.mean, self.std)

    def normalised(self, mean: Tensor, std: Tensor) -> Tensor:
        """The images in the normalisation of ``mean`` and ``std``, float32 [C]: the same pixels for another source's probe.

        Raises:
            UserError: the number of channels differs.
        """
        if mean.shape != self.mean.shape:
            raise UserError(
                f"the set has {len(self.mean)} channels, the source has {len(mean)}: they do not fit together."
            )
        if torch.equal(mean, self.mean) and torch.equal(std, self.std):
            return self.images
        pixels = self.images * self.std[:, None, None] + self.mean[:, None, None]
        return (pixels - mean[:, None, None]) / std[:, None, None]


def moments(settings: Mapping[str, Any]) -> list[int]:
    """Iterations of which a picture is kept: 0, then ``pictures`` evenly spaced ones, the last iteration included."""
    count, iterations = settings["pictures"], settings["iterations"]
    return sorted({0, *(round(iterations * (k + 1) / count) for k in range(count))})


def first_images(images: Tensor, count: int = 16) -> Tensor:
    """A copy of the first images on the CPU: they show the set as it forms, and bound what the history costs."""
    return images[:count].detach().cpu().clone()


class History:
    """The first images of a set at the iterations of ``moments``.

    Args:
        initial: the subset that the set starts from.
        settings: ``iterations`` and ``pictures``.
        state: a resume state, with what ``frames`` returned as ``history``; None at the start.
    """

    def __init__(self, initial: SyntheticSet, settings: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        self._initial, self._moments = initial, set(moments(settings))
        self._frames = [first_images(initial.images)] if state is None else list(state["history"])

    def record(self, iteration: int, images: Tensor) -> Tensor | None:
        """Keep the first images, float32 [m,C,H,W], at a moment; return all images as uint8 then, and None otherwise."""
        if iteration not in self._moments:
            return None
        self._frames.append(first_images(images))
        return self._initial.pixels(images.detach().cpu())

    def frames(self) -> Tensor:
        """Return the first images so far, float32 [k,m',C,H,W] on the CPU."""
        return torch.stack(self._frames)


def check_distilled(method: str, initial: SyntheticSet, found: SyntheticSet, history: Tensor) -> None:
    """What a method of one's own returned, before anything of it is saved.

    Args:
        method: its name.
        initial: the subset that it started from.
        found: the set that it returned.
        history: the first images of the set at k moments, float32 [k,m',C,H,W].

    Raises:
        UserError: a tensor has not the shape and type of the subset's or is not finite; the history is no such tensor.
    """
    for name, tensor in initial.tensors().items():
        made = getattr(found, name)
        if made.shape != tensor.shape or made.dtype != tensor.dtype or not bool(made.isfinite().all()):
            raise UserError(
                f"{method}: its {name} are {made.dtype} {list(made.shape)} or not finite; expected {tensor.dtype} "
                f"{list(tensor.shape)}, as in the subset that it started from."
            )
    shape = list(history.shape) if isinstance(history, Tensor) else type(history).__name__
    if (
        not isinstance(history, Tensor)
        or history.ndim != 5
        or history.shape[2:] != found.images.shape[1:]
        or 0 in shape
    ):
        raise UserError(
            f"{method}: its history is {shape}; expected a tensor [k,m',{','.join(map(str, found.images.shape[1:]))}], "
            "the first images of the set at k moments, k and m' from 1 on."
        )


def load_synthetic(path: str | Path | artifacts.Artifact, stage: str | None = None) -> SyntheticSet:
    """Read a synthetic set or real subset from its safetensors file, every tensor checked.

    Args:
        path: the file, or the open artifact.
        stage: the rule that must have made it; None takes any.

    Raises:
        UserError: the file is missing, damaged, or its tensors do not fit together.
    """
    file = path if isinstance(path, artifacts.Artifact) else artifacts.Artifact(path, stage)
    tensors = {name: file.tensor(name) for name in SyntheticSet.NAMES}
    found = SyntheticSet(**tensors, provenance=file.header)
    m = found.images.shape[0] if found.images.ndim else 0
    channels = found.images.shape[1] if found.images.ndim == 4 else -1
    fits = (
        channels > 0
        and m > 0
        and found.images.dtype == found.targets.dtype == torch.float32
        and found.targets.ndim == 2
        and len(found.targets) == m
        and found.init_index.shape == (m,)
        and found.mean.shape == found.std.shape == (channels,)
        and found.step_size.shape == ()
    )
    if not fits:
        raise UserError(
            f"{file.path} is not a synthetic set: expected images float32 [m,C,H,W], targets float32 [m,D], "
            "step_size [], mean and std [C], init_index [m] (docs/artifacts.md)."
        )
    if not found.step_size > 0:
        raise UserError(f"{file.path}: step_size is {float(found.step_size)}, it must be positive.")
    if not bool((found.std > 0).all()):
        raise UserError(f"{file.path}: std must be positive in every channel, got {found.std.tolist()}.")
    return found
