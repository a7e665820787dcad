"""Linear probe on a teacher's targets beside one on the pixels, before experts are trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import evenly_spaced_rows, normalise, resize
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws, chance_level
from mkdt.evaluate.linear_probe import score

PIXELS = (
    16  # largest side of the images whose pixels are probed: finer ones cost time and hardly help a linear classifier
)
HELD_OUT = 5000  # images at most that score
COMPARED = 1000  # images at most that score where the teacher encodes them once more
ENCODED = 64  # images at a time: they need no more memory than the probe
NOTABLE = 2.0  # points between two statistics; a thousand images that both score leave about one to chance


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


def probe_statistics(
    encoder: nn.Module,
    targets: Tensor,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor, Tensor],
    settings: Mapping[str, Any],
    *,
    seed: int,
    dataset: str,
) -> dict[str, float]:
    """Score the targets and what the same teacher makes of images in another normalisation, on the same few labels.

    Args:
        encoder: images uint8 [n,C,H,W] to representations [n,D], with the other statistics.
        targets, images, labels, held_out, settings, seed, dataset: as for ``probe_targets``. Only the smallest label
            fraction is used, and at most ``COMPARED`` images score.

    Returns:
        ``labels`` (how many), ``targets`` and ``other`` (accuracies in per cent, means over the draws).
    """
    whole = Downstream(dataset, (images, labels), (images, labels), (images, labels))
    drawn = all_draws(whole, [min(settings["label_fractions"])], settings["label_draws"], seed)
    rows = torch.cat(list(drawn.values())).unique()
    places = {key: torch.searchsorted(rows, labelled) for key, labelled in drawn.items()}
    scored = evenly_spaced_rows(torch.arange(len(held_out[2])), COMPARED)
    found: dict[str, float] = {"labels": len(next(iter(drawn.values())))}
    inputs: list[tuple[str, nn.Module, Tensor, Tensor]] = [
        ("targets", nn.Identity(), targets, held_out[0]),
        ("other", encoder, images, held_out[1]),
    ]
    for name, module, train, validation in inputs:
        truth = validation[scored], held_out[2][scored]
        data = Downstream(dataset, (train[rows], labels[rows]), truth, truth)
        features = Features(module, data, torch.device("cpu"), torch.arange(len(rows)), settings["standardise"])
        accuracies = score(features, data, "validation", places, settings["l2"])
        found[name] = sum(row["accuracy"] for row in accuracies) / len(accuracies)
    return found


def statistics_in_words(found: Mapping[str, float], taken: str) -> tuple[str, bool]:
    """Say whether it matters which mean and deviation the teacher's input is normalised with.

    Args:
        found: what ``probe_statistics`` returned for the source's own statistics.
        taken: whose statistics the targets were made with.

    Returns:
        a sentence for the log, and whether the user should look at it: the source's statistics score higher.
    """
    difference = found["targets"] - found["other"]
    scores = (
        f"with mean and std from {taken} the targets score {found['targets']:.1f} %, with the source's "
        f"{found['other']:.1f} % ({found['labels']} labels)"
    )
    if abs(difference) < NOTABLE:
        return f"{scores}: which are taken hardly matters.", False
    if difference > 0:
        return f"{scores}: they matter, and the targets have the better ones.", False
    return (
        f"{scores}: they matter, and the source's fit this teacher better. Set teacher.checkpoint.mean and "
        "teacher.checkpoint.std to those that it was trained with (docs/teachers.md).",
        True,
    )


class Encoder(nn.Module):
    """Encodes images uint8 with a teacher whose input is normalised with ``mean`` and ``std``, float32 [C]."""

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone, self.mean, self.std = backbone, mean, std

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 [n,C,H,W] to [n,D]."""
        return torch.cat([self.backbone(normalise(part, self.mean, self.std)) for part in images.split(ENCODED)])


class Pixels(nn.Module):
    """Encodes an image as its own pixels."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten uint8 [n,C,H,W] to float32 [n,C*S*S] in [0, 1], S at most ``PIXELS``."""
        return resize(images, min(PIXELS, images.shape[-1])).flatten(1).float() / 255
