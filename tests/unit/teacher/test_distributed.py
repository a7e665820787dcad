"""Several processes compute what one does, and however one of them dies, none is left behind or waiting.

Starting a process takes seconds (it imports torch), so one start serves many checks.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from in_processes import CASES, everything, fail
from torch import nn

from mkdt.errors import UserError
from mkdt.teacher import distributed
from mkdt.teacher.distributed import ALONE

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    """Let other processes import what they are to run."""
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.getenv("PYTHONPATH")])])
        patch.setenv("PYTHONPATH", path)
        yield


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What several processes find, as rank 0 saw it."""
    return distributed.run(everything, request.param, CPU, {}, {})


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process finds."""
    return distributed.run(everything, 1, CPU, {}, {})


@pytest.mark.slow
def test_several_processes_do_what_one_does(together: dict[str, Any], alone: dict[str, Any]) -> None:
    """Same weights and running statistics after five steps; same gradient; a resumed run has the straight one's bits."""
    for case in CASES:
        mine, theirs = together[f"teacher, {case}"], alone[f"teacher, {case}"]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")
        mine, theirs = together[f"gradient, {case}"], alone[f"gradient, {case}"]
        assert float(theirs.norm()) > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=lambda text, case=case: f"{case}: {text}")
    assert [torch.equal(resumed, together["straight"]) for resumed in together["resumed"]] == [True] * 3
    assert together["names"] == alone["names"], "a state that one process can read"
    assert torch.equal(together["seen"], torch.arange(12))


def test_alone_nothing_is_changed() -> None:
    """One process: no launch, no wrapper, no copy."""
    model, rows = nn.Linear(2, 2), torch.arange(6)
    assert ALONE.replicate(model) is model
    assert ALONE.gather(rows) is rows
    assert torch.equal(ALONE.share(rows), rows)
    assert distributed.run(lambda a, b, **rest: (a, b, rest), 1, CPU, {"a": 1}, {"b": 2}) == (
        1, 2, {"device": CPU, "processes": ALONE},
    )  # fmt: skip


def test_more_gpus_than_there_are_is_one_sentence() -> None:
    """Said before anything is started."""
    with pytest.raises(UserError, match=r"teacher.devices is 99, but torch sees \d+ GPU"):
        distributed.run(everything, 99, torch.device("cuda"), {}, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raises", UserError, "rank 1 of 2 processes failed: ValueError: no luck"),
        ("is killed", UserError, "rank 1 of 2 processes was killed .SIGKILL"),
        ("is my own", ZeroDivisionError, "mine"),
    ],
)
def test_a_failure_ends_all_with_its_reason(
    how: str, error: type[Exception], message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hang, no orphan, threads as before, and the reason is that of the process that failed first."""
    monkeypatch.setattr(logging.getLogger("mkdt"), "propagate", True)  # a stage of another test may have ended it
    begun, threads, before = time.monotonic(), torch.get_num_threads(), children(os.getpid())
    with pytest.raises(error, match=message):
        distributed.run(fail, 2, CPU, {"how": how}, {})
    assert time.monotonic() - begun < 45
    assert not dist.is_initialized()
    assert torch.get_num_threads() == threads
    assert children(os.getpid()) == before
    assert ("Traceback" in caplog.text) == (how == "raises"), "the log has where the other process failed"


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process, without multiprocessing's resource tracker, which stays."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z" and b"resource_tracker" not in (entry / "cmdline").read_bytes():
            pids.append(int(entry.name))
    return pids


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def start_waiting(folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A job of two processes of which rank 0 never comes back from its call, and the process id of the other."""
    code = f"""
import torch
from mkdt.teacher import distributed
from in_processes import wait_for_ever
distributed.GRACE_SECONDS = 0.5
distributed.run(wait_for_ever, 2, torch.device("cpu"), {{"folder": {str(folder)!r}}}, {{}})
"""
    job = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "1").is_file() or not (folder / "1").read_text():
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job, int((folder / "1").read_text())


@pytest.mark.slow
def test_the_others_ignore_signals_and_die_with_rank_0(tmp_path: Path) -> None:
    """SLURM signals every process of a job: only rank 0 decides. Killed without warning, it leaves no orphan."""
    job, other = start_waiting(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(other, number)
    time.sleep(0.3)
    assert alive(other)
    job.kill()
    job.communicate()
    deadline = time.monotonic() + 10
    while alive(other):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_lost_process_ends_a_rank_0_that_nothing_tells(tmp_path: Path) -> None:
    """A collective on a GPU may wait for a lost process for ever: rank 0 is ended, with the reason."""
    job, other = start_waiting(tmp_path)
    os.kill(other, signal.SIGKILL)
    _, text = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "rank 1 of 2 processes was killed (SIGKILL)" in text


def test_a_process_that_dies_while_it_starts_ends_the_job(tmp_path: Path) -> None:
    """It never reads its share of the images: rank 0 must not wait for it, however large they are."""
    code = """
import multiprocessing, torch
from mkdt.teacher import distributed
distributed.GRACE_SECONDS = 0.5
multiprocessing.set_executable("/bin/false")
distributed.run(print, 2, torch.device("cpu"), {"images": torch.zeros(5_000_000)}, {})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "rank 1 of 2 processes ended with code 1" in done.stderr
