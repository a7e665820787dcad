"""Where each fault of the public code (DESIGN.md) is tested, and the ones that have no other home.

- only the first expert file is ever used: test_subset (all experts count), test_distill (every expert)
- seeds do not reach pre-training: test_pretraining, test_models (initial weights), test_seeding
- one row of the table mixes encoders: test_probe (one point is chosen for all downstream sets)
- the last update is never saved: test_distill (one iteration; the state after the last update)
- the teacher encodes one image at a time: test_teacher (represent)
- snapshots alias the live weights: test_experts (rows are copies), test_models (flatten copies)
- probe features in train mode: test_probe (eval mode for all splits)
- experts race for file names, parallel runs overwrite one CSV: here, test_experts (the same whichever were
  trained before, so that a name which is a function of the number has one possible content)
- a missing step size becomes 0.1: test_synthetic (never a default), test_pretraining (the learned one)
- nothing guards a NaN or negative step size: test_distill, test_synthetic (refused on reading)
- the probe diverges on unscaled features: test_probe (a real baseline; the reported gradient)
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mkdt import artifacts
from mkdt.artifacts import Artifact


def test_writers_that_race_for_a_name_leave_one_whole_file(tmp_path: Path) -> None:
    """Fault of the public code: parallel jobs lost each other's files. A reader sees one of them, whole."""
    path = tmp_path / "expert.safetensors"

    def write(number: int) -> None:
        artifacts.save(path, {"a": torch.full((1000,), float(number))}, stage="expert", rows=["a"])

    def read() -> set[float]:
        return set(Artifact(path, "expert").tensor("a").tolist())

    write(0)
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, number) for number in range(20)]
        seen = [read() for _ in range(20)]
        for job in writing:
            job.result()
    for values in [*seen, read()]:
        assert len(values) == 1
        assert values <= set(map(float, range(20)))
    assert list(tmp_path.iterdir()) == [path]


def test_parallel_jobs_of_different_experts_keep_every_file(tmp_path: Path) -> None:
    """Fault of the public code: experts that started together took the same name, and one was lost."""

    def write(number: int) -> None:
        artifacts.save(
            tmp_path / f"{number}.safetensors",
            {"a": torch.tensor([float(number)])},
            stage="expert",
            rows=["a"],
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(20)))
    assert len(list(tmp_path.iterdir())) == 20
    assert [Artifact(tmp_path / f"{k}.safetensors").row("a", 0).item() for k in range(20)] == list(range(20))
