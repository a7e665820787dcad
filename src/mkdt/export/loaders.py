"""Loaders of exported folders; their source is copied there as ``load.py``, with all that it uses of this package."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mkdt.config.views import IDENTITY
from mkdt.data.views import decode
from mkdt.distill.storage import restored
from mkdt.networks.backbones import build_backbone


def load_set(path: str | Path) -> dict[str, Tensor]:
    """Load a synthetic set, its images in all their views and as pixels.

    Returns:
        ``images`` float32 [V*m,C,H,W], the m images in each of V views, normalised with ``mean`` and ``std`` float32 [C]:
        train on these. Row ``v * m + i`` is view ``v`` of image ``i``; V is 1 for a set without views.
        ``targets`` float32 [V*m,D], which a linear head regresses a network's features onto.
        ``pixels`` float32 [m,C,H,W], the images as they are stored, where 0 is black and 1 is white; a distilled image may go
        beyond: clamp it to show it.
        ``step_size`` float32 [], the SGD step size that the set was distilled with.
        ``init_index`` int64 [m], the row of the training image that each one started from.
    """
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("mkdt", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = restored(tensors)
    images, mean, std = (tensors[name] for name in ("images", "mean", "std"))
    views = header.get("notes", {}).get("views", [IDENTITY])
    pixels = images * std[:, None, None] + mean[:, None, None]
    return tensors | {"images": decode(images, views, mean, std), "pixels": pixels}


def load_encoder(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load an encoder in eval mode, and the form of its images.

    Returns:
        the network, from images float32 [n,C,H,W] to features float32 [n,D].
        ``channels`` and ``size`` of the images, ``mean`` and ``std`` [C] of pixels in [0, 1] to normalise them with.

    Raises:
        ValueError: the file is not an exported encoder.
    """
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get("mkdt", "{}")).get("parameters") or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not {"backbone", "view"} <= set(about):
        raise ValueError(f"{path} is no exported encoder: its header does not name a network.")
    view = about["view"]
    encoder = build_backbone(about["backbone"], view["channels"], view["size"])
    encoder.load_state_dict(weights)
    mean, std = torch.tensor(view["mean"]), torch.tensor(view["std"])
    return encoder.eval(), view | {"mean": mean, "std": std}
