"""Small data sets in the formats of the real ones: a few classes, a few images, the same files, members and tables.

``make(kind)`` builds one; ``install`` makes this process take it for the published set, ``append_to`` a copy of the source
tree; ``serve`` hands files out over HTTP as badly as a test wants.
"""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mkdt.config.catalogue import DATASETS, FILES, Dataset

CLASSES = 3
PER_CLASS = {"train": 4, "test": 2, "validation": 2}


@dataclass
class Made:
    """A small data set.

    Attributes:
        kind: which.
        files: contents by path below ``data.root``, as they would be downloaded.
        facts: what the catalogue would say of it.
        labels: the true class of each image in published order, by split; -1 where there is none.
        colours: uint8 [n,C] the flat colour of each image.
        torchvision: class attributes of torchvision that hold checksums of unpacked files.
    """

    kind: str
    files: dict[str, bytes]
    facts: Dataset
    labels: dict[str, list[int]]
    colours: dict[str, np.ndarray]
    torchvision: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Put the files where they belong."""
        for name, content in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def entries(self, address: str) -> list[tuple[str, tuple[str, ...], str]]:
        """Name, addresses and checksum of each file, served below ``address``."""
        return [
            (file.name, (f"{address}/{file.name}",), "sha256:" + hashlib.sha256(self.files[file.name]).hexdigest())
            for file in FILES[self.kind]
        ]


def make(kind: str, seed: int = 0, per_class: dict[str, int] = PER_CLASS, classes: int = CLASSES) -> Made:
    """A small set of a kind; every image has one flat colour of its own, so that a mix-up shows.

    Args:
        kind: a name of ``catalogue.FILES``.
        seed: of the colours and of the order of the classes.
        per_class: images of each class by split.
        classes: how many.
    """
    stream, facts = np.random.default_rng(seed), DATASETS[kind]
    splits = [s for s in ("train", "test", "validation") if getattr(facts, s)]
    labels = {s: stream.permutation(np.repeat(np.arange(classes), per_class[s])).tolist() for s in splits}
    colours = {s: stream.integers(0, 256, (len(labels[s]), facts.channels), np.uint8) for s in splits}
    if kind == "stl10_unlabeled":
        return replace(make("stl10", seed, per_class, classes), kind=kind, **_unlabelled(facts, colours))
    makers: dict[str, Callable[..., tuple[dict[str, bytes], dict[str, dict[str, Any]]]]] = {
        "mnist": _idx,
        "fashion_mnist": _idx,
        "kmnist": _idx,
        "cifar10": _cifar,
        "cifar100": _cifar,
        "svhn": _svhn,
        "stl10": _stl10,
        "tiny_imagenet": _tiny_imagenet,
        "aircraft": _aircraft,
        "cub200": _cub200,
        "dogs": _dogs,
        "flowers102": _flowers102,
    }
    files, torchvision = makers[kind](kind, labels, colours)
    sizes = {s: len(labels.get(s, [])) for s in ("train", "test", "validation")}
    return Made(kind, files, replace(facts, classes=classes, **sizes), labels, colours, torchvision)


def install(monkeypatch: Any, made: Made, address: str = "http://127.0.0.1:1") -> None:
    """Let this process take the small set for the published one."""
    import torchvision

    from mkdt.config.catalogue import File

    monkeypatch.setitem(DATASETS, made.kind, made.facts)
    monkeypatch.setitem(FILES, made.kind, tuple(File(*entry) for entry in made.entries(address)))
    for name, values in made.torchvision.items():
        for attribute, value in values.items():
            monkeypatch.setattr(getattr(torchvision.datasets, name), attribute, value)


def append_to(source: Path, made: Made, address: str = "http://127.0.0.1:1") -> None:
    """The same for a copy of ``src`` that other processes run: lines at the end of two of its modules."""
    with (source / "mkdt" / "config" / "catalogue.py").open("a") as file:
        file.write(f"\nDATASETS[{made.kind!r}] = {made.facts!r}\n")
        file.write(f"FILES[{made.kind!r}] = tuple(File(*entry) for entry in {made.entries(address)!r})\n")
    if made.torchvision:
        with (source / "mkdt" / "data" / "readers" / "arrays.py").open("a") as file:
            file.write("\nimport torchvision.datasets\n")
            for name, values in made.torchvision.items():
                file.writelines(f"torchvision.datasets.{name}.{key} = {value!r}\n" for key, value in values.items())


def _unlabelled(facts: Dataset, colours: dict[str, np.ndarray]) -> dict[str, Any]:
    """What differs in STL-10's unlabelled split: the file that ``_stl10`` fills with the training images, mirrored."""
    count = len(colours["train"])
    return {"facts": replace(facts, train=count), "labels": {"train": [-1] * count}}


