"""The whole workflow through ``sbatch``: disturbed, with and without accounting, bit for bit what a local run gives."""

import subprocess
from collections.abc import Callable

import pytest
from conftest import ClusterProject, Run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def disturbed(slurm: Callable[[bool], None], tmp_path_factory: pytest.TempPathFactory) -> tuple[ClusterProject, Run]:
    """A run without accounting, in which the teacher gets SIGTERM and the distillation SIGKILL."""
    slurm(False)
    project = ClusterProject.fresh(tmp_path_factory.mktemp("disturbed") / "project")
    with Run(project) as run:
        for rule, name in [("teacher", "TERM"), ("distill", "KILL")]:
            job = run.in_the_middle_of(rule)
            subprocess.run(["scancel", f"--signal={name}", job], check=True)
        run.finish()
    return project, run


def test_disturbed_jobs_go_on_to_the_same_bytes(
    disturbed: tuple[ClusterProject, Run], reference: ClusterProject
) -> None:
    """Every artifact, tables and figures too, is what the undisturbed run on this machine gave."""
    project, _ = disturbed
    mine, theirs = project.artifacts(), reference.artifacts()
    assert mine.keys() == theirs.keys()
    assert [path for path in mine if mine[path] != theirs[path]] == []


@pytest.mark.parametrize("log", ["digits/tiny_teacher/teacher.log", "tiny/sets/mkdt/6img/0.log"])
def test_disturbed_jobs_resume(disturbed: tuple[ClusterProject, Run], log: str) -> None:
    """The second attempt takes up the first one's resume state."""
    assert "resuming from" in (disturbed[0].folder / "results/logs" / log).read_text()


def test_only_disturbed_jobs_run_twice(disturbed: tuple[ClusterProject, Run]) -> None:
    """No finished job runs again; data and the report are no jobs of the cluster."""
    assert disturbed[1].counts() == {
        "teacher": 2, "targets": 1, "targets_probe": 1, "experts_0_0": 1, "experts_1_1": 1, "experts_2_2": 1,
        "subset": 1, "distill": 2, "pretrain": 2, "probe": 2,
    }  # fmt: skip


def test_gpus_are_shared_out(disturbed: tuple[ClusterProject, Run]) -> None:
    """On a node with two GPUs two jobs run at a time, and a third waits for one."""
    crowds = disturbed[1].crowds
    assert max(running for running, _ in crowds) == 2
    assert any(running == 2 and "Resources" in waiting for running, waiting in crowds)


def test_with_accounting(slurm: Callable[[bool], None], project: ClusterProject, reference: ClusterProject) -> None:
    """The same profile where an accounting database runs; the plugin's efficiency report finds the jobs in it."""
    slurm(True)
    with Run(project, "--slurm-efficiency-report", "--config", "methods=[random]") as run:
        run.finish()
    shared = {
        path: content
        for path, content in reference.artifacts().items()
        if not any(word in path for word in ("experts", "mkdt", "report"))
    }
    mine = project.artifacts()
    assert shared
    assert [path for path in shared if mine[path] != shared[path]] == []
    (report,) = (project.folder / "results/logs/slurm").glob("*.csv")
    for rule in ("teacher", "targets", "pretrain", "probe"):
        assert f"rule_{rule}" in report.read_text()
