"""Fixtures of the tests on SLURM: the cluster, and the same experiment without it."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import cluster
import pytest
from slurm_project import ClusterProject


@pytest.fixture(scope="session")
def slurm() -> Iterator[Callable[[bool], None]]:
    """A function that brings the cluster up with or without accounting; it is stopped when the tests end."""
    if reason := cluster.obstacle():
        pytest.skip(reason)
    try:
        cluster.install(accounting=True)
    except SystemExit as error:
        pytest.skip(f"the packages cannot be installed: {error}")
    yield cluster.up
    cluster.down()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ClusterProject, subprocess.Popen[str]]]:
    """The same experiment without SLURM, started: it runs beside the first test on the cluster."""
    project = ClusterProject.fresh(tmp_path_factory.mktemp("undisturbed") / "project")
    process = project.start(cores=1)
    yield project, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def reference(undisturbed: tuple[ClusterProject, subprocess.Popen[str]]) -> dict[str, bytes]:
    """The files of the undisturbed run, by path."""
    project, process = undisturbed
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text[-4000:]
    return project.artifacts()
