"""Linear probe on a teacher's targets beside one on the pixels, before experts are trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import evenly_spaced_rows, resize
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws, chance_level
from mkdt.evaluate.linear_probe import score

PIXELS = (
    16  # largest side of the images whose pixels are probed: finer ones cost time and hardly help a linear classifier
)
HELD_OUT = 5000  # images at most that score


def probe_targets(
    targets: Tensor,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor, Tensor] | None,
    settings: Mapping[str, Any],
    *,
    seed: int,
    dataset: str,
) -> list[dict[str, float]]:
    """Score a linear classifier on the targets and on the pixels, as students are scored.

    Args:
        targets: float32 [n,D].
        images: uint8 [n,C,H,W], of which row i has target i.
        labels: int64 [n]; only this probe uses them, not the training of experts.
        held_out: (targets, images, labels) of the validation split. Targets that were brought without a teacher have none:
            with None, half of the training images score, and labels are drawn from the other half.
        settings: ``label_fractions``, ``label_draws``, ``l2``, ``standardise``, as for the probe.
        seed, dataset: identify the label draws.

    Returns:
        one row a label fraction: ``label_fraction``, ``labels`` (how many), ``targets`` and ``pixels`` (accuracies in
        per cent, means over the draws), ``chance`` (as from ``chance_level``, of the ``scored`` images).
    """
    if held_out is None:
        rows = torch.randperm(len(labels), generator=seeding.generator(seed, "targets probe"))
        kept, rest = rows[len(rows) // 2 :], rows[: len(rows) // 2][:HELD_OUT]
        held_out = targets[rest], images[rest], labels[rest]
        targets, images, labels = targets[kept], images[kept], labels[kept]
    scored = evenly_spaced_rows(torch.arange(len(held_out[2])), HELD_OUT)
    held_out_targets, held_out_images, truth = (part[scored] for part in held_out)
    fractions, draws = settings["label_fractions"], settings["label_draws"]
    accuracies: dict[str, list[dict[str, Any]]] = {}
    inputs: list[tuple[str, nn.Module, Tensor, Tensor]] = [
        ("targets", nn.Identity(), targets, held_out_targets),
        ("pixels", Pixels(), images, held_out_images),
    ]
    for name, encoder, train, validation in inputs:
        data = Downstream(dataset, (train, labels), (validation, truth), (validation, truth))
        drawn = all_draws(data, fractions, draws, seed)
        labelled = torch.cat(list(drawn.values()))
        features = Features(encoder, data, torch.device("cpu"), labelled, settings["standardise"])
        accuracies[name] = score(features, data, "validation", drawn, settings["l2"])
    return [
        {"label_fraction": fraction, "labels": len(drawn[fraction, 0])}
        | {"chance": chance_level(truth), "scored": len(truth)}
        | {
            name: sum(row["accuracy"] for row in rows if row["label_fraction"] == fraction) / draws
            for name, rows in accuracies.items()
        }
        for fraction in fractions
    ]


class Pixels(nn.Module):
    """Encodes an image as its own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten uint8 [n,C,H,W] to float32 [n,C*S*S] in [0, 1], S at most ``PIXELS``."""
        return resize(images, min(PIXELS, images.shape[-1])).flatten(1).float() / 255
