"""What the targets are worth: the probe of the evaluation on them and on the pixels, before experts are trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import evenly_spaced_rows, resize
from mkdt.evaluate.linear_probe import Downstream, Features, draw_labels, score

PIXELS = 16  # pixels are resized to at most so many a side: finer ones cost time and tell a linear classifier no more
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
    """Accuracy of a linear classifier on the targets and on the pixels, as students are scored.

    Args:
        targets: float32 [n,D].
        images: uint8 [n,C,H,W], of which row i has target i.
        labels: int64 [n]; used here and nowhere in the training of experts.
        held_out: (targets, images, labels) of the validation split; None keeps half of the training images for it, for
            targets that were brought without a teacher: labels are then drawn from the other half, half as many.
        settings: ``label_fractions``, ``label_draws``, ``l2``, ``standardise``, as for the probe.
        seed, dataset: identify the label draws.

    Returns:
        one row a label fraction: ``label_fraction``, ``labels`` (how many), ``targets`` and ``pixels`` (accuracies in
        per cent, means over the draws).
    """
    if held_out is None:
        rows = torch.randperm(len(labels), generator=seeding.generator(seed, "targets probe"))
        kept, rest = rows[len(rows) // 2 :], rows[: len(rows) // 2][:HELD_OUT]
        held_out = targets[rest], images[rest], labels[rest]
        targets, images, labels = targets[kept], images[kept], labels[kept]
    taken = evenly_spaced_rows(torch.arange(len(held_out[2])), HELD_OUT)
    held_out_targets, held_out_images, truth = (part[taken] for part in held_out)
    fractions, draws = settings["label_fractions"], settings["label_draws"]
    found: dict[str, list[dict[str, Any]]] = {}
    drawn = torch.cat([draw_labels(labels, f, seed, dataset, d) for f in fractions for d in range(draws)])
    for name, train, test in (
        ("targets", targets, held_out_targets),
        ("pixels", images, held_out_images),
    ):
        data = Downstream(dataset, (train, labels), (test, truth), (test, truth))
        encoder = Pixels() if name == "pixels" else nn.Identity()
        features = Features(encoder, data, torch.device("cpu"), drawn, settings["standardise"])
        found[name] = score(features, data, "validation", fractions, draws, settings["l2"], seed)
    return [
        {
            "label_fraction": fraction,
            "labels": len(draw_labels(labels, fraction, seed, dataset, 0)),
            **{
                name: sum(row["accuracy"] for row in rows if row["label_fraction"] == fraction) / draws
                for name, rows in found.items()
            },
        }
        for fraction in fractions
    ]


class Pixels(nn.Module):
    """Encodes an image as its own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n,C*S*S] in [0, 1] of uint8 [n,C,H,W], S at most ``PIXELS``."""
        return resize(images, min(PIXELS, images.shape[-1])).flatten(1).float() / 255
