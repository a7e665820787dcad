"""Fixtures of the workflow tests: the smallest experiment, run once to its end, and copies to change."""

from pathlib import Path

import pytest
from project import TRACKED, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny experiment, run to the end with two cores. Tests that change anything take a copy."""
    project = Project.fresh(tmp_path_factory.mktemp("finished") / "project")
    project.configfiles = TRACKED
    project.printed = project.run("--verbose")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A checkout without results."""
    return Project.fresh(tmp_path / "project")


@pytest.fixture
def changed(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished experiment, to be changed."""
    return finished.copy(tmp_path / "project")
