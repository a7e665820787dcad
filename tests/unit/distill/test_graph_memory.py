"""The number of graphs that are kept, and the memory that one graph takes."""

import psutil
import pytest
import torch

from mkdt.distill import graph_memory
from mkdt.distill.graph_memory import bytes_per_step, choose_retain
from mkdt.networks.flat import flat_mse, flatten
from mkdt.networks.students import build_student

SPEC = {"architecture": "convnet", "depth": 2, "width": 8, "norm": "instance"}


def test_auto_keeps_as_many_graphs_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little free memory no graph is kept, with plenty all are; in between the number follows the memory."""
    student = build_student(SPEC, 1, 8, 2, 0, "x")
    loss_fn, theta = flat_mse(student), flatten(student)
    images, targets = torch.randn(3, 1, 8, 8), torch.randn(3, 2)
    batches = [torch.tensor(rows) for rows in ([0, 1], [2, 1], [0, 0, 2], [1])]
    need = bytes_per_step(loss_fn, theta, images, targets, batches[2])
    vectors = (len(batches) + 4) * theta.nbytes
    for free, kept in [(0, 0), (vectors + 2 * need, 2), (vectors + 3 * need - 1, 2), (10**12, 4)]:
        monkeypatch.setattr(graph_memory, "free_bytes", lambda device, free=free: free)
        assert choose_retain(loss_fn, theta, images, targets, batches, share=1.0) == kept


def test_bytes_per_step_grow_with_the_batch() -> None:
    """Twice the images take about twice the bytes; the parameters count once."""
    student = build_student(SPEC, 1, 8, 4, 0, "x")
    loss_fn, theta = flat_mse(student), flatten(student)
    images, targets = torch.randn(64, 1, 8, 8), torch.randn(64, 4)
    small, large = (bytes_per_step(loss_fn, theta, images, targets, torch.arange(count)) for count in (32, 64))
    assert 1.7 < large / small < 2.1
    assert small > 32 * 8 * 8 * 8 * 4  # at least one feature map


def test_free_memory_is_between_nothing_and_all_of_the_machine() -> None:
    """A wrong unit, or a limit of a control group that is read wrongly, would be outside."""
    assert 0 < graph_memory.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
