"""The resources that jobs ask for, as Snakemake sees them."""

import re
from collections import Counter

import pytest
from project import Project

from mkdt.config.loading import read
from mkdt.config.methods import METHODS
from mkdt.config.plan import jobs
from mkdt.config.stages import STAGES

pytestmark = pytest.mark.slow


def test_the_estimate_counts_the_jobs_that_snakemake_plans(project: Project) -> None:
    """docs/cluster.md's numbers of jobs are those of a dry run, whatever the methods."""
    methods = f"[{', '.join(METHODS.keys() - {'mkdt_random', 'bptt_kmeans'})}]"  # the same sets as mkdt and bptt
    planned: Counter[str] = Counter()
    for rule, count in project.planned("--config", f"methods={methods}").items():
        planned[re.split(r"_\d| ", rule)[0]] += count
    every = project.folder / "methods.yaml"
    every.write_text(f"methods: {methods}\n")
    config = read([project.folder / "tiny.yaml", every])
    assert planned == Counter(job.stage for job in jobs(config))


def test_every_job_states_memory_and_time(project: Project) -> None:
    """Portable resources stand at every rule; without the default profile, too, which declares the machine's GPUs."""
    cuda = ["--config", "compute={device: cuda}"]
    text = project.run("--dry-run", "--workflow-profile", "none", *cuda)
    jobs = re.findall(r"^(?:local)?rule (\w+):.*?^    resources: (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert len(jobs) > 20
    for rule, stated in jobs:
        if rule != "all":
            assert "mem_mb=" in stated
            assert "runtime=" in stated
            # Random and high-loss subsets compute nothing.
            assert ("gpu=1" in stated) == (STAGES[re.split(r"_\d", rule)[0]].gpu and rule != "subset"), rule
