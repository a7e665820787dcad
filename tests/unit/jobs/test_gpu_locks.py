"""Jobs share out the GPUs of a machine among themselves. The GPUs are placeholders: names in CUDA_VISIBLE_DEVICES."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from configs import ROOT

from mkdt.errors import UserError
from mkdt.jobs import gpu_locks
from mkdt.jobs.gpu_locks import own_gpus

JOB = """
import logging, os, sys
from mkdt.jobs import gpu_locks

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
gpu_locks.LOOK_SECONDS = 0.02
with gpu_locks.own_gpus(int(sys.argv[1]), int(sys.argv[2])) as own:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(own)
    print(*own, sep=",", flush=True)
    sys.stdin.read()
"""


class Job:
    """A process that takes GPUs and keeps them until it is ended."""

    def __init__(self, count: int, jobs_per_gpu: int, **environment: str) -> None:
        command = [sys.executable, "-c", JOB, str(count), str(jobs_per_gpu)]
        everything = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=everything
        )

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def waits(self) -> bool:
        """Whether it says that it waits, rather than which GPUs it has."""
        return self.says().startswith("waits for ")

    def own(self) -> list[str]:
        """The GPUs that it has; wait until it has them."""
        return self.says().split(",")

    def end(self) -> None:
        """Kill it; nothing of its own runs any more."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    """Start a job on a machine with four GPUs."""
    jobs: list[Job] = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def new(count: int = 1, jobs_per_gpu: int = 1, visible: str = "0,1,2,3", **environment: str) -> Job:
        jobs.append(Job(count, jobs_per_gpu, CUDA_VISIBLE_DEVICES=visible, **environment))
        return jobs[-1]

    yield new
    for job in jobs:
        job.end()


def test_each_job_has_a_gpu_of_its_own_and_a_killed_one_frees_it(start: Callable[..., Job]) -> None:
    """Four jobs on four GPUs; a fifth waits until one is killed, and has that one's."""
    first = [start() for _ in range(4)]
    owned = [job.own() for job in first]
    assert sorted(owned) == [["0"], ["1"], ["2"], ["3"]]
    fifth = start()
    assert fifth.waits()
    first[2].end()
    assert fifth.own() == owned[2]


def test_a_job_on_several_gpus_waits_for_all_of_them(start: Callable[..., Job]) -> None:
    """It holds none while it waits, so that others go on; more than the machine has is all of it."""
    one = start()
    (taken,) = one.own()
    four = start(4)
    assert four.waits()
    three = start(3)
    assert sorted([*three.own(), taken]) == ["0", "1", "2", "3"]
    for job in (one, three):
        job.end()
    assert four.own() == ["0", "1", "2", "3"]
    four.end()
    assert len(start(99).own()) == 4


def test_jobs_share_a_gpu_only_where_all_of_them_may(start: Callable[..., Job]) -> None:
    """Two a GPU: the first ones on different GPUs. A job of a run that does not share takes no GPU of theirs, nor they its."""
    sharing = [start(jobs_per_gpu=2, visible="0,1") for _ in range(3)]
    owned = [job.own()[0] for job in sharing]
    assert len(set(owned)) == 2
    alone = start(visible="0,1")
    assert alone.waits()
    (free,) = {gpu for gpu in owned if owned.count(gpu) == 1}
    sharing[owned.index(free)].end()
    assert alone.own() == [free]
    sharing.append(start(jobs_per_gpu=2, visible="0,1"))
    two = start(jobs_per_gpu=2, visible="0,1")
    assert sharing[-1].own() != [free]
    assert two.waits()


def test_a_job_on_two_gpus_has_different_ones_where_jobs_share(start: Callable[..., Job]) -> None:
    """Two processes of a teacher on one GPU would be slower than one."""
    assert sorted(start(2, jobs_per_gpu=3, visible="0,1").own()) == ["0", "1"]


def test_only_visible_gpus_are_taken_by_the_names_they_have(start: Callable[..., Job]) -> None:
    """Of two runs on parts of the machine, those with a common GPU exclude each other on it; UUIDs are names, too."""
    assert start(visible="2,3").own() == ["2"]
    assert start(visible="3").own() == ["3"]
    assert start(visible="3,2").waits()
    assert start(visible="GPU-8f, MIG-1a").own() == ["GPU-8f"]
    assert start(visible="1,-1,0").own() == ["1"]
    assert start(visible="1,-1,0").waits()


def test_within_an_allocation_of_slurm_its_gpus_are_shared_out(start: Callable[..., Job]) -> None:
    """Their numbers are the allocation's own: two allocations on one node may have a GPU 0 each, and wait for nothing."""
    for allocation in ("7", "8"):
        owned = [start(visible="0,1", SLURM_JOB_ID=allocation).own() for _ in range(2)]
        assert owned == [["0"], ["1"]]


def test_the_gpu_of_a_slurm_job_is_its_own_at_once(start: Callable[..., Job]) -> None:
    """The scheduler has assigned it; two runs within the same allocation take turns."""
    assert start(visible="2", SLURM_JOB_ID="7").own() == ["2"]
    assert start(visible="2", SLURM_JOB_ID="8").own() == ["2"]
    assert start(visible="2", SLURM_JOB_ID="8").waits()


def test_a_job_without_a_gpu_takes_and_sees_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is at once there; afterwards all is as before."""
    monkeypatch.setattr(gpu_locks.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with own_gpus(0) as own:
        assert own == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_locks_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It names the folder and the variable that moves it."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpu_locks.tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"mkdt-gpus-\d+.*TMPDIR"), own_gpus(1):
        pass