def _flat(colour: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(colour, (height, width, len(colour))).copy()


def jpeg(colour: np.ndarray, height: int = 40, width: int = 50) -> bytes:
    """A JPEG of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(_flat(colour, height, width)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_of_one(name: str, link: str = "") -> bytes:
    """A tar archive of one member: a file, or a symbolic link to ``link``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        else:
            info.size = 3
            archive.addfile(info, io.BytesIO(b"bad"))
    return buffer.getvalue()


def _classes(labels: dict[str, list[int]]) -> int:
    return 1 + max(max(members) for members in labels.values())


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _mat(**arrays: Any) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def _idx(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    files = {}
    for file in FILES[kind]:
        split = "train" if "train-" in file.name else "test"
        values = np.asarray(labels[split])
        if "images" in file.name:
            values = np.broadcast_to(colours[split][:, :, None], (len(values), 28, 28))
        magic = struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape)
        files[file.name] = gzip.compress(magic + values.astype(np.uint8).tobytes())
    return files, {}


def _cifar(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    folder, key, meta_key, names, meta = {
        "cifar10": ("cifar-10-batches-py", "labels", "label_names", ("data_batch_1", "test_batch"), "batches.meta"),
        "cifar100": ("cifar-100-python", "fine_labels", "fine_label_names", ("train", "test"), "meta"),
    }[kind]
    members = {}
    for split, name in zip(("train", "test"), names, strict=True):
        rows = np.repeat(colours[split], 32 * 32, axis=1)  # all red, then all green, then all blue
        members[name] = pickle.dumps({"data": rows, key: labels[split]})
    members[meta] = pickle.dumps({meta_key: [str(k) for k in range(_classes(labels))]})
    attributes = {
        "train_list": [[names[0], _md5(members[names[0]])]],
        "test_list": [[names[1], _md5(members[names[1]])]],
        "meta": {"filename": meta, "key": meta_key, "md5": _md5(members[meta])},
    }
    archive = tar({f"{folder}/{name}": content for name, content in members.items()})
    return {FILES[kind][0].name: archive}, {kind.upper(): attributes}


def _svhn(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    files, splits = {}, {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        images = np.stack([_flat(colour, 32, 32) for colour in colours[split]], axis=-1)
        digits = np.where(np.asarray(labels[split]) == 0, 10, labels[split])  # the set calls the digit 0 class 10
        files[name] = _mat(X=images, y=digits[:, None].astype(np.uint8))
        splits[split] = ["", name, _md5(files[name])]
    return files, {"SVHN": {"split_list": splits}}


def _stl10(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    planes = {s: np.repeat(c, 96 * 96, axis=1).astype(np.uint8).tobytes() for s, c in colours.items()}
    members = {
        "train_X.bin": planes["train"],
        "train_y.bin": (np.asarray(labels["train"], np.uint8) + 1).tobytes(),
        "unlabeled_X.bin": planes["train"],
        "test_X.bin": planes["test"],
        "test_y.bin": (np.asarray(labels["test"], np.uint8) + 1).tobytes(),
    }
    lists = {
        f"{split}_list": [[n, _md5(content)] for n, content in members.items() if n.startswith(prefixes)]
        for split, prefixes in (("train", ("train", "unlabeled")), ("test", ("test",)))
    }
    return {FILES[kind][0].name: tar({f"stl10_binary/{n}": c for n, c in members.items()})}, {"STL10": lists}


def _tiny_imagenet(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """The images of a class lie together: published order is by class, so the labels are sorted in place."""
    order = np.argsort(labels["train"], kind="stable")
    labels["train"], colours["train"] = [labels["train"][k] for k in order], colours["train"][order]
    top, wnids = "tiny-imagenet-200", [f"n{k:08d}" for k in range(_classes(labels))]
    members: dict[str, bytes] = {f"{top}/wnids.txt": "".join(f"{w}\n" for w in reversed(wnids)).encode()}
    boxes: dict[str, str] = dict.fromkeys(wnids, "")
    for k, (label, colour) in enumerate(zip(labels["train"], colours["train"], strict=True)):
        wnid = wnids[label]
        members[f"{top}/train/{wnid}/images/{wnid}_{k}.JPEG"] = jpeg(colour, 64, 64)
        boxes[wnid] += f"{wnid}_{k}.JPEG\t0\t0\t63\t63\n"
    members |= {f"{top}/train/{w}/{w}_boxes.txt": text.encode() for w, text in boxes.items()}
    annotations = ""
    for k, (label, colour) in enumerate(zip(labels["test"], colours["test"], strict=True)):
        members[f"{top}/val/images/val_{k}.JPEG"] = jpeg(colour, 64, 64)
        annotations += f"val_{k}.JPEG\t{wnids[label]}\t0\t0\t63\t63\n"
    members[f"{top}/val/val_annotations.txt"] = annotations.encode()
    members[f"{top}/test/images/test_0.JPEG"] = jpeg(colours["test"][0], 64, 64)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return {"tiny-imagenet-200.zip": buffer.getvalue()}, {}


def _aircraft(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    top = "fgvc-aircraft-2013b/data"
    variants = [f"Model {k}00" for k in range(_classes(labels))]
    members = {f"{top}/variants.txt": "".join(f"{v}\n" for v in variants).encode()}
    number = 1000
    for split, published in (("train", "trainval"), ("test", "test")):
        lines = ""
        for label, colour in zip(labels[split], colours[split], strict=True):
            number += 1
            members[f"{top}/images/{number:07d}.jpg"] = jpeg(colour, 40, 90)
            lines += f"{number:07d} {variants[label]}\n"
        members[f"{top}/images_variant_{published}.txt"] = lines.encode()
    return {FILES[kind][0].name: tar(members)}, {}


def _cub200(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    top, rows = "CUB_200_2011", []
    members: dict[str, bytes] = {"attributes.txt": b"1 has_bill_shape::curved\n"}
    for split in ("train", "test"):
        rows += [(split, lab, col) for lab, col in zip(labels[split], colours[split], strict=True)]
    tables: dict[str, str] = {"images": "", "image_class_labels": "", "train_test_split": ""}
    for k, (split, label, colour) in enumerate(rows, 1):
        name = f"{label + 1:03d}.Bird_{label}/Bird_{k:04d}.jpg"
        members[f"{top}/images/{name}"] = jpeg(colour, 60, 45)
        tables["images"] += f"{k} {name}\n"
        tables["image_class_labels"] += f"{k} {label + 1}\n"
        tables["train_test_split"] += f"{k} {int(split == 'train')}\n"
    members |= {f"{top}/{name}.txt": text.encode() for name, text in tables.items()}
    return {"CUB_200_2011.tgz": tar(members)}, {}


def _dogs(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    images, lists = {}, {}
    for split in ("train", "test"):
        files = np.empty((len(labels[split]), 1), object)
        for k, (label, colour) in enumerate(zip(labels[split], colours[split], strict=True)):
            files[k, 0] = f"n{label:08d}-Dog_{label}/n{label:08d}_{split}{k}.jpg"
            images[f"Images/{files[k, 0]}"] = jpeg(colour, 70, 50)
        lists[f"{split}_list.mat"] = _mat(
            file_list=files, labels=np.asarray(labels[split], np.uint8)[:, None] + np.uint8(1)
        )
    return {"stanford_dogs/lists.tar": tar(lists, "w"), "stanford_dogs/images.tar": tar(images, "w")}, {}


def _flowers102(kind: str, labels: Any, colours: Any) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    keys = {"train": "trnid", "validation": "valid", "test": "tstid"}
    ids, classes, members, number = {}, [], {}, 0
    for split, key in keys.items():
        ids[key] = []
        for label, colour in zip(labels[split], colours[split], strict=True):
            number += 1
            ids[key].append(number)
            classes.append(label + 1)
            members[f"jpg/image_{number:05d}.jpg"] = jpeg(colour, 50, 60)
    return {
        "flowers-102/setid.mat": _mat(**{key: np.asarray([numbers]) for key, numbers in ids.items()}),
        "flowers-102/imagelabels.mat": _mat(labels=np.asarray([classes], np.uint8)),
        "flowers-102/102flowers.tgz": tar(members),
    }, {}


@dataclass
class Server:
    """What ``serve`` runs.

    Attributes:
        address: its address, ``http://127.0.0.1:PORT``.
        requests: path and ``Range`` header of every request.
        cuts: bytes after which the next answers break off, one an answer.
        ranges: whether a ``Range`` header is honoured.
    """

    address: str
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Server]:
    """Serve contents by path on this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            server.requests.append((name, wanted))
            if name not in files:
                self.send_error(404)
                return
            content, first = files[name], 0
            if wanted and server.ranges:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if first >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            end = server.cuts.pop(0) + first if server.cuts else len(content)
            self.wfile.write(content[first:end])

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
