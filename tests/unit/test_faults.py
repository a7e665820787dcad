"""Faults of the authors' public code: where each is tested, and tests of those that have no other home.

- Only the first expert file is ever used: distill/test_subsets (all experts count), test_trajectory_matching (every expert).
- Seeds do not reach pre-training: evaluate/test_pretraining, networks/test_students (initial weights), test_seeding.
- One row of the table mixes encoders: evaluate/test_selection (one point is chosen for all downstream sets).
- The last update is never saved: distill/test_trajectory_matching (one iteration; the state after the last update).
- The teacher encodes one image at a time: teacher/test_encoding.
- Snapshots alias the live weights: distill/test_experts (rows are copies), networks/test_flat (flatten copies).
- Probe features in train mode: evaluate/test_features (eval mode for all splits).
- Experts race for file names, parallel runs overwrite one CSV: here, and distill/test_experts (the same whichever were trained
  before, so that a name which is a function of the number has one possible content).
- A missing step size becomes 0.1: distill/test_synthetic_set (never a default), evaluate/test_pretraining (the learned one).
- Nothing guards a NaN or negative step size: distill/test_trajectory_matching, test_synthetic_set (refused on reading).
- The probe diverges on unscaled features: evaluate/test_linear_probe (a real baseline; the reported gradient).
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
