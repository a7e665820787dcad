"""Small fixtures that several unit tests share; everything here takes milliseconds."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from made_results import make_results
from torch import Tensor

from mkdt import artifacts
from mkdt.artifacts import Artifact
from mkdt.distill.experts import train_expert
from mkdt.distill.synthetic_set import SyntheticSet

torch.set_num_threads(1)
# The same examples in every run: a failure is never a matter of luck.
settings.register_profile("unit", deadline=None, max_examples=25, derandomize=True)
settings.register_profile("long", settings.get_profile("unit"), max_examples=1000)
settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "unit"))


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    """The smallest student: two blocks of width 4 for images of 8x8."""
    return {"architecture": "convnet", "depth": 2, "width": 4, "norm": "instance"}


@pytest.fixture(scope="session")
def batch_norm_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The same student with running statistics."""
    return spec | {"norm": "batch"}


@pytest.fixture(scope="session")
def source() -> tuple[Tensor, Tensor]:
    """A tiny source: 24 normalised grey images 8x8 and 3-dimensional targets that depend on them."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randn(24, 1, 8, 8, generator=stream)
    return images, torch.tanh(images.flatten(1) @ torch.randn(64, 3, generator=stream) / 8)


@pytest.fixture(scope="session")
def expert_files(
    source: tuple[Tensor, Tensor], spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Three experts of four epochs, as files."""
    folder = tmp_path_factory.mktemp("experts")
    training = {"epochs": 4, "batch": 8, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    paths = []
    for expert in range(3):
        tensors = train_expert(*source, spec, training, seed=0, expert=expert)
        paths.append(folder / f"{expert}.safetensors")
        artifacts.save(paths[-1], tensors, stage="expert", rows=["trajectory"])
    return paths


@pytest.fixture
def experts(expert_files: list[Path]) -> list[Artifact]:
    """The same experts, freshly opened."""
    return [Artifact(path, "expert") for path in expert_files]


@pytest.fixture
def make_set(source: tuple[Tensor, Tensor]) -> Callable[..., SyntheticSet]:
    """A synthetic set of the first ``m`` source images."""

    def make(m: int = 6, step_size: float = 0.1) -> SyntheticSet:
        images, targets = source
        return SyntheticSet(
            images[:m].clone(),
            targets[:m].clone(),
            torch.tensor(step_size),
            torch.tensor([0.4]),
            torch.tensor([0.2]),
            torch.arange(m),
        )

    return make


@pytest.fixture(scope="session")
def freeze() -> Callable[[Any], Any]:
    """What becomes of a resume state: written, and read back without unpickling code."""

    def through_a_file(state: Any) -> Any:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    return through_a_file


@pytest.fixture
def tiny(make_set: Callable[..., SyntheticSet]) -> SyntheticSet:
    """A distilled set of four images."""
    return make_set(4)


@pytest.fixture
def results(tmp_path: Path, spec: dict[str, Any], tiny: SyntheticSet) -> Path:
    """A results folder with a data set, a teacher, a distilled set and a student."""
    make_results(tmp_path / "results", spec, tiny)
    return tmp_path / "results"
