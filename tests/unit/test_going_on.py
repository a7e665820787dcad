"""`mkdt run` clears away what a killed Snakemake left, and touches nothing of a living one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkdt import run

LOCK = Path(".snakemake/locks/0.input.lock")
JOB = """
import signal, sys, time
def stop(*_):
    open("saved", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
open("started", "w").close()
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command line of a job that saves when it is asked to stop, in a folder with a lock."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / ".snakemake" / "scripts" / "tmp0.distill.py"
    for file in (script, LOCK):
        file.parent.mkdir(parents=True)
    script.write_text(JOB)
    LOCK.write_text("results/a\n")
    return [sys.executable, str(script)]


def wait_for(path: str) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + 30
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_orphans_save_and_a_dead_owners_lock_goes(job: list[str]) -> None:
    """After SIGKILL of Snakemake its jobs live on and its lock stays."""
    orphan = subprocess.Popen(job)
    wait_for("started")
    run.take_over()
    orphan.wait(10)
    assert Path("saved").exists()
    assert not LOCK.exists()


def test_a_living_snakemake_keeps_its_jobs_and_its_lock(job: list[str], tmp_path: Path) -> None:
    """Two experiments may run side by side in one folder."""
    (tmp_path / "snakemake.py").write_text(f"import subprocess; subprocess.run({job})")
    owner = subprocess.Popen([sys.executable, "-m", "snakemake"])
    try:
        wait_for("started")
        run.take_over()
        assert owner.poll() is None
        assert LOCK.exists()
        assert not Path("saved").exists()
        owner.kill()
        owner.wait()
        run.take_over()
        assert Path("saved").exists()
        assert not LOCK.exists()
    finally:
        owner.kill()
