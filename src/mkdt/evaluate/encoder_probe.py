"""Probe an encoder of one's own, without the workflow: the linear probe on few labels."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws
from mkdt.evaluate.linear_probe import score
from mkdt.networks.students import feature_size


def probe(
    encoder: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    label_fractions: Sequence[float] = (1.0,),
    label_draws: int = 5,
    l2: float = 1e-3,
    neighbours: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Score a frozen encoder by a linear probe, as rule ``probe`` does (docs/method.md).

    Args:
        encoder: maps images to features float32 [n,D], for example ``student.backbone``; it is put into eval mode.
        train: images float32 [n,C,H,W], normalised as the encoder's were, and labels int64 [n].
        test: the same of the images that are scored.
        label_fractions: shares of the training labels that are revealed, in (0, 1].
        label_draws: how often each share is drawn, by class; of all labels there is one draw.
        l2: weight of the probe's penalty.
        neighbours: also score k-NN with so many.
        seed: of the draws.
        device: where to encode.

    Returns:
        a row for each evaluation (``linear``, ``knn``), ``label_fraction`` and ``label_draw`` with the ``accuracy`` in per
        cent, and ``gradient``, the largest entry that the linear fit left over.

    Raises:
        UserError: images and labels differ in number, a share is no share or too small, or features are not finite or no
            vectors.
    """
    for name, (images, labels) in {"train": train, "test": test}.items():
        if len(images) != len(labels) or not len(images):
            raise UserError(f"probe: {name} has {len(images)} images, but {len(labels)} labels.")
    few = [share for share in label_fractions if not 0 < share <= 1 or round(share * len(train[0])) < 2]
    if few or not label_fractions:
        raise UserError(
            f"probe: label_fractions has {few or 'nothing'}; expected shares above 0, up to 1, of at least two of "
            f"{len(train[0])} labels."
        )
    if not l2 > 0 or label_draws < 1:
        raise UserError(f"probe: l2 is {l2:g} and label_draws {label_draws}; expected numbers above 0.")
    feature_size(encoder.to(device), train[0][:1].to(device))
    data = Downstream("probe", train, test, test)
    partial = [fraction for fraction in label_fractions if fraction < 1]
    drawn = all_draws(data, partial, label_draws, seed)
    drawn |= {(1.0, 0): torch.arange(len(train[1]))} if len(partial) < len(label_fractions) else {}
    try:
        features = Features(encoder, data, torch.device(device), torch.cat(list(drawn.values())), standardise=True)
        rows = score(features, data, "test", drawn, l2, neighbours)
    except FloatingPointError as error:
        raise UserError(f"probe: {error}: was the training of the encoder stable?") from error
    return pd.DataFrame(rows).drop(columns="finetune_rate")
