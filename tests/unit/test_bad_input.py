"""Bad configuration and data: one sentence that names the key or the file, and nothing written."""

import contextlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configs import DEFAULT, merged, settings_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mkdt import artifacts
from mkdt.config import loading as cfg
from mkdt.config import sizes
from mkdt.data import preparation as data
from mkdt.errors import UserError
from mkdt.teacher import external_checkpoint as checkpoints
from mkdt.teacher import external_file as foreign

Make = Callable[[Path], dict[str, Any]]
NAN, INFINITE = float("nan"), float("inf")


def tree(folder: Path, classes: int = 2, each: int = 20, pixels: int = 8) -> Path:
    """A folder of grey images, one folder a class."""
    for name in range(classes):
        (folder / f"{name}").mkdir(parents=True)
        for image in range(each):
            Image.new("L", (pixels, pixels), image).save(folder / f"{name}" / f"{image}.png")
    return folder


def source(path: Path | str, **entry: Any) -> dict[str, Any]:
    """A config whose only data set is a folder."""
    chosen = {"kind": "folder", "path": str(path), "train": None, "validation": 4, "test": 4, "image_size": 8}
    return {
        "datasets": {"mine": chosen | entry},
        "source": "mine",
        "budgets": [4],
        "probe": {"selection": "mine", "downstream": ["mine"], "label_fractions": [0.5]},
    }


