"""The resources that jobs ask for, as Snakemake sees them."""

import re
from collections import Counter

import pytest
from conftest import Project

from mkdt import resources

pytestmark = pytest.mark.slow


def test_the_estimate_counts_the_jobs_that_snakemake_plans(project: Project) -> None:
    """docs/cluster.md's numbers of jobs are those of a dry run."""
    planned: Counter[str] = Counter()
    for rule, count in project.planned().items():
        planned[re.split("[_ ]", rule)[0]] += count
    expected = Counter(
        stage.split("_")[0] for stage, _ in resources.jobs(resources.read([project.folder / "tiny.yaml"]))
    )
    assert planned == expected


def test_every_job_states_memory_and_time(project: Project) -> None:
    """Portable resources stand at every rule."""
    text = project.run("--dry-run")
    stated = [line for line in text.splitlines() if line.strip().startswith("resources:")]
    jobs = [line for line in stated if "mem_mb" in line]
    assert len(jobs) == len(stated) - 1  # rule all
    assert all("runtime=" in line for line in jobs)
