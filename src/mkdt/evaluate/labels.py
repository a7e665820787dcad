"""Labelled data sets for evaluation, and which of their training labels are revealed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkdt import seeding
from mkdt.artifacts import Artifact
from mkdt.data.pixels import Images, Normalised, adapt

LabelDraws = dict[tuple[float, int], Tensor]  # rows of the training split, by label fraction and number of the draw


@dataclass(frozen=True)
class View:
    """What the students of one source take.

    Attributes:
        channels, size: of the source's images.
        mean, std: float32 [C], that pixels are normalised with.
    """

    channels: int
    size: int
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Downstream:
    """A labelled data set in the source's shape and normalisation.

    Attributes:
        name: of the data set.
        train, validation, test: images float32 [n,C,H,W] and labels int64 [n]; empty where they are not read.
    """

    name: str
    train: tuple[Images, Tensor]
    validation: tuple[Images, Tensor]
    test: tuple[Images, Tensor]

    @classmethod
    def read(cls, name: str, file: Artifact, view: View, splits: Collection[str]) -> "Downstream":
        """Read some of the splits of a file of the stage ``data``."""

        def part(split: str) -> tuple[Images, Tensor]:
            if split not in splits:
                return torch.empty(0), torch.empty(0)
            images = adapt(file.tensor(f"{split}_images"), view.channels, view.size)
            return Normalised(images, view.mean, view.std), file.tensor(f"{split}_labels")

        return cls(name, part("train"), part("validation"), part("test"))

    def split(self, name: str) -> tuple[Images, Tensor]:
        """Return images and labels of the ``validation`` or ``test`` split."""
        return self.validation if name == "validation" else self.test


def chance_level(labels: Tensor) -> float:
    """Return the accuracy in per cent of always answering the most frequent class; ``labels`` are int64 [n], n > 0."""
    return 100 * int(labels.bincount().max()) / len(labels)


def at_chance(rows: Sequence[Mapping[Any, float]]) -> bool:
    """Return whether neither targets nor pixels are clearly above chance at any label fraction.

    Clearly means by two standard deviations of guessing on as many images. Where these are more than half of chance, few images
    score, and good targets could be missed; where all labels are one class, nothing can be above chance: both give False.

    Args:
        rows: as from ``mkdt.evaluate.targets_probe.probe_targets``; without any there is nothing to say, so False.
    """
    margins = [2 * _deviation(row["chance"], row["scored"]) for row in rows]
    return bool(rows) and all(
        row["chance"] < 100
        and margin <= row["chance"] / 2
        and max(row["targets"], row["pixels"]) <= row["chance"] + margin
        for row, margin in zip(rows, margins, strict=True)
    )


def _deviation(chance: float, images: float) -> float:
    """Return the standard deviation of the accuracy of guessing on so many images; all in per cent."""
    return float((chance * (100 - chance) / images) ** 0.5)


def draw_labels(labels: Tensor, fraction: float, seed: int, dataset: str, draw: int) -> Tensor:
    """Draw the rows whose labels are revealed: stratified by class, the same for every method.

    Args:
        labels: int64 [n] of the training split.
        fraction: share of the rows, in (0, 1].
        seed, dataset, draw: the identity of the draw.

    Returns:
        int64, ascending, round(fraction * n) rows. With fewer rows than classes (1 % of the paper's fine-grained sets),
        the classes that get one row each are drawn too.
    """
    classes, counts = labels.unique(return_counts=True)
    total = round(fraction * len(labels))
    stream = seeding.generator(seed, "label draw", dataset, f"{fraction:g}", draw)
    if total < len(classes):
        quota = torch.zeros_like(counts)
        quota[torch.randperm(len(classes), generator=stream)[:total]] = 1
    else:
        quota = _quotas(counts, fraction, total)
    rows = []
    for label, wanted in zip(classes, quota.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=stream)[:wanted]])
    return torch.cat(rows).sort().values


def _quotas(counts: Tensor, fraction: float, total: int) -> Tensor:
    """Share ``total`` rows among classes in proportion to their size, at least one each.

    Rounding is by largest remainders. Of equal remainders the first classes win, in every draw. The large classes give up
    the rows that small classes get beyond their share.

    Args:
        counts: int64 [classes], rows of each class.
        fraction: share of the rows.
        total: rows to share, at least one a class.

    Returns:
        int64 [classes] with the sum ``total``.
    """
    share = counts.double() * fraction
    small = share < 1
    while small.any():  # small classes get one row each; sharing the rest may make another class small
        share = torch.where(small, 1.0, counts * ((total - small.sum()) / counts[~small].sum()))
        if not (share < 1).any():
            break
        small |= share < 1
    quota = share.floor().long()
    missing = total - int(quota.sum())
    quota[(share - quota).argsort(descending=True, stable=True)[:missing]] += 1
    return quota


def all_draws(data: Downstream, fractions: Sequence[float], draws: int, seed: int) -> LabelDraws:
    """Draw labels of a data set's training split for every label fraction, ``draws`` times each."""
    labels = data.train[1]
    return {(f, draw): draw_labels(labels, f, seed, data.name, draw) for f in fractions for draw in range(draws)}
