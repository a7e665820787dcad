"""Sets that somebody else distilled: refused before any job where they cannot be meant, doubted where they look wrong."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import pytest
import torch
from brought_sets import tensors_of_a_set, write_set
from configs import DEFAULT, merged
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from mkdt import artifacts
from mkdt.config import loading as cfg
from mkdt.config import set_checks, set_values
from mkdt.config.set_checks import brought_doubts, check_values, doubts, oddities
from mkdt.errors import UserError

Tensors = dict[str, Tensor]


def loaded(path: Path, **over: Any) -> cfg.Config:
    """The default config with a set from a file."""
    return cfg.load(merged(DEFAULT, {"methods": ["random", f"file:{path}"], "budgets": [12]} | over))


def accepted(path: Path, **over: Any) -> cfg.Config:
    """The same, checked as before a run."""
    config = loaded(path, **over)
    check_values(config)
    return config


def pixels(tensors: Tensors) -> Tensor:
    """The pixels in [0, 1] of a set."""
    return tensors["images"] * tensors["std"][:, None, None] + tensors["mean"][:, None, None]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensors:
    """The entries of a set for pixels and the statistics that they are normalised with."""
    return {"images": (images - mean[:, None, None]) / std[:, None, None], "mean": mean, "std": std}


def one(value: float, channels: int = 1) -> Tensor:
    return torch.full((channels,), value)


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no targets": (lambda t: {key: value for key, value in t.items() if key != "targets"}, "no targets"),
    "doubles": (lambda t: t | {"images": t["images"].double()}, "images is float64"),
    "bytes": (lambda t: t | {"images": (255 * pixels(t).clamp(0, 1)).byte()}, "images is uint8"),
    "labels as targets": (lambda t: t | {"targets": torch.arange(12)}, "targets is int64"),
    "targets of fewer images": (lambda t: t | {"targets": t["targets"][1:]}, "targets"),
    "statistics of another number of channels": (lambda t: t | {"mean": one(0.5, 3)}, "mean is"),
    "channels last": (lambda t: t | {"images": t["images"].movedim(1, -1).contiguous()}, "channels last"),
    "step size negative": (lambda t: t | {"step_size": torch.tensor(-0.1)}, "step_size"),
    "std zero": (lambda t: t | {"std": one(0.0)}, "std"),
    "another size": (lambda t: t | {"images": t["images"][..., :4, :4].contiguous()}, "(1, 4, 4)"),
    "not square": (lambda t: t | {"images": t["images"][..., :4].contiguous()}, "(1, 8, 4)"),
    "pixels in [0, 1]": (lambda t: t | {"images": pixels(t).clamp(0, 1)}, "not normalised"),
    "pixels in 0-255": (lambda t: t | {"images": 255 * pixels(t).clamp(0, 1)}, "not normalised"),
    "pixels in 0-255, statistics (0, 1)": (
        lambda t: t | {"images": 255 * pixels(t), "mean": one(0.0), "std": one(1.0)},
        "deviation",
    ),
    "normalised in 0-255": (lambda t: t | normalised(255 * pixels(t), 255 * t["mean"], 255 * t["std"]), "mean"),
    "numbers without bounds": (lambda t: t | {"images": 1e37 * t["images"]}, "deviation"),
    "targets of zero": (lambda t: t | {"targets": torch.zeros_like(t["targets"])}, "targets are the same"),
    "one target for all": (lambda t: t | {"targets": t["targets"][:1].repeat(12, 1)}, "targets are the same"),
    "constant images": (lambda t: t | {"images": torch.zeros_like(t["images"])}, "one colour"),
    "grey images": (lambda t: t | {"images": t["images"].mean((2, 3), keepdim=True).expand_as(t["images"])}, "one colour"),
}  # fmt: skip


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(("change", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_a_set_that_cannot_be_meant_is_refused_when_the_config_is_checked(
    change: Callable[[Tensors], Tensors], word: str, tmp_path: Path
) -> None:
    """One sentence with the key, the file and what is wrong with it."""
    path = write_set(tmp_path / "theirs.safetensors", change(tensors_of_a_set()))
    with pytest.raises(UserError) as caught:
        accepted(path)
    message = str(caught.value)
    assert "methods.1" in message
    assert str(path) in message
    assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("views", "word"),
    [
        (["mirror", "identity"], "identity"),
        (["identity", "mirror", "mirror"], "twice"),
        (["identity", "shift 8 0"], "shift 8 0"),
        (["identity", "colour 0.1 0.2 0.3"], "colour 0.1 0.2 0.3"),
        (["identity", "shifts 1"], "each of the eight"),
        (["identity", "flip"], "flip"),
        ("mirror", "list"),
    ],
)
def test_views_that_do_not_fit_the_images_are_refused(views: Any, word: str, tmp_path: Path) -> None:
    """Of a brought set, before any job, with the file's name."""
    tensors = tensors_of_a_set()
    tensors |= {"targets": tensors["targets"].repeat(len(views) if isinstance(views, list) else 1, 1)}
    path = tmp_path / "theirs.safetensors"
    artifacts.save(path, tensors, stage="theirs", notes={"views": views})
    with pytest.raises(UserError, match=word) as caught:
        accepted(path)
    assert str(path) in str(caught.value)


