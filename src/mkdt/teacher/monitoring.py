"""Quality of a teacher's representation during training; for display only."""

import torch
from torch import Tensor, nn

from mkdt.data.pixels import evenly_spaced_rows
from mkdt.teacher.encoding import represent

NEIGHBOURS = 5  # k of the k-NN classifier
SAMPLE = 5000  # images of each split: enough for stable figures in bounded time


def representation_quality(
    backbone: nn.Module,
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    validation: tuple[Tensor, Tensor, Tensor] | None,
    device: torch.device,
) -> dict[str, float]:
    """Measure a representation on evenly spaced images.

    Args:
        backbone: network [n,C,H,W] to [n,D]; set to eval mode.
        images: training images uint8 [n,C,H,W].
        mean, std: float32 [C], for normalisation.
        validation: labels of ``images`` int64 [n], validation images uint8 and their labels; None leaves out the k-NN.
        device: device for the network.

    Returns:
        ``representation_std``, the mean standard deviation of a dimension, 0 if the representation collapsed;
        ``off_diagonal``, the mean absolute correlation of two dimensions; ``knn_accuracy`` (per cent) on the validation
        images.
    """
    rows = evenly_spaced_rows(torch.arange(len(images)), SAMPLE)
    features = represent(backbone, images[rows], mean, std, device)
    correlation = torch.corrcoef(features.T).nan_to_num()
    off = correlation - torch.diag(correlation.diagonal())
    values = {
        "representation_std": float(features.std(0).mean()),
        "off_diagonal": float(off.abs().sum() / max(1, off.numel() - len(off))),
    }
    if validation is not None:
        from sklearn.neighbors import KNeighborsClassifier

        labels, held_out, held_out_labels = validation
        knn = KNeighborsClassifier(NEIGHBOURS).fit(features.numpy(), labels[rows].numpy())
        rows = evenly_spaced_rows(torch.arange(len(held_out)), SAMPLE)
        held_out_features = represent(backbone, held_out[rows], mean, std, device).numpy()
        values["knn_accuracy"] = 100 * float(knn.score(held_out_features, held_out_labels[rows].numpy()))
    return values
