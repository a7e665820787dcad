"""Fine-tuning: all weights of a copy move, the seed decides the result, non-finite predictions count as errors."""

import copy
from typing import Any

import pytest
import torch
from labelled_images import labelled
from torch import Tensor, nn

from mkdt.evaluate.fine_tuning import finetune, score_finetuned
from mkdt.evaluate.labels import all_draws
from mkdt.networks.backbones import build_backbone

RECIPE = {"steps": 60, "batch": 8, "weight_decay": 0.0}


def test_finetuning_trains_the_backbone_and_leaves_the_given_one(batch_norm_spec: dict[str, Any]) -> None:
    """All weights of the copy move, and to the same values in every run."""
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
    """The head takes its width from the features of the backbone."""
    images, labels = torch.eye(4).reshape(4, 1, 2, 2).repeat(3, 1, 1, 1), torch.arange(12) % 4
    network = finetune(nn.Flatten(), images, labels, 4, 1.0, RECIPE, seed=0)
    assert torch.equal(network(images).argmax(1), labels)


def test_a_network_that_diverged_in_fine_tuning_scores_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """argmax of NaN is class 0: the share of that class must not become the accuracy."""

    class Broken(nn.Module):
        """Gives logits that are not finite."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), float("nan"))

    monkeypatch.setattr("mkdt.evaluate.fine_tuning.finetune", lambda *args: Broken())
    data = labelled()
    drawn = all_draws(data, [0.1, 0.5], 2, 0)
    rows = score_finetuned(nn.Flatten(), data, "test", drawn, 1e6, {}, 0, torch.device("cpu"))
    assert len(rows) == 4
    assert [row["accuracy"] for row in rows] == [0.0] * len(rows)