def test_a_set_in_the_documented_form_is_accepted_without_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the range of a set that was distilled here, of colour, and of raw pixels declared as such."""
    monkeypatch.chdir(tmp_path)
    path = write_set(tmp_path / "theirs.safetensors")
    assert not doubts(accepted(path), arrays(tensors_of_a_set()))
    assert not brought_doubts(loaded(path))
    tensors = tensors_of_a_set()
    stretched = 0.64 / pixels(tensors).std() * (pixels(tensors) - tensors["mean"]) + tensors["mean"]
    raw = tensors | {"images": pixels(tensors).clamp(0, 1), "mean": one(0.0), "std": one(1.0)}
    for genuine in (tensors | normalised(stretched, tensors["mean"], tensors["std"]), tensors_of_a_set(3, 32), raw):
        assert not oddities(arrays(genuine))
    accepted(write_set(tmp_path / "raw.safetensors", raw))


def arrays(tensors: Tensors) -> dict[str, Any]:
    """The same for numpy."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_a_file_without_the_header_or_altered_is_refused(tmp_path: Path) -> None:
    """What the job would refuse hours later: no header, a changed tensor, a changed header, no tensor file."""
    tensors, path = tensors_of_a_set(), tmp_path / "theirs.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"methods\.1: .*theirs\.safetensors .*header"):
        loaded(path)
    write_set(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors | {"targets": tensors["targets"] + 1}, path, metadata)
    with pytest.raises(UserError, match=r"methods\.1: .*theirs\.safetensors .*altered"):
        accepted(path)
    changed = json.loads(metadata["mkdt"]) | {"stage": "mine"}
    for text in (json.dumps(changed), "[]", "{", '{"check": 1}'):
        save_file(tensors, path, {"mkdt": text})
        with pytest.raises(UserError, match=r"methods\.1: .*theirs\.safetensors .*altered"):
            loaded(path)
    path.write_text("text")
    with pytest.raises(UserError, match=r"methods\.1: .*theirs\.safetensors .*cannot be read"):
        loaded(path)


def test_digests_of_rows_are_compared_too(tmp_path: Path) -> None:
    """A writer may ask for a digest a row."""
    path = tmp_path / "theirs.safetensors"
    artifacts.save(path, tensors_of_a_set(), stage="theirs", rows=["images"])
    accepted(path)


def digits() -> Tensor:
    return torch.tensor(load_digits().images / 16, dtype=torch.float32)[:60, None]


def whitened(epsilon: float) -> Tensor:
    """Digits after ZCA as in the published code, which has 0.1."""
    zca = kornia.enhance.ZCAWhitening(eps=epsilon)
    return zca(torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None], include_fit=True)[:60]


OWN = digits().mean((0, 2, 3)), digits().std((0, 2, 3))
DOUBTED: dict[str, tuple[Callable[[], Tensors], str]] = {
    "far outside [0, 1]": (lambda: normalised(digits() * 8 - 4, *OWN), "run from"),
    "whitened, the source's statistics": (lambda: {"images": whitened(0.1), "mean": OWN[0], "std": OWN[1]}, "whitened"),
    "whitened fully": (lambda: {"images": whitened(0.001), "mean": OWN[0], "std": OWN[1]}, "resemble"),
    "whitened, (0, 1)": (lambda: {"images": whitened(0.1), "mean": one(0.0), "std": one(1.0)}, "whitened"),
    "normalised, declared (0, 1)": (
        lambda: normalised(digits(), *OWN) | {"mean": one(0.0), "std": one(1.0)}, "std [1.0]",
    ),
    "scaled to [-1, 1], the source's statistics": (
        lambda: {"images": 2 * digits() - 1, "mean": one(0.5), "std": one(0.25)}, "std [0.25]",
    ),
    "mean and std swapped": (lambda: normalised(digits(), *OWN) | {"mean": OWN[1], "std": OWN[0]}, "swapped"),
    "statistics of other images": (lambda: normalised(digits(), one(0.7), one(0.2)), "unlike"),
    "some constant images": (lambda: normalised(torch.cat([digits()[:-1], torch.ones(1, 1, 8, 8)]), *OWN), "1 of its 60"),
    "images twice": (lambda: normalised(digits()[torch.arange(60) % 50], *OWN), "10 of its 60"),
    "another size than the budget": (lambda: {}, "60 images, and is compared with sets of 12"),
    "one-hot targets": (lambda: {"targets": torch.eye(10)[torch.arange(60) % 10]}, "one-hot"),
    "targets of another width": (lambda: {"targets": torch.randn(60, 512)}, "512"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "word"), DOUBTED.values(), ids=DOUBTED.keys())
