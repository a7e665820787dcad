"""Facts about the known data sets, readable without torch, so that a config is checked before any job."""

from dataclasses import dataclass

from mkdt.config import extensions


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
IMAGENET = "images of ImageNet: its terms (non-commercial research and education)"
CIFAR, STL10 = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://cs.stanford.edu/~acoates/stl10/"

PUBLISHED = {
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

DATASETS = PUBLISHED | extensions.declared(Dataset, PUBLISHED)
PICTURES = ("tiny_imagenet", "aircraft", "cub200", "dogs", "flowers102")  # sets of image files


@dataclass(frozen=True)
class File:
    """A file of a data set as published.

    Attributes:
        name: path below ``data.root``; torchvision's place, where it has the set.
        urls: where it can be fetched; the mirrors after the first.
        checksum: ``md5:`` or ``sha256:`` and its hexadecimal digits.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str


def _idx(folder: str, mirrors: tuple[str, ...], md5: tuple[str, str, str, str]) -> tuple[File, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        File(f"{folder}/raw/{name}-ubyte.gz", tuple(f"{mirror}{name}-ubyte.gz" for mirror in mirrors), f"md5:{digits}")
        for name, digits in zip(names, md5, strict=True)
    )


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_STANFORD = "http://ufldl.stanford.edu/housenumbers/"
_DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
_STL10 = File(
    "stl10_binary.tar.gz",
    ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
    "md5:91f7769df0f17e558f3565bffb0c7dfb",
)

# MD5 sums are torchvision's where it has the set; that of Aircraft is on its page, those of CUB and Dogs are
# TensorFlow Datasets' SHA-256, and that of TinyImageNet is what several public loaders agree on.
FILES: dict[str, tuple[File, ...]] = {
    "mnist": _idx(
        "MNIST",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": _idx(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "kmnist": _idx(
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "cifar10": (
        File("cifar-10-python.tar.gz", (f"{_TORONTO}cifar-10-python.tar.gz",), "md5:c58f30108f718f92721af3b95e74349a"),
    ),
    "cifar100": (
        File(
            "cifar-100-python.tar.gz", (f"{_TORONTO}cifar-100-python.tar.gz",), "md5:eb9058c3a382ffc7106e4002c42a8d85"
        ),
    ),
    "svhn": (
        File("train_32x32.mat", (f"{_STANFORD}train_32x32.mat",), "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
        File("test_32x32.mat", (f"{_STANFORD}test_32x32.mat",), "md5:eb5a983be6a315427106f1b164d9cef3"),
    ),
    "stl10": (_STL10,),
    "stl10_unlabeled": (_STL10,),
    "tiny_imagenet": (
        File(
            "tiny-imagenet-200.zip",
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
    "aircraft": (
        File(
            "fgvc-aircraft-2013b.tar.gz",
            (f"{_OXFORD}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
            "md5:d4acdd33327262359767eeaa97a4f732",
        ),
    ),
    "cub200": (
        File(
            "CUB_200_2011.tgz",
            ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
            "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        ),
    ),
    "dogs": (
        File(
            "stanford_dogs/lists.tar",
            (f"{_DOGS}lists.tar",),
            "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
        ),
        File(
            "stanford_dogs/images.tar",
            (f"{_DOGS}images.tar",),
            "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
        ),
    ),
    "flowers102": (
        File("flowers-102/setid.mat", (f"{_OXFORD}flowers/102/setid.mat",), "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
        File(
            "flowers-102/imagelabels.mat",
            (f"{_OXFORD}flowers/102/imagelabels.mat",),
            "md5:e0620be6f572b9609742df49c70aed4d",
        ),
        File(
            "flowers-102/102flowers.tgz",
            (f"{_OXFORD}flowers/102/102flowers.tgz",),
            "md5:52808999861908f626f3c1f4e79d11fa",
        ),
    ),
}


def table() -> str:
    """The known sets as a Markdown table, for docs/data.md."""
    lines = [
        "| `kind` | channels, size | classes | train | test | files below `data.root` | terms |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, facts in PUBLISHED.items():
        files = ", ".join(f"`{file.name}`" for file in FILES.get(kind, ())) or "with scikit-learn"
        train = f"{facts.train:,}" + (f", validation {facts.validation:,}" if facts.validation else "")
        lines.append(
            f"| `{kind}` | {facts.channels}, {facts.size or 'any'} | {facts.classes or 'none'} | {train} | "
            f"{facts.test or 0:,} | {files} | [{facts.licence}]({facts.source}) |"
        )
    return "\n".join(lines) + "\n"
