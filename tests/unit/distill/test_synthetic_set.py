"""Test the form of synthetic sets, their files and their pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mkdt import artifacts
from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
from mkdt.errors import UserError

MakeSet = Callable[..., SyntheticSet]


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Save tensors as a stage does."""
    artifacts.save(path, tensors, stage="distill", parameters={"steps": 3})
    return path


def test_a_set_survives_its_file(make_set: MakeSet, tmp_path: Path) -> None:
    """The file gives back the same tensors and the provenance."""
    made = make_set(6, 0.037)
    read = load_synthetic(write(tmp_path / "s.safetensors", made.tensors()))
    assert len(read) == 6
    for name, tensor in made.tensors().items():
        assert torch.equal(getattr(read, name), tensor)
        assert getattr(read, name).dtype == tensor.dtype
    assert read.provenance["stage"] == "distill"
    assert read.provenance["parameters"] == {"steps": 3}


@pytest.mark.parametrize("name", SyntheticSet.NAMES)
def test_a_missing_tensor_is_an_error_never_a_default(make_set: MakeSet, tmp_path: Path, name: str) -> None:
    """In the public code a missing step size silently became 0.1."""
    tensors = make_set().tensors()
    del tensors[name]
    with pytest.raises(UserError, match=rf"s\.safetensors has no tensor '{name}'"):
        load_synthetic(write(tmp_path / "s.safetensors", tensors))


@pytest.mark.parametrize("step_size", [0.0, -0.1])
def test_a_step_size_that_is_not_positive_is_refused(make_set: MakeSet, tmp_path: Path, step_size: float) -> None:
    """The public code accepted a negative step size, and pre-training increased the loss."""
    with pytest.raises(UserError, match=r"s\.safetensors .*step_size is -?0.*positive"):
        load_synthetic(write(tmp_path / "s.safetensors", make_set(6, step_size).tensors()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", torch.zeros(6, 8, 8)),
        ("images", torch.zeros(())),
        ("images", torch.zeros(0, 1, 8, 8)),
        ("images", torch.zeros(5, 1, 8, 8)),
        ("images", torch.zeros(6, 3, 8, 8)),
        ("images", torch.zeros(6, 1, 8, 8, dtype=torch.int64)),
        ("images", torch.zeros(6, 1, 8, 8, dtype=torch.float64)),
        ("targets", torch.zeros(6)),
        ("targets", torch.zeros(5, 3)),
        ("targets", torch.zeros(())),
        ("step_size", torch.ones(1)),
        ("mean", torch.zeros(3)),
        ("std", torch.zeros(())),
        ("init_index", torch.zeros(5, dtype=torch.int64)),
        ("init_index", torch.zeros((), dtype=torch.int64)),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(
    make_set: MakeSet, tmp_path: Path, name: str, value: Tensor
) -> None:
    """A set that somebody else distilled is checked before hours of pre-training."""
    with pytest.raises(UserError, match=r"s\.safetensors is not a synthetic set: \w+ is \w+ \["):
        load_synthetic(write(tmp_path / "s.safetensors", make_set().tensors() | {name: value}))


def test_pixels_are_the_images_to_look_at(make_set: MakeSet) -> None:
    """Values beyond the range of pixels are clamped and do not wrap around."""
    made = make_set(2)
    made.images[0], made.images[1] = 100.0, -100.0
    made.images[1, 0, 0, 0] = 0.5  # 0.5 * 0.2 + 0.4 = 0.5 of 255
    pixels = made.pixels()
    assert pixels.dtype == torch.uint8
    assert bool((pixels[0] == 255).all())
    assert int(pixels[1, 0, 0, 0]) in (127, 128)
    assert int(pixels[1, 0, 1, 1]) == 0
