"""Test how the numbers of a set are stored: what is lost, what is refused, and how many bytes it takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mkdt import artifacts
from mkdt.config.set_checks import misfit
from mkdt.config.set_values import measure
from mkdt.data.pixels import normalise
from mkdt.distill.storage import bytes_of, restored, stored
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.errors import UserError

MakeSet = Callable[..., SyntheticSet]
BYTES = {"float32": 4, "float16": 2, "uint8": 1}
PRECISIONS = [(pixels, targets) for pixels in BYTES for targets in BYTES]


def write(path: Path, tensors: dict[str, Tensor]) -> artifacts.Artifact:
    """Save stored tensors as a stage does."""
    artifacts.save(path, tensors, stage="distill", parameters={})
    return artifacts.Artifact(path)


def colour_set(m: int = 5) -> SyntheticSet:
    """A set beyond [0, 1], each channel with a range of its own; one channel and one component are constant."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randn(m, 3, 4, 4, generator=stream) * torch.tensor([0.1, 1.0, 3.0])[:, None, None]
    images[:, 1] = 0.25
    targets = torch.randn(m, 6, generator=stream) * 10.0 ** torch.arange(-3, 3)
    targets[:, 2] = -1.5
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    return SyntheticSet(images, targets, torch.tensor(0.1), mean, std, torch.arange(m))


@pytest.mark.parametrize(("pixels", "targets"), PRECISIONS)
def test_what_is_lost_is_rounding(pixels: str, targets: str, tmp_path: Path) -> None:
    """Each number is within half a unit of its type, of its own channel or component; the file has the bytes it says."""
    made = colour_set()
    file = write(tmp_path / "s.safetensors", stored(made.tensors(), {"pixels": pixels, "targets": targets}, real=False))
    read = load_synthetic(file)
    for name, precision in (("images", pixels), ("targets", targets)):
        before, after = getattr(made, name), getattr(read, name)
        assert after.dtype == torch.float32
        by = before.movedim(1, 0).flatten(1)
        unit = {
            "float32": torch.zeros(len(by)),
            "float16": by.abs().amax(1) * 2**-11,
            "uint8": (by.amax(1) - by.amin(1)) / 255 / 2,
        }[precision]
        error = (after - before).movedim(1, 0).flatten(1).abs().amax(1)
        assert (error <= unit * 1.001 + 1e-6 * by.abs().amax(1)).all()
        assert (error.max() > 0) == (precision != "float32")
    sizes = {"pixels": made.images.numel() * BYTES[pixels], "targets": made.targets.numel() * BYTES[targets]}
    sizes |= {"pixel_bounds": 3 * 2 * 4 * (pixels == "uint8"), "target_bounds": 6 * 2 * 4 * (targets == "uint8")}
    assert bytes_of(file) == sum(sizes.values()) + 4  # and the step size
    assert bytes_of(file) == sum(
        tensor.nbytes for name, tensor in load_file(file.path).items() if name not in ("mean", "std", "init_index")
    )


def test_real_pixels_are_bytes_and_nothing_is_lost() -> None:
    """Every value of a byte comes back with the bits of ``normalise``, whatever the key of synthetic pixels says."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)
    mean, std = torch.tensor([0.30561134, 0.1307]), torch.tensor([0.37612528, 0.3081])
    images = normalise(pixels, mean, std)
    made = SyntheticSet(images, torch.zeros(2, 3), torch.tensor(0.1), mean, std, torch.arange(2))
    kept = stored(made.tensors(), {"pixels": "float32", "targets": "float32"}, real=True)
    assert torch.equal(kept["images"], pixels)
    assert torch.equal(restored(kept)["images"], images)


def test_numbers_beyond_float16_are_refused(make_set: MakeSet) -> None:
    """Infinity is no target."""
    made = make_set()
    made.targets[0, 0] = 1e5
    with pytest.raises(UserError, match=r"storage\.targets is float16.*1e\+05"):
        stored(made.tensors(), {"pixels": "float32", "targets": "float16"}, real=False)


@pytest.mark.parametrize(("name", "bounds"), [("images", "pixel_bounds"), ("targets", "target_bounds")])
@pytest.mark.parametrize("value", [None, torch.zeros(2), torch.zeros(99, 2), torch.zeros(3, 2, dtype=torch.float64)])
def test_bytes_without_their_bounds_are_no_set(name: str, bounds: str, value: Tensor | None) -> None:
    """The sentence names the bounds."""
    tensors = stored(colour_set().tensors(), {"pixels": "uint8", "targets": "uint8"}, real=False)
    assert misfit(tensors, 1) == ""
    broken = {key: tensor for key, tensor in tensors.items() if key != bounds}
    fault = misfit(broken if value is None else broken | {bounds: value}, 1)
    assert name in fault
    assert bounds in fault


@pytest.mark.parametrize("bounds", ["pixel_bounds", "target_bounds"])
def test_swapped_bounds_are_no_set(bounds: str) -> None:
    """They would make negatives of the images; equal ones, of a constant channel, are fine."""
    tensors = stored(colour_set().tensors(), {"pixels": "uint8", "targets": "uint8"}, real=False)
    assert bounds in misfit(tensors | {bounds: tensors[bounds].flip(1)}, 1)


def test_checks_see_the_values_that_bytes_stand_for() -> None:
    """The numbers about a stored set are those of the set that is read from it."""
    tensors = stored(colour_set().tensors(), {"pixels": "uint8", "targets": "uint8"}, real=False)
    of_bytes, of_floats = (
        measure({name: tensor.numpy() for name, tensor in part.items()}) for part in (tensors, restored(tensors))
    )
    for field in ("least", "most", "spread", "darkest", "brightest", "deviation", "correlation"):
        assert getattr(of_bytes, field) == pytest.approx(getattr(of_floats, field), rel=1e-5)
    assert (of_bytes.count, of_bytes.flat, of_bytes.one_hot) == (of_floats.count, of_floats.flat, of_floats.one_hot)
    broken = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert measure(broken | {"pixel_bounds": np.full((3, 2), np.nan, np.float32)}).infinite == "images"
