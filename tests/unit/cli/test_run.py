"""`mkdt run` clears away what a killed Snakemake left, and touches nothing of a living one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkdt.cli import run
from mkdt.cli.main import main
from mkdt.config.files import check_files
from mkdt.errors import UserError

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


@pytest.mark.parametrize("options", [[], ["-u"], ["-X", "dev"]])
def test_a_living_snakemake_keeps_its_jobs_and_its_lock(job: list[str], options: list[str], tmp_path: Path) -> None:
    """Two experiments may run side by side in one folder, however the interpreter was called."""
    (tmp_path / "snakemake.py").write_text(f"import subprocess; subprocess.run({job})")
    owner = subprocess.Popen([sys.executable, *options, "-m", "snakemake"])
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


@pytest.mark.counts("bad inputs refused")
def test_a_config_file_that_is_misspelled_is_named_with_the_nearest(tmp_path: Path) -> None:
    """Beside it in its folder."""
    (tmp_path / "cifar10_2pct.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"cifar10\.yaml does not exist: did you mean .*cifar10_2pct\.yaml\?$"):
        check_files([tmp_path / "cifar10.yaml"])


BAD = {
    "missing": None,
    "empty": b"",
    "a list": b"- a\n",
    "binary": b"\xff\xfe\x00",
    "within itself": b"a: &a\n  b: *a\n",
    "nested too deep": b"[" * 5000,
    "not YAML": b"a: [\n",
    "the same key twice": b"seed: 1\nprobe: {knn: 3}\nseed: 2\n",
    "the same key twice below": b"probe:\n  knn: 3\n  knn: 4\n",
}


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("kind", [*BAD, "a folder"])
def test_a_config_file_that_is_no_good_is_named(
    kind: str, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is cleared away or started."""
    file = tmp_path / "mine.yaml"
    if kind == "a folder":
        file.mkdir()
    elif (content := BAD[kind]) is not None:
        file.write_bytes(content)
    assert main(["run", "--cores", "1", "--configfile", "mine.yaml", "-n"]) == 1
    text = capsys.readouterr().err
    what = "does not exist" if kind == "missing" else "cannot be used ("
    assert text.startswith(f"mkdt: the config file mine.yaml {what}")
    assert text.count("\n") == 1
    assert LOCK.exists()


def test_config_files_on_a_command_line() -> None:
    """Several after one option, one after an equals sign, none of another option."""
    words = ["--configfile", "a.yaml", "b.yaml", "--cores", "2", "--configfile=c.yaml", "results/x", "--config", "k=v"]
    assert run._config_files(words) == ["a.yaml", "b.yaml", "c.yaml"]
