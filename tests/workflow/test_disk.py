"""Room on the disk: what jobs are said to write is what they write, and a job without room does not start."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import COLD, Project
from small_disk import small_file_system

from mkdt.artifacts import Artifact
from mkdt.config.loading import read
from mkdt.config.resource_needs import disk_mb
from mkdt.config.stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.counts("faults injected")]


@pytest.fixture
def small(project: Project, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The project's results on a disk of four megabytes, or as many as a test asks for."""
    folder = project.folder / "results"
    folder.mkdir()
    yield from small_file_system(folder, getattr(request, "param", 4))


def test_a_job_without_room_does_not_start(project: Project, small: Path) -> None:
    """One sentence before anything is decoded, nothing written but the log; the same command works once there is room."""
    target = ("results/digits/data.safetensors", "--config", "tracking={enabled: false}")
    text = project.run(*target, fails=True)
    assert "data: this job may write 0.006 GB" in text
    assert str(small) in text
    assert "free space" in text
    assert "Traceback" not in text
    assert not (small / "digits").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
    project.run(*target)
    assert (small / "digits" / "data.safetensors").is_file()


@pytest.mark.parametrize("small", [64], indirect=True)
def test_a_disk_that_fills_while_jobs_run(project: Project, small: Path, finished: Project) -> None:
    """A sentence, nothing half under a final name; with room again the same command ends with the same bytes."""
    target, filler = "results/digits/tiny_teacher/targets.safetensors", small / "filler"
    project.snakemake = COLD
    run = project.start(target)
    while not list(small.glob(".resume/digits/tiny_teacher/*/*/teacher.state.pt")):
        assert run.poll() is None
        time.sleep(0.02)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    text, _ = run.communicate(timeout=300)
    logs = "".join(log.read_text() for log in (small / "logs").rglob("*.log"))
    assert run.returncode != 0
    assert "free space" in text + logs or "No space left on device" in text  # Snakemake's own word for its own files
    assert "Traceback" not in logs
    for path in filter(Path.is_file, small.rglob("*.safetensors")):
        assert path.name.startswith(".") or Artifact(path).names
    filler.unlink()
    project.snakemake = Project.snakemake
    project.run(target)
    mine, theirs = project.artifacts(), finished.artifacts()
    assert (project.folder / target).is_file()
    assert [path for path in mine if mine[path] != theirs[path]] == []


def test_jobs_write_what_they_are_said_to_write(finished: Project) -> None:
    """No less than the tensors of the real files, which grow with the sizes; with headers and pictures no more than asked for."""
    config = read([finished.folder / "tiny.yaml"])
    for stage, patterns in {
        "data": ["digits/data.safetensors"],
        "teacher": ["digits/tiny_teacher/teacher.*"],
        "targets": ["digits/tiny_teacher/targets.safetensors"],
        "experts": ["digits/tiny_teacher/convnet/experts/00[01]*"],
        "subset": ["tiny/sets/random/6img/0.safetensors"],
        "distill": ["tiny/sets/mkdt/6img/0.*"],
        "pretrain": ["tiny/pretrain/convnet/mkdt/6img/0/*"],
    }.items():
        method = "random" if stage == "subset" else "mkdt"
        files = [file for pattern in patterns for file in (finished.folder / "results").glob(pattern)]
        artifacts = [Artifact(file) for file in files if file.suffix == ".safetensors"]
        tensors = sum(artifact.tensor(name).nbytes for artifact in artifacts for name in artifact.names)
        names = {"dataset": "digits", "student": "convnet", "method": method, "budget": "6img"}
        need = STAGES[stage].need(config, names)
        assert tensors <= need.disk + 100 <= 2 * tensors, stage  # a set's mean, std and step size
        assert sum(file.stat().st_size for file in files) < 1e6 * disk_mb(need), stage
