"""Fine-tuning: it moves all weights of a copy, is seeded, and learns what a frozen probe cannot."""

import copy
from typing import Any

import torch
from torch import nn

from mkdt.evaluate.fine_tuning import finetune
from mkdt.networks.backbones import build_backbone

RECIPE = {"steps": 60, "batch": 8, "weight_decay": 0.0}


def test_finetuning_trains_the_backbone_and_leaves_the_given_one(batch_norm_spec: dict[str, Any]) -> None:
    """All weights move, in a copy, and the same way in every run."""
    torch.manual_seed(0)
    backbone = build_backbone(batch_norm_spec, 1, 8)
    before = copy.deepcopy(backbone.state_dict())
    labels = torch.arange(24) % 3
    images = torch.randn(3, 1, 8, 8)[labels] + 0.3 * torch.randn(24, 1, 8, 8)
    network = finetune(backbone, images, labels, 3, 0.1, RECIPE, seed=0)
    assert not network.training
    assert (network(images).argmax(1) == labels).float().mean() > 0.9
    for name, value in network[0].state_dict().items():  # type: ignore[index]
        assert not torch.equal(value, before[name]), name
        assert torch.equal(backbone.state_dict()[name], before[name])
    torch.manual_seed(5)
    again = finetune(backbone, images, labels, 3, 0.1, RECIPE, seed=0)
    for value, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other)


def test_a_network_without_weights_gets_a_head() -> None:
    """The width is what the backbone gives, whatever it is."""
    images, labels = torch.eye(4).reshape(4, 1, 2, 2).repeat(3, 1, 1, 1), torch.arange(12) % 4
    network = finetune(nn.Flatten(), images, labels, 4, 1.0, RECIPE, seed=0)
    assert torch.equal(network(images).argmax(1), labels)