def test_a_set_that_looks_wrong_is_doubted_but_taken(
    change: Callable[[], Tensors], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's log and the report say what, once data and teacher of the source are known."""
    tensors = normalised(digits(), *OWN) | {
        "targets": torch.randn(60, 128, generator=torch.Generator().manual_seed(0)),
        "step_size": torch.tensor(0.1),
        "init_index": torch.full((60,), -1),
    }
    path = tmp_path / "theirs.safetensors"
    source = {"mean": OWN[0].numpy(), "std": OWN[1].numpy()}
    assert not oddities(arrays(tensors), source, 128)
    write_set(path, tensors | change())
    config = accepted(path)
    monkeypatch.chdir(tmp_path)
    data = Path("results/digits/data.safetensors")
    data.parent.mkdir(parents=True)
    save_file({"mean": OWN[0], "std": OWN[1]}, data)
    found = brought_doubts(config)
    assert set(found) == {"file-theirs"}
    assert word in " ".join(found["file-theirs"])


def test_published_statistics_of_cifar_are_no_reason_to_doubt() -> None:
    """A set may be normalised with other constants than the source's: they are known, and undone."""
    tensors = tensors_of_a_set(3, 32)
    source = {"mean": np.array([0.4914, 0.4822, 0.4465]), "std": np.array([0.2470, 0.2435, 0.2616])}
    for mean, std in (
        ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ):
        published = tensors | normalised(pixels(tensors), torch.tensor(mean), torch.tensor(std))
        assert not [text for text in oddities(arrays(published), source) if "unlike" in text or "swapped" in text]


def test_the_width_of_a_brought_teachers_targets_is_read_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config does not say how wide a checkpoint's representations are; until they are made, nothing is said."""
    path = write_set(tmp_path / "theirs.safetensors", tensors_of_a_set(width=64))
    (tmp_path / "targets.npy").write_bytes(b"")
    config = loaded(path, targets={"file": str(tmp_path / "targets.npy")}, teacher={"name": "brought"})
    monkeypatch.chdir(tmp_path)
    assert not brought_doubts(config)
    made = Path("results/digits/brought/targets.safetensors")
    made.parent.mkdir(parents=True)
    save_file({"targets": torch.zeros(5, 384)}, made)
    ((doubt,),) = brought_doubts(config).values()
    assert doubts(config, arrays(tensors_of_a_set(width=64))) == [doubt]
    assert "64" in doubt
    assert "384" in doubt


def test_a_job_reads_no_values_and_the_main_process_reads_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job loads the config; a large set took seconds and gigabytes in each of them."""
    monkeypatch.chdir(tmp_path)
    path, measured = write_set(tmp_path / "theirs.safetensors"), list[str]()
    monkeypatch.setattr(set_values, "measure", lambda tensors: measured.append("") or set_checks.measure(tensors))
    config = loaded(path, scale="smoke")
    assert not measured
    for _ in range(2):
        check_values(config)
        brought_doubts(config)
    assert len(measured) == 1
    write_set(path, tensors_of_a_set(count=13))
    check_values(loaded(path))
    assert len(measured) == 2


def test_parts_make_the_same_numbers_and_digests_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is read a few rows at a time, from a file as from memory."""
    tensors = tensors_of_a_set(3, 8, 13)
    images = tensors["images"].double()
    whole = set_values.measure(arrays(tensors))
    denormalised = images * tensors["std"][:, None, None] + tensors["mean"][:, None, None]
    left, right = denormalised[..., :-1].flatten(), denormalised[..., 1:].flatten()
    assert whole.count == 13
    assert (whole.least, whole.most) == (images.min().item(), images.max().item())
    assert whole.spread == pytest.approx(images.std(correction=0).item())
    assert whole.deviation == pytest.approx(denormalised.std(correction=0).item())
    assert whole.correlation == pytest.approx(torch.corrcoef(torch.stack([left, right]))[0, 1].item())
    for part in (1, 1000):
        monkeypatch.setattr(set_values, "PART", part)
        for rows in ([], ["images", "targets"]):
            path = tmp_path / f"{part}{len(rows)}.safetensors"
            artifacts.save(path, tensors, stage="theirs", rows=rows)
            found = set_values.values_of(path)
            assert found.spread == pytest.approx(whole.spread)
            assert found.correlation == pytest.approx(whole.correlation)
            assert (found.darkest, found.brightest, found.flat) == (whole.darkest, whole.brightest, whole.flat)


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held beside the file is a part of it; 33 MB of images once took five times that."""
    monkeypatch.setattr(set_values, "PART", 2**15)
    larger = {"images": torch.randn(2000, 1, 64, 64), "targets": torch.randn(2000, 8), "init_index": torch.arange(2000)}
    path = write_set(tmp_path / "theirs.safetensors", tensors_of_a_set() | larger)
    tracemalloc.start()
    try:
        set_values.values_of(path)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
