"""How many images are encoded at once: the same numbers come out, and large images are not too many."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mkdt.distill.experts import train_expert
from mkdt.networks import batching
from mkdt.networks.batching import images_at_once
from mkdt.teacher.encoding import represent

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_larger_images_come_in_smaller_batches(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a smaller memory makes them smaller too; one image is the least, and what is no image counts as a pixel."""
    memory = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    sizes = [images_at_once((9, 3, size, size), device) for size in (8, 32, 64, 224, 5000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sizes[1] > sizes[2] > sizes[3]
    assert images_at_once((9, 512), device) >= sizes[0]
    memory.total_memory = 2**31
    fewer = images_at_once((9, 3, 32, 32), device)
    assert fewer < sizes[1] if device is CUDA else fewer == sizes[1]


def test_targets_and_losses_are_those_of_one_batch(
    source: tuple[Tensor, Tensor], spec: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float tolerance, whatever the batch."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    training = {"epochs": 1, "batch": 8, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    pixels = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
    made = []
    for at_once in (5, 24):
        monkeypatch.setattr(batching, "CPU_PIXELS", at_once * 64)
        losses = train_expert(*source, spec, training, seed=0, expert=0)["losses"]
        made.append((represent(network, pixels, torch.tensor([0.5]), torch.tensor([0.2]), CPU), losses))
    for few, all_at_once in zip(*made, strict=True):
        torch.testing.assert_close(few, all_at_once, rtol=1e-5, atol=1e-6)
