"""Preparing a data set: reading its files, splitting it, statistics of the training images."""

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from torch import Tensor

from mkdt.config.catalogue import DATASETS
from mkdt.data.preparation import prepare
from mkdt.data.readers import downloads
from mkdt.data.readers.arrays import load_raw
from mkdt.errors import UserError

SPLITS = ("train", "validation", "test")
# Sizes of the small imitations of published data sets.
TRAIN, TEST = 40, 10


def digits(**changes: Any) -> dict[str, Tensor]:
    """Prepare digits with fewer images than the default config."""
    arguments: dict[str, Any] = {"train": 300, "validation": 100, "test": 200, "image_size": None, "seed": 0}
    return prepare("digits", ".", **(arguments | changes))[0]


def idx_bytes(values: np.ndarray) -> bytes:
    """Encode an array in the idx format of MNIST: a magic number, the sizes, the bytes."""
    return struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.fixture
def idx_content() -> dict[str, np.ndarray]:
    """Make images 28x28 and labels by file name."""
    stream = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": stream.integers(0, 256, (TRAIN, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(TRAIN) % 10,
        "t10k-images-idx3-ubyte": stream.integers(0, 256, (TEST, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(TEST) % 10,
    }


def write_idx(folder: Path, content: dict[str, np.ndarray], packed: bool) -> None:
    """Write the files as Debian (packed) or torchvision (unpacked) does."""
    folder.mkdir(parents=True)
    for name, values in content.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every download fail, record its address, and remove the waiting time."""
    tried: list[str] = []

    def refuse(url: str, **options: Any) -> None:
        tried.append(url)
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tried


def test_digits_match_the_catalogue_and_use_the_full_byte() -> None:
    """The config check relies on the catalogue."""
    images, labels = load_raw("digits", ".")["all"]
    facts = DATASETS["digits"]
    assert images.shape == (facts.train, facts.channels, facts.size, facts.size)
    assert images.dtype == torch.uint8
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert len(labels.unique()) == facts.classes


def test_splits_have_the_requested_sizes_are_disjoint_and_keep_row_and_label_together() -> None:
    """An image in two splits or a shifted label would make test scores wrong."""
    split = digits()
    images, labels = load_raw("digits", ".")["all"]
    assert [len(split[f"{name}_labels"]) for name in SPLITS] == [300, 100, 200]
    rows = torch.cat([split[f"{name}_index"] for name in SPLITS])
    assert len(rows.unique()) == 600
    for name in SPLITS:
        assert torch.equal(split[f"{name}_images"], images[split[f"{name}_index"]])
        assert torch.equal(split[f"{name}_labels"], labels[split[f"{name}_index"]])


def test_without_a_train_size_all_remaining_images_are_used() -> None:
    """`train: null` takes everything that the other splits leave."""
    split = digits(train=None)
    assert len(split["train_labels"]) == 1797 - 100 - 200
    assert len(torch.cat([split[f"{name}_index"] for name in SPLITS]).unique()) == 1797


def test_every_split_is_stratified() -> None:
    """With few images an unstratified random split can miss a class."""
    split = digits(train=60, validation=50, test=40)
    share = load_raw("digits", ".")["all"][1].bincount().double() / 1797
    for name in SPLITS:
        counts = split[f"{name}_labels"].bincount(minlength=10)
        assert float((counts - share * counts.sum()).abs().max()) < 1.5


def test_the_seed_alone_determines_the_split() -> None:
    """Global random generators have no effect on the split."""
    first = digits()
    torch.manual_seed(123)
    np.random.seed(123)
    again, other = digits(), digits(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in SPLITS:
        assert not torch.equal(first[f"{name}_index"], other[f"{name}_index"])


def test_a_smaller_training_set_keeps_the_other_splits() -> None:
    """Results for different training sizes are then scored on the same images."""
    first, smaller = digits(), digits(train=100)
    for name in ("validation", "test"):
        assert torch.equal(first[f"{name}_index"], smaller[f"{name}_index"])


def test_mean_and_standard_deviation_are_those_of_the_training_pixels() -> None:
    """Compare with numpy."""
    split = digits()
    pixels = split["train_images"].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(split["mean"].numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(split["std"].numpy(), pixels.std((0, 2, 3)), rtol=1e-6)


def test_prepare_resizes_every_split() -> None:
    """All splits get the requested size."""
    split = digits(image_size=16)
    assert {split[f"{name}_images"].shape[1:] for name in SPLITS} == {(1, 16, 16)}
    pixels = split["train_images"].double() / 255
    torch.testing.assert_close(split["mean"].double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "folder", "packed"),
    [
        ("fashion_mnist", "fashion-mnist", True),
        ("fashion_mnist", "FashionMNIST/raw", False),
        ("fashion_mnist", "FashionMNIST/raw", True),
        ("mnist", "MNIST/raw", False),
        ("mnist", "mnist", True),
    ],
)
def test_idx_files_are_found_where_debian_and_torchvision_put_them(
    tmp_path: Path,
    idx_content: dict[str, np.ndarray],
    no_network: list[str],
    kind: str,
    folder: str,
    packed: bool,
) -> None:
    """The files are read without a download, and their folder does not change."""
    write_idx(tmp_path / folder, idx_content, packed)
    before = sorted(tmp_path.rglob("*"))
    raw = load_raw(kind, tmp_path, download=True)
    for split, prefix, count in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images, labels = raw[split]
        assert images.shape == (count, 1, 28, 28)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images[:, 0].numpy(), idx_content[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(labels.numpy(), idx_content[f"{prefix}-labels-idx1-ubyte"])
    assert sorted(tmp_path.rglob("*")) == before
    assert no_network == []


def test_a_published_test_split_is_kept_whole(tmp_path: Path, idx_content: dict[str, np.ndarray]) -> None:
    """Validation images are split off the training images; the test images stay the published ones."""
    write_idx(tmp_path / "fashion-mnist", idx_content, packed=True)
    split, _ = prepare(
        "fashion_mnist", tmp_path, train=20, validation=10, test=None, image_size=14, seed=0, download=False
    )
    assert torch.equal(split["test_index"], torch.arange(TEST))
    assert not set(split["train_index"].tolist()) & set(split["validation_index"].tolist())
    assert [len(split[f"{name}_labels"]) for name in SPLITS] == [20, 10, TEST]
    assert split["train_images"].shape == (20, 1, 14, 14)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"no gzip file" + raw[12:],
        lambda raw: raw[:200] + bytes(byte ^ 0xFF for byte in raw[200:260]) + raw[260:],
        lambda raw: raw[:10] + b"\xff" * 60 + raw[70:],
        lambda raw: raw[:-6] + bytes(2) + raw[-4:],
        lambda raw: gzip.compress(gzip.decompress(raw)[:100]),
        lambda raw: gzip.compress(b"something else"),
    ],
    ids=[
        "truncated",
        "no gzip",
        "flipped bytes",
        "no deflate",
        "wrong checksum",
        "content cut off",
        "other content",
    ],
)
def test_a_damaged_packed_file_is_a_user_error(
    tmp_path: Path,
    idx_content: dict[str, np.ndarray],
    no_network: list[str],
    damage: Callable[[bytes], bytes],
) -> None:
    """The message names the data set and its folder or file."""
    write_idx(tmp_path / "fashion-mnist", idx_content, packed=True)
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"fashion.mnist.*{tmp_path}|{path}"):
        load_raw("fashion_mnist", tmp_path, download=True)
    assert no_network == []


@pytest.mark.parametrize("kind", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_and_not_downloaded_if_download_is_false(
    tmp_path: Path, no_network: list[str], kind: str
) -> None:
    """On machines without network an attempt may hang."""
    with pytest.raises(UserError, match=rf"'{kind}' is not .* under data.root '{tmp_path}'.*data.download"):
        load_raw(kind, tmp_path, download=False)
    assert no_network == []


def test_a_failed_download_is_retried_and_then_reported(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the data set and says what to do."""
    with pytest.raises(UserError, match=r"'cifar10' could not be downloaded after 3 tries .*no network.* put https"):
        load_raw("cifar10", tmp_path, download=True)
    assert len(no_network) == downloads.TRIES


def test_cifar_archives_are_read_in_the_layout_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels come first, as stored; damaged files are refused."""
    from torchvision import datasets

    stream = np.random.default_rng(0)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    content = {}

    def put(name: str, value: dict[str, Any]) -> str:
        raw = pickle.dumps(value)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for name, kind, count in (("data_batch_1", "train_list", TRAIN), ("test_batch", "test_list", TEST)):
        content[kind] = stream.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
        entry = {"data": content[kind].reshape(count, -1), "labels": [k % 10 for k in range(count)]}
        lists[kind].append([name, put(name, entry)])
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = put("batches.meta", {"label_names": [str(k) for k in range(10)]})
    for name, value in (*lists.items(), ("meta", meta)):
        monkeypatch.setattr(datasets.CIFAR10, name, value)

    raw = load_raw("cifar10", tmp_path, download=False)
    for split, kind in (("train", "train_list"), ("test", "test_list")):
        images, labels = raw[split]
        assert np.array_equal(images.numpy(), content[kind])
        assert images.is_contiguous()
        assert labels.tolist() == [k % 10 for k in range(len(images))]
        assert labels.dtype == torch.int64

    (folder / "data_batch_1").write_bytes(b"damaged")
    with pytest.raises(UserError, match="'cifar10' is not"):
        load_raw("cifar10", tmp_path, download=False)


def test_a_limit_takes_evenly_spaced_images_of_each_split(tmp_path: Path) -> None:
    """The first and last rows are included; a split that is small enough stays whole."""
    sizes: dict[str, Any] = {"train": 200, "validation": 100, "test": 50, "image_size": None, "seed": 0}
    whole, _ = prepare("digits", tmp_path, **sizes)
    few, _ = prepare("digits", tmp_path, **sizes, limit=60)
    for split, count in (("train", 60), ("validation", 60), ("test", 50)):
        rows = few[f"{split}_index"]
        assert len(rows) == count == len(rows.unique())
        assert set(rows.tolist()) <= set(whole[f"{split}_index"].tolist())
        assert (rows[0], rows[-1]) == (whole[f"{split}_index"][0], whole[f"{split}_index"][-1])
        assert len(few[f"{split}_images"]) == len(few[f"{split}_labels"]) == count
