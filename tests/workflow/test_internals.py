"""What is used of Snakemake beside its public interface is still there; where it is not, there is a fallback."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_internals as internals
from project import REPOSITORY

SNAKEFILE = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "workflow")!r})
import snakemake_internals as internals

internals.limit_gpus(workflow, 2)
print("gpus", internals.declared_gpus(workflow))
print("cluster", internals.runs_on_a_cluster(workflow))
print("main", internals.is_main_process(workflow))

rule all:
    output: touch("done")

onstart:
    internals.lift_default_rate_limit(workflow)
    print("scheduled", workflow.scheduler.global_resources["gpu"])
    print("limiter", workflow.scheduler.job_rate_limiter)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "expected"), [([], 2), (["--resources", "gpu=3"], 3)])
def test_snakemake_still_has_them(tmp_path: Path, limit: list[str], expected: int) -> None:
    """A new release that renames one of them would go unnoticed, since each has a fallback."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *limit]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    said = done.stdout + done.stderr
    for line in (f"gpus {expected}", f"scheduled {expected}", "cluster False", "main True", "limiter None"):
        assert line in said


def test_without_them_there_is_a_fallback() -> None:
    """Nothing stops a run for want of a detail."""
    workflow = SimpleNamespace()
    internals.limit_gpus(workflow, 2)
    assert internals.declared_gpus(workflow) is None
    assert not internals.runs_on_a_cluster(workflow)
    assert internals.is_main_process(workflow)
    internals.lift_default_rate_limit(workflow)
