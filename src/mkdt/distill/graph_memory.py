"""The memory that graphs of inner steps take, and how many graphs fit (``distill.retain: auto``)."""

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from mkdt.distill.hypergradient import Step
from mkdt.networks.flat import LossFn


def bytes_per_step(
    loss_fn: LossFn, theta: Tensor, images: Tensor, targets: Tensor, rows: Tensor, learn_targets: bool = True
) -> int:
    """Measure the memory of the graph of one step, in bytes: all tensors saved for backward, each counted once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step = Step(loss_fn, theta, images[rows], targets[rows], learn_targets)
    return sum(storages.values()) + step.gradient.nbytes


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes; on the CPU within the limits of the process's control groups."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = psutil.virtual_memory().available
    root, own = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.is_file() else []
    for group in (line[3:].lstrip("/") for line in lines if line.startswith("0::")):
        for folder in (root / group, *(root / group).parents):  # version 2: each group above may set a limit too
            limit, used = folder / "memory.max", folder / "memory.current"
            if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
                free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def choose_retain(
    loss_fn: LossFn,
    theta: Tensor,
    images: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    learn_targets: bool = True,
    share: float = 0.5,
) -> int:
    """Return the number of last steps, 0 to N, whose graphs fit into the free memory.

    Args:
        loss_fn, theta, images, targets, batches, learn_targets: as for ``unroll``.
        share: of the free memory that graphs may take. The rest is for other jobs and for the backward sweep, which
            needs the memory of a few steps.
    """
    largest = max(batches, key=len)
    need = bytes_per_step(loss_fn, theta, images, targets, largest, learn_targets)
    vectors = (len(batches) + 4) * theta.nbytes
    return max(0, min(len(batches), int((share * free_bytes(theta.device) - vectors) // need)))
