"""Quality of the representation during training."""

import pytest
import torch
from torch import nn

from mkdt.teacher.monitoring import representation_quality


def test_the_sample_has_all_classes_of_sets_that_are_published_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample is evenly spaced, because the first images may belong to few classes."""
    count = 12_000
    labels = torch.arange(count) // 1000
    pixels = (labels * 20).byte()[:, None, None, None].expand(-1, 1, 8, 8)
    monkeypatch.setattr("mkdt.teacher.monitoring.represent", lambda backbone, images, *rest: images.flatten(1).float())
    mean, std = torch.tensor([0.4]), torch.tensor([0.2])
    values = representation_quality(nn.Identity(), pixels, mean, std, (labels, pixels, labels), torch.device("cpu"))
    assert values["knn_accuracy"] == 100
