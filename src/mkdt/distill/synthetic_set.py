"""The synthetic set: one form for distilled sets, real subsets and sets that somebody else distilled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mkdt import artifacts
from mkdt.config.set_checks import BOUNDS, LAYOUT, misfit, views_of
from mkdt.config.views import IDENTITY
from mkdt.data.pixels import denormalise, normalise
from mkdt.data.views import decode
from mkdt.distill.storage import bytes_of, restored
from mkdt.errors import UserError

# The step size stored with a real subset, which the paper's protocol pre-trains with: the published start value.
STEP_SIZE = 0.1


@dataclass(repr=False)
class SyntheticSet:
    """A small training set for pre-training by regression.

    Attributes:
        images: float32 [m,C,H,W], normalised with ``mean`` and ``std``.
        targets: float32 [V*m,D], the values that a student learns to predict for the images in each of V views, in the
            order of ``decoded``.
        step_size: float32 [], the learned SGD step size; a start value for a real subset.
        mean: float32 [C], of the source's pixels in [0, 1].
        std: float32 [C], their standard deviation.
        init_index: int64 [m], the row of the training image that each image started from.
        provenance: the file's header (stage, parameters, code, inputs, digests).
        views: names of the V views (``mkdt.config.views``).
        stored_bytes: of the file that it was read from (``mkdt.distill.storage.bytes_of``); None if it was read from none.
    """

    images: Tensor
    targets: Tensor
    step_size: Tensor
    mean: Tensor
    std: Tensor
    init_index: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    views: tuple[str, ...] = (IDENTITY,)
    stored_bytes: int | None = None

    NAMES = tuple(LAYOUT)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """Return one line: images, views, targets, bytes and origin."""
        size = "x".join(map(str, self.images.shape[1:]))
        parts = [f"{len(self)} images of {size}", f"targets of {self.targets.shape[1]} values"]
        if len(self.views) > 1:
            parts.insert(1, f"{len(self.views)} views")
        if self.stored_bytes is not None:
            parts.append(f"{self.stored_bytes:,} bytes")
        place = self.provenance.get("notes", {}).get("place") or self.provenance.get("stage")
        return f"<SyntheticSet: {', '.join([*parts, *filter(None, [place])])}>"

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name; ``mkdt.distill.storage`` says how they are stored."""
        return {name: getattr(self, name) for name in self.NAMES}

    def notes(self) -> dict[str, Any]:
        """Return what is stored in the header beside the tensors: the views, if there are any."""
        return {"views": list(self.views)} if self.views != (IDENTITY,) else {}

    def decoded(self, images: Tensor | None = None) -> Tensor:
        """Return all views of the images, or of others in the same normalisation, float32 [V*m,C,H,W] (``decode``)."""
        return decode(self.images if images is None else images, self.views, self.mean, self.std)

    def pixels(self, images: Tensor | None = None) -> Tensor:
        """Return the images, or others in the same normalisation, as uint8 [m,C,H,W], clamped to [0, 255]."""
        return denormalise(self.images if images is None else images, self.mean, self.std)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Return other images, uint8 [n,C,H,W], in the set's normalisation, float32: what a student of it takes."""
        return normalise(pixels, self.mean, self.std)

    def normalised(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return the same images, normalised with the ``mean`` and ``std`` (float32 [C]) of another source.

        Raises:
            UserError: the number of channels differs.
        """
        if mean.shape != self.mean.shape:
            raise UserError(f"the set has {len(self.mean)} channels, but the source has {len(mean)}.")
        if torch.equal(mean, self.mean) and torch.equal(std, self.std):
            return self.images
        pixels = self.images * self.std[:, None, None] + self.mean[:, None, None]
        return (pixels - mean[:, None, None]) / std[:, None, None]


def moments(settings: Mapping[str, Any]) -> list[int]:
    """Return the iterations whose pictures are kept: 0, and ``pictures`` evenly spaced ones up to the last."""
    count, iterations = settings["pictures"], settings["iterations"]
    return sorted({0, *(round(iterations * (k + 1) / count) for k in range(count))})


def first_images(images: Tensor, count: int = 16) -> Tensor:
    """Copy the first images to the CPU, for the history of the set; their number limits its size."""
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
        """Keep the first of the images, float32 [m,C,H,W], at a moment; then return all as uint8, otherwise None."""
        if iteration not in self._moments:
            return None
        self._frames.append(first_images(images))
        return self._initial.pixels(images.detach().cpu())

    def frames(self) -> Tensor:
        """Return the first images so far, float32 [k,m',C,H,W] on the CPU."""
        return torch.stack(self._frames)


def check_distilled(method: str, initial: SyntheticSet, distilled: SyntheticSet, history: Tensor) -> None:
    """Check the result of a method before it is saved.

    Args:
        method: its name.
        initial: the subset that it started from.
        distilled: the set that it returned.
        history: the first images of the set at k moments, float32 [k,m',C,H,W].

    Raises:
        UserError: a tensor differs in shape or type from that of the subset or is not finite, the views differ, or the
            history does not have this form.
    """
    if distilled.views != initial.views:
        raise UserError(
            f"{method}: its views are {distilled.views}; expected those of the initial subset, {initial.views}."
        )
    for name, tensor in initial.tensors().items():
        made = getattr(distilled, name)
        if made.shape != tensor.shape or made.dtype != tensor.dtype or not bool(made.isfinite().all()):
            raise UserError(
                f"{method}: its {name} are {made.dtype} {list(made.shape)} or not finite; expected {tensor.dtype} "
                f"{list(tensor.shape)}, as in the initial subset."
            )
    image = list(distilled.images.shape[1:])
    is_tensor = isinstance(history, Tensor)
    if not (is_tensor and history.ndim == 5 and list(history.shape[2:]) == image and history.numel()):
        given = list(history.shape) if is_tensor else type(history).__name__
        raise UserError(
            f"{method}: its history is {given}; expected a tensor [k,m',{','.join(map(str, image))}], the first images of "
            "the set at k moments, with k and m' at least 1."
        )


def load_synthetic(path: str | Path | artifacts.Artifact, stage: str | None = None) -> SyntheticSet:
    """Read a synthetic set or real subset from its safetensors file and check all tensors.

    Args:
        path: the file, or the open artifact.
        stage: the rule that must have made it; None for any.

    Raises:
        UserError: the file is missing, damaged, or its tensors do not fit together.
    """
    file = path if isinstance(path, artifacts.Artifact) else artifacts.Artifact(path, stage)
    names = [*SyntheticSet.NAMES, *(name for name in BOUNDS.values() if name in file.names)]
    tensors = {name: file.tensor(name) for name in names}
    try:
        views = views_of(file.header)
    except ValueError as error:
        raise UserError(f"{file.path} is not a synthetic set: {error} (docs/artifacts.md).") from error
    if fault := misfit(tensors, len(views)):
        raise UserError(f"{file.path} is not a synthetic set: {fault} (docs/artifacts.md).")
    whole = restored(tensors)
    values = {name: whole[name] for name in SyntheticSet.NAMES}
    return SyntheticSet(**values, views=views, provenance=file.header, stored_bytes=bytes_of(file))
