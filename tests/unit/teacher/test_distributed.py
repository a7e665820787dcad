"""Several processes compute what one does, and however one of them dies, none is left behind or waiting.

Starting a process takes seconds (it imports torch), so one start serves many checks.
"""

import copy
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flatten, flatten_state
from mkdt.networks.students import Projector
from mkdt.teacher import distributed
from mkdt.teacher.distributed import ALONE, Processes
from mkdt.teacher.ssl import LOSSES
from mkdt.teacher.training import train_teacher

CPU = torch.device("cpu")
OPTIONS = {
    "barlow_twins": {"off_diagonal": 0.005},
    "simclr": {"temperature": 0.5},
    "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
}
PLAIN = {"architecture": "convnet", "depth": 1, "width": 8, "norm": "none"}
RESNET = {"architecture": "resnet", "blocks": [1], "width": 4}
# name: backbone, projector; without batch norm as with it, the joint batch is what counts
MODELS: dict[str, tuple[dict[str, Any], list[int]]] = {"plain": (PLAIN, [8]), "batch norm": (RESNET, [16, 8])}
CASES = [(loss, model) for loss in OPTIONS for model in MODELS]
SETTINGS: dict[str, Any] = {
    "augment": {
        "crop_scale": [0.7, 1.0],
        "flip": True,
        "rotate": 5,
        "shift": 0.05,
        "jitter": 0.2,
        "grayscale": 0,
        "blur": 0.5,
        "noise": 0.05,
    },
    "optimizer": "adamw",
    "lr": 3e-3,
    "weight_decay": 1e-4,
    "batch": 12,
    "epochs": 1,
    "warmup_epochs": 0,
}


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    """Let other processes import this file."""
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.getenv("PYTHONPATH")])])
        patch.setenv("PYTHONPATH", path)
        yield


def pictures(count: int) -> Tensor:
    """Grey images uint8 [count,1,8,8] with something in common."""
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.avg_pool2d(noise, 3, 1, 1) * 120 + 128).clamp(0, 255).byte()


def teach(device: torch.device, processes: Processes, loss: str, model: str, **changes: Any) -> nn.Module:
    """Five steps of the teacher, or as many as the changed settings say."""
    arguments = {key: changes.pop(key) for key in ("state", "checkpoint") if key in changes}
    backbone, projector = MODELS[model]
    settings = SETTINGS | {"method": loss, "loss": OPTIONS[loss], "backbone": backbone, "projector": projector}
    return train_teacher(
        pictures(60),
        torch.tensor([0.5]),
        torch.tensor([0.2]),
        settings | changes,
        seed=0,
        device=device,
        processes=processes,
        **arguments,
    )


def gradient(processes: Processes, loss: str, model: str) -> Tensor:
    """Float64 gradient of one loss of 12 images in all parameters."""
    stream = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    backbone = build_backbone(MODELS[model][0], 1, 8)
    network = nn.Sequential(backbone, Projector([backbone.dimension, *MODELS[model][1]])).double()  # type: ignore[list-item]
    replica = processes.replicate(network)
    views = [processes.share(torch.randn(12, 1, 8, 8, generator=stream, dtype=torch.float64)) for _ in range(2)]
    projections = replica(torch.cat(views)).chunk(2)
    LOSSES[loss](*map(processes.gather, projections), **OPTIONS[loss]).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])  # type: ignore[union-attr]


def everything(device: torch.device, processes: Processes) -> dict[str, Any]:
    """All that is compared between one process and several, in one go."""
    found: dict[str, Any] = {}
    for case in CASES:
        found[f"teacher, {case}"] = flatten_state(teach(device, processes, *case))
        found[f"gradient, {case}"] = gradient(processes, *case)
    # Each process keeps its own copy of the state, as if it had been read from the file; the model is wide enough for
    # DDP to cut its gradients into several parts for the sum.
    states: list[dict[str, Any]] = []
    wide: dict[str, Any] = {"epochs": 3, "projector": [512, 512]}
    keep: Callable[[Any], None] = lambda make: states.append(copy.deepcopy(make()))  # noqa: E731
    found["straight"] = flatten(teach(device, processes, "simclr", "plain", checkpoint=keep, **wide))
    found["resumed"] = [flatten(teach(device, processes, "simclr", "plain", state=state, **wide)) for state in states]
    found["names"] = list(states[0]["model"])
    found["seen"] = processes.gather(processes.share(torch.arange(12)))
    return found


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


def fail(device: torch.device, processes: Processes, how: str) -> None:
    """One process fails in its own way while the other waits for it in a collective."""
    if how == "raises" and processes.rank == 1:
        raise ValueError("no luck")
    if how == "is killed" and processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "is my own" and processes.rank == 0:
        raise ZeroDivisionError("mine")
    processes.gather(torch.zeros(1))
    raise AssertionError("the collective cannot have succeeded")


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
    begun, threads = time.monotonic(), torch.get_num_threads()
    with pytest.raises(error, match=message):
        distributed.run(fail, 2, CPU, {"how": how}, {})
    assert time.monotonic() - begun < 45
    assert not dist.is_initialized()
    assert torch.get_num_threads() == threads
    assert children(os.getpid()) == []
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


def wait_for_ever(device: torch.device, processes: Processes, folder: str) -> None:
    """Rank 0 stays out of the collective in which the other waits."""
    (Path(folder) / str(processes.rank)).write_text(str(os.getpid()))
    if processes.rank == 0:
        time.sleep(600)
    processes.gather(torch.zeros(1))


def start_waiting(folder: Path) -> "tuple[subprocess.Popen[str], int]":
    """A job of two processes of which rank 0 never comes back from its call, and the process id of the other."""
    code = f"""
import torch
from mkdt.teacher import distributed
from test_distributed import wait_for_ever
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
