"""`mkdt clean` on small results: what goes, what stays, how much room it frees, and when it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from mkdt.cli import clean
from mkdt.cli.main import main
from mkdt.errors import UserError

RESUME = Path("results/.resume")
SIZE = 30_000_000


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished set whose second name is kept, one of other settings, one that is lost, and a job that did not finish."""
    monkeypatch.chdir(tmp_path)
    for name in ("e/sets/finished", "e/sets/other", "e/sets/lost.safetensors/x", "c/stopped"):
        (RESUME / name).mkdir(parents=True)
        (RESUME / name / "settings.json").write_text("{}")
        (RESUME / name / "set.lock").touch()
    made = Path("results/e/sets/set.safetensors")
    made.parent.mkdir(parents=True)
    make(made, SIZE)
    os.link(made, RESUME / "e/sets/finished/set.safetensors")
    make(RESUME / "e/sets/other/set.safetensors", SIZE)
    make(RESUME / "e/sets/lost.safetensors/x/lost.safetensors", SIZE)
    make(RESUME / "c/stopped/set.state.pt", SIZE)
    return tmp_path / "results"


def make(path: Path, size: int) -> None:
    """A file of a size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def files() -> set[str]:
    """All files of the results but locks."""
    return {str(path) for path in Path("results").rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_takes_room_goes_and_what_jobs_go_on_from_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """A second name frees nothing, and saves making the set again; a resume point goes only when asked for."""
    make(Path("results/e/sets/.set.safetensors.a1b2c3d4.safetensors"), SIZE)
    before = files()
    assert main(["clean", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 finished file(s) that no result shares, 0.03 GB" in said
    assert "1 half-written file(s) of killed jobs, 0.03 GB" in said
    assert "stays - results/.resume: 0.03 GB of 1 job(s) that did not finish" in said
    assert "This frees 0.06 GB" in said
    assert files() == before
    assert main(["clean", "--yes"]) == 0
    gone = {"e/sets/other/set.safetensors", "e/sets/other/settings.json"}
    assert before - files() == {str(RESUME / name) for name in gone} | {
        "results/e/sets/.set.safetensors.a1b2c3d4.safetensors"
    }
    assert main(["clean", "--yes", "--unfinished"]) == 0
    assert {path.parent.name for path in RESUME.rglob("settings.json")} == {"finished", "x"}


def test_without_a_terminal_it_wants_a_yes(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that forgets it removes nothing."""
    before = files()
    assert main(["clean"]) == 1
    assert "give --yes" in capsys.readouterr().err
    assert files() == before


def test_it_refuses_while_a_run_is_in_progress() -> None:
    """A Snakemake's lock, a job's lock on its resume folder, a job that lives on without a Snakemake."""
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(UserError, match="a run is in progress"):
        clean.refuse_while_running()
    lock.unlink()
    with FileLock(RESUME / "c/stopped/set.lock"), pytest.raises(UserError, match=r"a job works on .*stopped"):
        clean.refuse_while_running()
    script = Path(".snakemake/scripts/tmp0.distill.py").absolute()
    script.parent.mkdir()
    script.write_text("input()")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE) as orphan:
        with pytest.raises(UserError, match="a run is in progress"):
            clean.refuse_while_running()
        orphan.communicate(b"\n")
    clean.refuse_while_running()


def test_outside_of_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No results, no work."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no results/"):
        clean.refuse_while_running()


def test_experts_of_an_experiment_that_is_not_known_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether its sets are there cannot be told."""
    expert = Path("results/d/t/convnet/experts/000.safetensors")
    expert.parent.mkdir(parents=True)
    make(expert, SIZE)
    assert main(["clean", "--yes"]) == 0
    assert "no experiment that ran in this folder is known to use them" in capsys.readouterr().out
    registry = Path("results/.experiments")
    registry.mkdir()
    (registry / "e.json").write_text('{"d/t/convnet": {}}')
    (registry / "e.yaml").write_text("epochs: 3\n")
    assert main(["clean", "--yes"]) == 0
    assert "results/.experiments/e.yaml, is no good any more" in capsys.readouterr().out
    assert expert.is_file()
