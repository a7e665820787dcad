"""Decoding, splitting and normalising."""

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
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mkdt.config.catalogue import DATASETS
from mkdt.data import pixels
from mkdt.data import preparation as data
from mkdt.data.readers import downloads
from mkdt.errors import UserError

SPLITS = ("train", "validation", "test")
# Sizes of the tiny stand-ins for published data sets.
TRAIN, TEST = 40, 10


def digits(**changes: Any) -> dict[str, Tensor]:
    """The digits as the default config splits them, smaller."""
    arguments: dict[str, Any] = {"train": 300, "validation": 100, "test": 200, "image_size": None, "seed": 0}
    return data.prepare("digits", ".", **(arguments | changes))[0]


def idx_bytes(values: np.ndarray) -> bytes:
    """The idx format of MNIST: a magic number, the sizes, the bytes."""
    return struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.fixture
def idx_content() -> dict[str, np.ndarray]:
    """Images 28x28 and labels by file name."""
    stream = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": stream.integers(0, 256, (TRAIN, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(TRAIN) % 10,
        "t10k-images-idx3-ubyte": stream.integers(0, 256, (TEST, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(TEST) % 10,
    }


def write_idx(folder: Path, content: dict[str, np.ndarray], packed: bool) -> None:
    """Put the files there as Debian (packed) or torchvision (unpacked) would."""
    folder.mkdir(parents=True)
    for name, values in content.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to open an address fails and is recorded; no test waits."""
    tried: list[str] = []

    def refuse(url: str, **options: Any) -> None:
        tried.append(url)
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tried


# --- digits and splitting ---


def test_digits_are_as_the_catalog_says_and_use_the_full_byte() -> None:
    """The config is checked against the catalog before anything is read."""
    images, labels = data.load_raw("digits", ".")["all"]
    known = DATASETS["digits"]
    assert images.shape == (known.train, known.channels, known.size, known.size)
    assert images.dtype == torch.uint8
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert len(labels.unique()) == known.classes


def test_splits_have_the_asked_sizes_are_disjoint_and_keep_row_and_label_together() -> None:
    """An image in two splits would make the test score a lie; a shifted label would spoil it."""
    split = digits()
    images, labels = data.load_raw("digits", ".")["all"]
    assert [len(split[f"{name}_labels"]) for name in SPLITS] == [300, 100, 200]
    rows = torch.cat([split[f"{name}_index"] for name in SPLITS])
    assert len(rows.unique()) == 600
    for name in SPLITS:
        assert torch.equal(split[f"{name}_images"], images[split[f"{name}_index"]])
        assert torch.equal(split[f"{name}_labels"], labels[split[f"{name}_index"]])


def test_without_a_train_size_all_remaining_images_are_used() -> None:
    """`train: null` means everything that the other splits leave."""
    split = digits(train=None)
    assert len(split["train_labels"]) == 1797 - 100 - 200
    assert len(torch.cat([split[f"{name}_index"] for name in SPLITS]).unique()) == 1797


def test_every_split_is_stratified() -> None:
    """With few images a plain random split can miss a class."""
    split = digits(train=60, validation=50, test=40)
    share = data.load_raw("digits", ".")["all"][1].bincount().double() / 1797
    for name in SPLITS:
        counts = split[f"{name}_labels"].bincount(minlength=10)
        assert float((counts - share * counts.sum()).abs().max()) < 1.5


def test_the_seed_and_nothing_else_decides_the_split() -> None:
    """The test images must stay apart from training whatever the global generators did before."""
    first = digits()
    torch.manual_seed(123)
    np.random.seed(123)
    again, other = digits(), digits(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in SPLITS:
        assert not torch.equal(first[f"{name}_index"], other[f"{name}_index"])


def test_a_smaller_training_set_keeps_the_other_splits() -> None:
    """Otherwise results on different training sizes would be scored on different images."""
    first, smaller = digits(), digits(train=100)
    for name in ("validation", "test"):
        assert torch.equal(first[f"{name}_index"], smaller[f"{name}_index"])


def test_mean_and_deviation_are_those_of_the_training_pixels() -> None:
    """Statistics of other splits would leak; a wrong axis would still look plausible."""
    split = digits()
    pixels = split["train_images"].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(split["mean"].numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(split["std"].numpy(), pixels.std((0, 2, 3)), rtol=1e-6)


# --- pixels ---


@given(channels=st.sampled_from([1, 3]), seed=st.integers(0, 50))
def test_denormalise_inverts_normalise(channels: int, seed: int) -> None:
    """Every byte must come back, whatever the statistics."""
    stream = torch.Generator().manual_seed(seed)
    mean = torch.rand(channels, generator=stream)
    std = torch.rand(channels, generator=stream) + 0.05
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, -1, -1)
    normal = pixels.normalise(images, mean, std)
    assert normal.dtype == torch.float32
    assert torch.equal(pixels.denormalise(normal, mean, std), images)


@given(count=st.integers(1, 12), size=st.integers(1, 13), seed=st.integers(0, 99))
def test_images_normalised_when_they_are_taken_have_the_same_bits(count: int, size: int, seed: int) -> None:
    """Rows in any order and pieces of any size are those of all images normalised at once, whatever the device."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    mean, std = torch.rand(3, generator=generator), torch.rand(3, generator=generator) + 0.1
    lazy, whole = pixels.Normalised(images, mean, std), pixels.normalise(images, mean, std)
    assert (len(lazy), lazy.shape, lazy.device) == (count, whole.shape, whole.device)
    rows = torch.randint(0, count, (7,), generator=generator)
    assert torch.equal(lazy.to(torch.device("cpu"))[rows], whole[rows])
    pieces = list(lazy.split(size))
    assert [len(piece) for piece in pieces] == [len(piece) for piece in whole.split(size)]
    assert torch.equal(torch.cat(pieces), whole)


def test_normalise_uses_each_channels_own_statistics() -> None:
    """Against numpy, with channels that differ."""
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    pixels = images.numpy() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    got = pixels.normalise(images, torch.tensor(mean).float(), torch.tensor(std).float()).numpy()
    np.testing.assert_allclose(got, (pixels - mean[:, None, None]) / std[:, None, None], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std((0, 2, 3)), 1, atol=1e-5)


def test_resize_keeps_constants_averages_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving with antialiasing averages; plain bilinear would pick single pixels."""
    images = torch.full((3, 1, 8, 8), 77, dtype=torch.uint8)
    for size in (4, 8, 16):
        resized = pixels.resize(images, size)
        assert resized.shape == (3, 1, size, size)
        assert resized.dtype == torch.uint8
        assert bool((resized == 77).all())
    stripes = torch.tensor([200, 0, 0, 200], dtype=torch.uint8).repeat(4).expand(1, 1, 16, 16)
    centre = pixels.resize(stripes, 4)[..., 1:3]
    assert int(centre.min()) >= 80
    assert int(centre.max()) <= 120
    many = torch.randint(0, 256, (4100, 1, 4, 4), dtype=torch.uint8)
    for chunk in (1, 100 * 36, pixels.FLOATS):
        monkeypatch.setattr(data, "FLOATS", chunk)
        assert torch.equal(pixels.resize(many, 6)[4090:], pixels.resize(many[4090:], 6))
        assert torch.equal(pixels.adapt(many.expand(-1, 3, -1, -1), 1, 4), many)


def test_prepare_resizes_every_split() -> None:
    """One split left at its native size would fail only at the probe."""
    split = digits(image_size=16)
    assert {split[f"{name}_images"].shape[1:] for name in SPLITS} == {(1, 16, 16)}
    pixels = split["train_images"].double() / 255
    torch.testing.assert_close(split["mean"].double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0)


def test_adapt_brings_grey_to_colour_and_colour_to_luma() -> None:
    """The one rule for every downstream set: shape of the source, brightness kept."""
    grey = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    colour = pixels.adapt(grey, 3, 8)
    assert colour.shape == (4, 3, 8, 8)
    assert all(torch.equal(colour[:, k], grey[:, 0]) for k in range(3))
    assert torch.equal(pixels.adapt(colour, 1, 8), grey)
    assert torch.equal(pixels.adapt(grey, 1, 8), grey)
    pure = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    pure[0, 0] = pure[1, 1] = pure[2, 2] = 255
    assert pixels.adapt(pure, 1, 8)[:, 0, 0, 0].tolist() == [76, 150, 29]  # 255 times 0.299, 0.587, 0.114
    assert pixels.adapt(pure, 3, 4).shape == (3, 3, 4, 4)


def test_in_batches_joins_in_order_and_gives_an_ordinary_tensor() -> None:
    """An inference tensor would fail later, when a training graph has to save it."""
    images = torch.arange(10.0, requires_grad=True).view(10, 1)
    joined = pixels.in_batches(lambda batch: batch * 2, images.split(3))
    assert torch.equal(joined, images.detach() * 2)
    assert not joined.requires_grad
    assert not joined.is_inference()


# --- files ---


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
    """Offline machines bring the files; the folder they bring is theirs and is not written to."""
    write_idx(tmp_path / folder, idx_content, packed)
    before = sorted(tmp_path.rglob("*"))
    raw = data.load_raw(kind, tmp_path, download=True)
    for split, prefix, count in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images, labels = raw[split]
        assert images.shape == (count, 1, 28, 28)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(images[:, 0].numpy(), idx_content[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(labels.numpy(), idx_content[f"{prefix}-labels-idx1-ubyte"])
    assert sorted(tmp_path.rglob("*")) == before
    assert no_network == []


def test_a_published_test_split_is_kept_whole(tmp_path: Path, idx_content: dict[str, np.ndarray]) -> None:
    """Validation comes out of the training images; the test images are those that everybody reports on."""
    write_idx(tmp_path / "fashion-mnist", idx_content, packed=True)
    split, _ = data.prepare(
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
    """A broken download must be named in one sentence, not end in zlib's traceback."""
    write_idx(tmp_path / "fashion-mnist", idx_content, packed=True)
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"fashion.mnist.*{tmp_path}|{path}"):
        data.load_raw("fashion_mnist", tmp_path, download=True)
    assert no_network == []