def linked_to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def made(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


REFUSED: dict[str, tuple[dict[str, Any] | Make, str]] = {
    # numbers
    "seed negative": ({"seed": -1}, "seed"),
    "seed boolean": ({"seed": True}, "seed"),
    "seed list": ({"seed": [1]}, "seed"),
    "rate null": ({"teacher": {"lr": None}}, "teacher.lr"),
    "rate boolean": ({"teacher": {"lr": True}}, "teacher.lr"),
    "rate list": ({"teacher": {"lr": [1]}}, "teacher.lr"),
    "rate negative": ({"teacher": {"lr": -0.1}}, "teacher.lr"),
    "rate NaN as text": ({"teacher": {"lr": "nan"}}, "teacher.lr"),
    "epochs too large for a number": ({"teacher": {"epochs": "1e400"}}, "teacher.epochs"),
    "epochs boolean": ({"teacher": {"epochs": True}}, "teacher.epochs"),
    "batch zero": ({"teacher": {"batch": 0}}, "teacher.batch"),
    "batch of one": ({"teacher": {"batch": 1}}, "teacher.batch"),
    "temperature zero": ({"teacher": {"method": "simclr", "temperature": 0}}, "teacher.temperature"),
    "crop negative": ({"teacher": {"augment": {"crop_scale": [-1, 1]}}}, "crop_scale"),
    "crop NaN": ({"teacher": {"augment": {"crop_scale": [NAN, 1]}}}, "crop_scale"),
    "rotation too large": ({"teacher": {"augment": {"rotate": 1e9}}}, "rotate"),
    "no blocks": ({"teacher": {"backbone": {"blocks": []}}}, "blocks"),
    "no projector": ({"teacher": {"projector": []}}, "projector"),
    "experts zero": ({"experts": {"count": 0}}, "experts.count"),
    "experts negative": ({"experts": {"count": -1}}, "experts.count"),
    "experts a job zero": ({"experts": {"per_job": 0}}, "experts.per_job"),
    "momentum above one": ({"experts": {"momentum": 1.5}}, "experts.momentum"),
    "decay negative": ({"experts": {"weight_decay": -1}}, "experts.weight_decay"),
    "width zero": ({"students": {"convnet": {"width": 0}}}, "width"),
    "depth zero": ({"students": {"convnet": {"depth": 0}}}, "depth"),
    "depth too large": ({"students": {"convnet": {"depth": 10**9}}}, "students.convnet.depth"),
    "budget negative": ({"budgets": [-1]}, "budgets.0"),
    "budget zero": ({"budgets": [0]}, "budgets.0"),
    "budget NaN": ({"budgets": [NAN]}, "budgets"),
    "budget infinite": ({"budgets": [INFINITE]}, "budgets"),
    "budget too large": ({"budgets": [1e300]}, "budgets must be at most 1e+15 in size, got [1e+300]"),
    "steps zero": ({"distill": {"steps": 0}}, "distill.steps"),
    "iterations zero": ({"distill": {"iterations": 0}}, "distill.iterations"),
    "match zero epochs": ({"distill": {"match_epochs": 0}}, "distill.match_epochs"),
    "step size negative": ({"distill": {"step_size": {"initial": -0.5}}}, "distill.step_size.initial"),
    "step size zero": ({"distill": {"step_size": {"initial": 0}}}, "distill.step_size.initial"),
    "step size NaN": ({"distill": {"step_size": {"initial": NAN}}}, "distill.step_size.initial"),
    "step size of another space": ({"distill": {"step_size": {"space": "cube"}}}, "distill.step_size.space"),
    "retain negative": ({"distill": {"retain": -1}}, "distill.retain"),
    "pictures negative": ({"distill": {"pictures": -1}}, "distill.pictures"),
    "label fraction NaN": ({"probe": {"label_fractions": [NAN]}}, "probe.label_fractions"),
    "label fraction negative": ({"probe": {"label_fractions": [-0.1]}}, "probe.label_fractions.0"),
    "no label draws": ({"probe": {"label_draws": 0}}, "probe.label_draws"),
    "ridge zero": ({"probe": {"l2": 0}}, "probe.l2"),
    "neighbours zero": ({"probe": {"knn": 0}}, "probe.knn"),
    "clusters zero": ({"sas": {"classes": 0}}, "sas.classes"),
    "pool zero": ({"krr_st": {"students": 0}}, "krr_st.students"),
    "resume negative": ({"compute": {"resume_minutes": -1}}, "compute.resume_minutes"),
    # splits
    "limit zero": ({"datasets": {"digits": {"limit": 0}}}, "datasets.digits.limit"),
    "limit of one": ({"datasets": {"digits": {"limit": 1}}}, "probe.label_fractions"),
    "nothing left to train on": ({"datasets": {"digits": {"validation": 0.99}}}, "datasets.digits"),
    "part of an image": ({"datasets": {"digits": {"train": 200.5}}}, "datasets.digits.train (200.5)"),
    "test negative": ({"datasets": {"digits": {"test": -1}}}, "datasets.digits.test"),
    "images too large": ({"datasets": {"digits": {"image_size": 10**9}}}, "datasets.digits.image_size"),
    "images of one pixel": ({"datasets": {"digits": {"image_size": 1}}}, "1x1"),
    # names and lists
    "unknown key": ({"distill": {"image_rate": 1}}, "did you mean 'image_lr'"),
    "section null": ({"teacher": None}, "teacher"),
    "scale unknown": ({"scale": "big"}, "scale"),
    "experiment above": ({"experiment": ".."}, "experiment"),
    "experiment a path": ({"experiment": "a/b"}, "experiment"),
    "experiment empty": ({"experiment": ""}, "experiment"),
    "experiment with a space": ({"experiment": "a b"}, "experiment"),
    "experiment of other letters": ({"experiment": "größe"}, "experiment"),
    "experiment is HTML": ({"experiment": "<script>"}, "experiment"),
    "experiment too long": ({"experiment": "x" * 300}, "experiment"),
    "experiment ends a line": ({"experiment": "abc\n"}, "experiment"),
    "data set above": ({"datasets": {"../up": DEFAULT["datasets"]["digits"]}}, "../up"),
    "data set a number": ({"datasets": {3: DEFAULT["datasets"]["digits"]}}, "datasets"),
    "no methods": ({"methods": []}, "methods"),
    "method twice": ({"methods": ["mkdt", "mkdt"]}, "methods"),
    "method a number": ({"methods": [1]}, "methods.0"),
    "method without a file": ({"methods": ["file:"]}, "methods.0"),
    "method is a folder": (lambda folder: {"methods": [f"file:{folder}"]}, "methods"),
    "no downstream set": ({"probe": {"downstream": []}}, "probe.downstream"),
    "downstream set twice": ({"probe": {"downstream": ["digits", "digits"]}}, "probe.downstream"),
    "URI a number": ({"tracking": {"uri": 3}}, "tracking.uri"),
    "data root a number": ({"data": {"root": 3}}, "data.root"),
    "data root empty": ({"data": {"root": ""}}, "data.root"),
    "checkpoint a folder": (lambda folder: {"teacher": {"checkpoint": {"file": str(folder)}}}, "checkpoint.file"),
    "deviation zero": (
        lambda folder: {"teacher": {"checkpoint": {"file": str(made(folder / "t.pt")), "std": [0]}}},
        "teacher.checkpoint.std",
    ),
    # folders
    "folder missing": (lambda folder: source(folder / "nowhere"), "datasets.mine.path"),
    "folder is a file": (lambda folder: source(made(folder / "file")), "datasets.mine.path"),
    "folder without a name": (lambda folder: source(""), "datasets.mine.path"),
    "folder name too long": (lambda folder: source("x" * 5000), "too long"),
    "folder name with a zero byte": (lambda folder: source("a\0b"), "datasets.mine.path"),
    "folder a link to itself": (lambda folder: source(linked_to_itself(folder)), "datasets.mine.path"),
    "folder empty": (lambda folder: source(tree(folder / "d", 1, 0)), "no images"),
    "folder of the results": (source("results/mine"), "datasets.mine.path"),
    "folder around the results": (source("."), "contains results/"),
    "a split as a class": (lambda folder: source(tree(tree(folder / "d") / "Test").parent), "Test/"),
    "one image": (lambda folder: source(tree(folder / "d", 1, 1)), "one class"),
    "unlabelled and scored": (lambda folder: source(tree(folder / "d"), labelled=False), "unlabelled"),
    "two channels": (lambda folder: source(tree(folder / "d"), channels=2), "datasets.mine.channels"),
    "more synthetic images than real ones": (
        lambda folder: source(tree(folder / "d")) | {"budgets": [1000]},
        "source 'mine' has 32",
    ),
    "validation without an image a class": (
        lambda folder: source(tree(folder / "d"), validation=1),
        "less than one image a class",
    ),
}


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(("over", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_one_sentence_and_nothing_is_written(
    over: dict[str, Any] | Make, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Snakefile does with it is in test_run: the sentence is printed and the exit code is not zero."""
    monkeypatch.chdir(tmp_path)
    config = merged(DEFAULT, over(tmp_path) if callable(over) else over)
    with pytest.raises(UserError) as caught:
        cfg.load(config)
    message = str(caught.value)
    assert word in message
    assert "\n" not in message
    assert len(message) < 500 or "too long" in message
    assert not Path("results").exists()


@pytest.mark.slow
def test_bad_input_starts_no_job_of_snakemake(tmp_path: Path) -> None:
    """The same cases through the real Snakefile: exit code not zero, the sentence, no traceback, nothing written."""
    root = Path(__file__).parents[2]
    for name in ("Snakefile", "workflow", "config", "src"):
        (tmp_path / name).symlink_to(root / name)
    files = []
    for number, (over, _) in enumerate(REFUSED.values()):
        folder = tmp_path / f"case {number}"
        folder.mkdir()
        files.append(folder / "config.yaml")
        files[-1].write_text(yaml.safe_dump(merged(DEFAULT, over(folder) if callable(over) else over)))
    command = [sys.executable, root / "tests" / "refused.py", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(REFUSED), done.stderr
    for (name, (_, word)), (code, text) in zip(REFUSED.items(), results, strict=True):
        assert code != 0, name
        assert word in text, (name, text)
        assert "Traceback" not in text, (name, text)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["plain", "with a space", "größe ½ 漢字", "<b>&amp;", "quote'\"", "-dash"])
def test_any_folder_name_works(name: str, tmp_path: Path) -> None:
    """Folders bear the names that people give them; a loop of links in one ends, an empty class folder is none."""
    folder = tree(tmp_path / name)
    (folder / "0" / "above").symlink_to(folder)
    (folder / "empty").mkdir()
    loaded = cfg.load(merged(DEFAULT, source(folder)))
    assert sizes.facts_of(loaded, "mine").classes == 2


def bomb(pixels: int) -> bytes:
    """A PNG header that promises a square of so many pixels a side."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", pixels, pixels, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("pixels", [10_000, 20_000, 60_000])
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(pixels: int, tmp_path: Path) -> None:
    """A picture that would fill the memory: refused by its header, below Pillow's own limit and above, by file name."""
    folder = tree(tmp_path / "d")
    made(folder / "0" / "bomb.png", bomb(pixels))
    entry = settings_of(cfg.load(merged(DEFAULT, source(folder))), "data", dataset="mine")
    with pytest.raises(
        UserError, match=r"1 of 41 images in .*/d .*0/bomb\.png: more than 89,478,485 pixels are too many"
    ):
        data.prepare(**entry, root=tmp_path, download=False, on_error="fail")


class Trap:
    """A pickle of this makes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch sprung",)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


OPTIONS = dict.fromkeys(("model", "sha256", "image_size", "mean", "std", "padding"))
CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pickle that runs code": (lambda folder: saved(folder / "t.pt", {"weights": Trap()}), "may run code"),
    "empty": (lambda folder: made(folder / "t.pt"), "cannot be read"),
    "text": (lambda folder: made(folder / "t.pt", b"<html>not found</html>"), "cannot be read"),
    "a list": (lambda folder: saved(folder / "t.pt", [torch.ones(2)]), "not a state dict"),
    "a number": (lambda folder: saved(folder / "t.pt", 3), "not a state dict"),
    "no weights": (lambda folder: saved(folder / "t.pt", {}), "t.pt"),
    "unknown names": (lambda folder: saved(folder / "t.pt", {"a": torch.ones(2)}), "t.pt"),
    "half a safetensors": (lambda folder: made(folder / "t.safetensors", b"\xff" * 20), "cannot be read"),
    "a header too long": (lambda folder: made(folder / "t.safetensors", b"\xff" * 8), "cannot be read"),
    "an array of objects": (lambda folder: made(folder / "t.npy", b"\x93NUMPY"), "cannot be read"),
}


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(("make", "word"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_bad_checkpoint_is_one_sentence_and_runs_no_code(
    make: Callable[[Path], Path], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of others are read as tensors, or not at all."""
    monkeypatch.chdir(tmp_path)
    file = make(tmp_path)
    with pytest.raises(UserError) as caught:
        if file.suffix == ".npy":
            foreign.load_untrusted(file)
        checkpoints.load_checkpoint(file, OPTIONS, 1, 8)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("sprung").exists()


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), cut=st.booleans())
def test_any_changed_byte_and_any_cut_of_an_artifact_is_noticed(
    position: float, value: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever it is, header or tensors: a sentence, or exactly what was written (padding), never another exception."""
    file = tmp_path_factory.mktemp("a") / "a.safetensors"
    tensors = {"x": torch.arange(12.0).reshape(3, 4), "y": torch.tensor(2)}
    artifacts.save(file, tensors, stage="experts", rows=["x"], inputs={"data": "0"})
    identity, content = artifacts.Artifact(file).identity, bytearray(file.read_bytes())
    where = int(position * len(content))
    content[where] ^= value
    file.write_bytes(content[:where] if cut else content)
    with contextlib.suppress(UserError):
        found = artifacts.Artifact(file, "experts")
        read = {name: found.tensor(name) for name in found.names}
        assert not cut
        assert found.identity == identity
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
