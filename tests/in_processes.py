"""What the processes of test_distributed run; a module that all of them can import by name."""

import copy
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mkdt.networks.backbones import build_backbone
from mkdt.networks.flat import flatten, flatten_state
from mkdt.networks.students import Projector
from mkdt.teacher.distributed import Processes
from mkdt.teacher.ssl import LOSSES
from mkdt.teacher.training import train_teacher

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


def wait_for_ever(device: torch.device, processes: Processes, folder: str) -> None:
    """Rank 0 stays out of the collective in which the other waits."""
    (Path(folder) / str(processes.rank)).write_text(str(os.getpid()))
    if processes.rank == 0:
        time.sleep(600)
    processes.gather(torch.zeros(1))