@pytest.mark.parametrize("kind", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_and_not_fetched_without_leave(
    tmp_path: Path, no_network: list[str], kind: str
) -> None:
    """`download: false` is for machines where an attempt would hang or is forbidden."""
    with pytest.raises(UserError, match=rf"'{kind}' is not .* under data.root '{tmp_path}'.*data.download"):
        data.load_raw(kind, tmp_path, download=False)
    assert no_network == []


def test_a_failed_download_is_tried_again_and_then_explained(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks fail for a moment (retry) or for good (say so), and never with a traceback."""
    with pytest.raises(UserError, match=r"'cifar10' could not be downloaded after 3 tries .*no network.* put https"):
        data.load_raw("cifar10", tmp_path, download=True)
    assert len(no_network) == downloads.TRIES


def test_cifar_archives_are_read_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels first, as stored: a wrong permutation would train, on scrambled pictures."""
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

    raw = data.load_raw("cifar10", tmp_path, download=False)
    for split, kind in (("train", "train_list"), ("test", "test_list")):
        images, labels = raw[split]
        assert np.array_equal(images.numpy(), content[kind])
        assert images.is_contiguous()
        assert labels.tolist() == [k % 10 for k in range(len(images))]
        assert labels.dtype == torch.int64

    (folder / "data_batch_1").write_bytes(b"damaged")
    with pytest.raises(UserError, match="'cifar10' is not"):
        data.load_raw("cifar10", tmp_path, download=False)


def test_a_limit_spreads_over_each_split(tmp_path: Path) -> None:
    """The rows of the unlimited splits, evenly spaced, ends included; a split that is small enough stays whole."""
    sizes: dict[str, Any] = {"train": 200, "validation": 100, "test": 50, "image_size": None, "seed": 0}
    whole, _ = data.prepare("digits", tmp_path, **sizes)
    few, _ = data.prepare("digits", tmp_path, **sizes, limit=60)
    for split, count in (("train", 60), ("validation", 60), ("test", 50)):
        rows = few[f"{split}_index"]
        assert len(rows) == count == len(rows.unique())
        assert set(rows.tolist()) <= set(whole[f"{split}_index"].tolist())
        assert (rows[0], rows[-1]) == (whole[f"{split}_index"][0], whole[f"{split}_index"][-1])
        assert len(few[f"{split}_images"]) == len(few[f"{split}_labels"]) == count
