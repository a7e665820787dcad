"""`mkdt run` cleans up after a killed Snakemake and leaves a living one alone."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser, parse_config

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


def test_orphaned_jobs_save_and_the_lock_of_a_dead_snakemake_is_removed(job: list[str]) -> None:
    """SIGKILL of Snakemake leaves its jobs running and its lock in place."""
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
def test_an_unusable_config_file_is_named(
    kind: str, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is removed or started."""
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
    """Several after one option, one after an equals sign, none after another option."""
    words = ["--configfile", "a.yaml", "b.yaml", "--cores", "2", "--configfile=c.yaml", "results/x", "--config", "k=v"]
    assert run.values(words, {"--configfile"}) == ["a.yaml", "b.yaml", "c.yaml"]
    assert run.values(words, {"--config"}) == ["k=v"]


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("target", ["results/d/data.safetensors", "results/missing.csv", "experts"])
def test_a_target_behind_a_config_file_is_named_with_the_right_order(target: str, tmp_path: Path) -> None:
    """Snakemake would read it as a config file: a traceback, whether it exists or not."""
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    path = tmp_path / target
    if path.suffix == ".safetensors":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x91\xff")
    with pytest.raises(UserError) as caught:
        run.check_words(["--cores", "1", "--configfile", str(tmp_path / "mine.yaml"), str(path)])
    assert f"mkdt run {path} --cores 2 --configfile {tmp_path / 'mine.yaml'}" in str(caught.value)


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["distill.iterations=5"], "'distill={iterations: 5}'"),
        (["distill:iterations=5"], "'distill={iterations: 5}'"),
        (["students.convnet.depth=2"], "'students={convnet: {depth: 2}}'"),
        (["seed=1", "results/d/data.safetensors"], "results/d/data.safetensors"),
        (["distill={iterations:", "5}"], "5}"),
        (["seed"], "'seed'"),
        (["=1"], "'=1'"),
    ],
)
def test_a_word_of_config_that_snakemake_cannot_read_is_shown_as_it_should_be(words: list[str], shown: str) -> None:
    """Snakemake ends in a traceback before the Snakefile can say anything."""
    for option in ("--config", "-C"):
        with pytest.raises(UserError) as caught:
            run.check_words(["--cores", "1", option, *words, "-n"])
        assert shown in str(caught.value)
    run.check_words(["--config", "seed=1", "experiment=x=y", "distill={iterations: 5}"])


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("words", [["mine.yaml"], ["--cores", "2", "mine.yaml"], ["-n", "mine.yaml", "--cores", "2"]])
def test_a_config_file_among_the_targets_is_named(words: list[str]) -> None:
    """As `mkdt doctor` takes it; Snakemake would only have no rule for it."""
    with pytest.raises(UserError, match=r"--configfile mine\.yaml"):
        run.check_words(words)
    run.check_words(["--slurm-partition-config", "mine.yaml", "--config", "a_file=mine.yaml"])


@pytest.mark.parametrize(
    "words", [["-s", "x.yaml"], ["-ns", "x.yaml"], ["-sx.yaml"], ["-d", "x.yml"], ["-C", "ab=1", "-w", "5"]]
)
def test_the_value_of_a_short_option_is_no_target(words: list[str]) -> None:
    """A Snakefile may have any name."""
    run.check_words(words)


def test_the_short_options_that_take_a_value_are_those_of_snakemake() -> None:
    """All others are followed by targets."""
    shorts = {
        name: action.nargs != 0
        for action in get_argument_parser()._actions
        for name in action.option_strings
        if not name.startswith("--")
    }
    assert {name: run.TAKING.fullmatch(name) is not None for name in shorts} == shorts


@pytest.mark.counts("bad inputs refused")
@pytest.mark.parametrize("word", ["a=1", "1a=2", "seed-=3", "é?=1", " seed=1"])
def test_a_name_of_config_that_snakemake_does_not_take_is_said_so(word: str) -> None:
    """It has the form NAME=VALUE, which is no reason."""
    with pytest.raises(ValueError, match="Invalid config definition"):
        parse_config([word])
    with pytest.raises(UserError) as caught:
        run.check_words(["--config", word])
    assert "two or more letters" in str(caught.value)
    assert f"'{word}'" in str(caught.value)
    assert "NAME=VALUE" not in str(caught.value)


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_lock_that_vanishes_while_it_is_looked_at_is_none(
    error: type[OSError], job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run beside this one ends between two looks at the folder."""

    def vanished(path: Path) -> Iterator[Path]:
        raise error(path)

    monkeypatch.setattr(Path, "iterdir", vanished)
    assert run.lock_note() is None
    run.take_over()


def test_two_runs_that_remove_a_lock_at_once(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds nothing to remove."""
    monkeypatch.setattr(run, "_locked", lambda: True)
    run.take_over()
    run.take_over()


def test_the_lock_of_a_dead_snakemake_says_what_removes_it(job: list[str]) -> None:
    """Snakemake's own message names --unlock, which leaves its jobs running."""
    note = run.lock_note()
    assert note is not None
    assert "mkdt run" in note
    LOCK.unlink()
    assert run.lock_note() is None


def test_the_lock_of_a_living_snakemake_names_its_process(job: list[str], tmp_path: Path) -> None:
    """One process, whatever it started itself; no password of its command line."""
    (tmp_path / "snakemake.py").write_text(f"import subprocess; subprocess.run({job})")
    owner = subprocess.Popen([sys.executable, "-m", "snakemake", "--config", "uri=http://me:hush@there"])
    try:
        wait_for("started")
        note = run.lock_note()
        assert note is not None
        assert f"process {owner.pid} " in note
        assert note.count("process ") == 1
        assert "hush" not in note
    finally:
        owner.kill()
        owner.wait()
        run.take_over()
