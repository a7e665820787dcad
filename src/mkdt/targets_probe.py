"""What the targets are worth: a linear probe on them beside one on the pixels, before experts are trained."""

import torch
from torch import Tensor

from mkdt.data import resize
from mkdt.probe import draw_labels, fit_linear

LABELS = 5000  # labelled training images that both probes are fitted to, and as many at most that score them
PIXELS = 16  # pixels are resized to at most so many a side: on few labels finer ones only cost time
L2 = 1e-3  # the paper's


def probe_targets(
    targets: Tensor, images: Tensor, labels: Tensor, held_out: tuple[Tensor, Tensor, Tensor] | None, seed: int
) -> dict[str, float]:
    """Accuracy of a linear classifier on the targets and on the pixels, with the same labels.

    Args:
        targets: float32 [n,D].
        images: uint8 [n,C,H,W], of which row i has target i.
        labels: int64 [n]; used here and nowhere in the training of experts.
        held_out: (targets, images, labels) of the validation split; None scores on training images that were not
            drawn, for targets that were brought without a teacher.
        seed: of the draw.

    Returns:
        ``targets`` and ``pixels``, accuracies in per cent on the held-out images; ``labels``, how many were fitted to;
        ``held_out``, how many were scored.
    """
    share = LABELS if held_out is not None else min(LABELS, len(labels) // 2)
    drawn = draw_labels(labels, min(1.0, share / len(labels)), seed, "targets", 0)
    if held_out is None:
        left = torch.ones(len(labels), dtype=torch.bool)
        left[drawn] = False
        rows = left.nonzero().flatten()
        held_out = targets[rows], images[rows], labels[rows]
    rest = torch.randperm(len(held_out[2]), generator=torch.Generator().manual_seed(seed))[:LABELS]
    scored = [part[rest] for part in held_out]
    return {
        "targets": _accuracy(targets[drawn], labels[drawn], scored[0], scored[2]),
        "pixels": _accuracy(_pixels(images[drawn]), labels[drawn], _pixels(scored[1]), scored[2]),
        "labels": len(drawn),
        "held_out": len(rest),
    }


def _pixels(images: Tensor) -> Tensor:
    return resize(images, min(PIXELS, images.shape[-1])).flatten(1).float()


def _accuracy(features: Tensor, labels: Tensor, held_out: Tensor, truth: Tensor) -> float:
    mean, std = features.double().mean(0), features.double().std(0)
    std[std < 1e-8] = 1.0
    train, test = (((part.double() - mean) / std).numpy() for part in (features, held_out))
    classifier, _ = fit_linear(train, labels.numpy(), L2)
    return 100 * float((classifier.predict(test) == truth.numpy()).mean())
