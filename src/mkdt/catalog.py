"""Facts about the known data sets, readable without torch, so that a config is checked before any job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Shape and size of a data set as published.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        size: height and width in pixels.
        classes: number of labels.
        train: number of training images (of all images where there is no test split).
        test: number of test images; 0 where the data set has no test split of its own.
    """

    channels: int
    size: int
    classes: int
    train: int
    test: int


DATASETS = {
    "digits": Dataset(1, 8, 10, 1797, 0),
    "mnist": Dataset(1, 28, 10, 60_000, 10_000),
    "fashion_mnist": Dataset(1, 28, 10, 60_000, 10_000),
    "cifar10": Dataset(3, 32, 10, 50_000, 10_000),
    "cifar100": Dataset(3, 32, 100, 50_000, 10_000),
}
