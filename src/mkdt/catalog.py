"""Facts about the known data sets, readable without torch, so that a config is checked before any job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Shape, size and terms of a data set as published.

    Attributes:
        channels: 1 (grey) or 3 (colour).
        size: height and width in pixels; 0 where the images are files of varying size.
        classes: number of labels; 0 where the images are unlabelled.
        train: number of training images (of all images where there is no test split).
        test: number of test images; 0 where the data set has no test split of its own.
        validation: number of images of a published validation split; 0 where there is none.
        source: where the data set is described.
        licence: what its publisher says about its use, as far as it is known for sure.
    """

    channels: int
    size: int
    classes: int
    train: int
    test: int
    validation: int = 0
    source: str = ""
    licence: str = "not known here, see the source"


NONE_STATED = "none stated by the publisher"
IMAGENET = "ImageNet's terms: non-commercial research and education"
CIFAR, STL10 = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://cs.stanford.edu/~acoates/stl10/"

DATASETS = {
    "digits": Dataset(
        1, 8, 10, 1797, 0, 0, "https://archive.ics.uci.edu/dataset/80", "CC BY 4.0 (UCI); shipped with scikit-learn"
    ),
    "mnist": Dataset(1, 28, 10, 60_000, 10_000, 0, "http://yann.lecun.com/exdb/mnist/"),
    "fashion_mnist": Dataset(1, 28, 10, 60_000, 10_000, 0, "https://github.com/zalandoresearch/fashion-mnist", "MIT"),
    "kmnist": Dataset(1, 28, 10, 60_000, 10_000, 0, "https://github.com/rois-codh/kmnist", "CC BY-SA 4.0"),
    "cifar10": Dataset(3, 32, 10, 50_000, 10_000, 0, CIFAR, NONE_STATED),
    "cifar100": Dataset(3, 32, 100, 50_000, 10_000, 0, CIFAR, NONE_STATED),
    "svhn": Dataset(3, 32, 10, 73_257, 26_032, 0, "http://ufldl.stanford.edu/housenumbers/", "non-commercial use only"),
    "stl10": Dataset(3, 96, 10, 5_000, 8_000, 0, STL10, IMAGENET),
    "stl10_unlabeled": Dataset(3, 96, 0, 100_000, 0, 0, STL10, IMAGENET),
    # The test labels were never published: as everywhere, the validation images are the test split.
    "tiny_imagenet": Dataset(3, 64, 200, 100_000, 10_000, 0, "http://cs231n.stanford.edu/", IMAGENET),
    # Labels of 100 variants; train is the published training and validation images together, as in the paper.
    "aircraft": Dataset(
        3,
        0,
        100,
        6_667,
        3_333,
        0,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "non-commercial research only",
    ),
    "cub200": Dataset(3, 0, 200, 5_994, 5_794, 0, "https://www.vision.caltech.edu/datasets/cub_200_2011/"),
    "dogs": Dataset(3, 0, 120, 12_000, 8_580, 0, "http://vision.stanford.edu/aditya86/ImageNetDogs/", IMAGENET),
    "flowers102": Dataset(3, 0, 102, 1_020, 6_149, 1_020, "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"),
}
