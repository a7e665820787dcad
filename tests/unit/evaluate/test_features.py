"""Features from a frozen backbone: eval mode, and statistics of the training split."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from labelled_images import labelled
from torch import Tensor, nn

from mkdt.evaluate.features import Features

CPU = torch.device("cpu")


class Unsteady(nn.Module):
    """A backbone whose features differ in train mode, and are badly scaled in both modes."""

    def __init__(self, scale: Tensor | None = None, offset: float = 0.0) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(16) if scale is None else scale)
        self.offset = offset
        self.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
        self.norm.running_var.fill_(2.0)  # type: ignore[union-attr]
        self.calls: list[tuple[bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Normalise the 16 pixels, drop some out, scale them."""
        self.calls.append((self.training, len(images)))
        return self.dropout(self.norm(images.flatten(1))) * self.scale + self.offset


def test_features_are_taken_in_eval_mode_for_all_splits() -> None:
    """The public code has this fault: train mode for training features, eval mode for test features."""
    data, backbone = labelled(), Unsteady().train()
    before = backbone.norm.running_mean.clone()  # type: ignore[union-attr]
    rows = torch.arange(0, 80, 3)
    features = Features(backbone, data, CPU, rows, standardise=False)
    got = {
        "train": features.train(rows),
        **{split: features.held_out(split) for split in ("validation", "test")},
    }
    assert {training for training, _ in backbone.calls} == {False}
    assert torch.equal(backbone.norm.running_mean, before)  # type: ignore[arg-type]
    plain = Unsteady().eval()
    for split, images in (
        ("train", data.train[0][rows]),
        ("validation", data.validation[0]),
        ("test", data.test[0]),
    ):
        np.testing.assert_allclose(got[split], plain(images).detach().numpy(), rtol=1e-5, atol=1e-6)
        assert got[split].dtype == np.float64


def test_features_are_standardised_with_the_training_split() -> None:
    """Statistics of the drawn rows would differ between draws; those of the test split would leak."""
    scale = torch.logspace(-3, 3, 16)
    data = labelled()
    shifted = replace(data, test=(data.test[0] + 5, data.test[1]))
    features = Features(Unsteady(scale), shifted, CPU, torch.tensor([3, 5]), standardise=True)
    everything = features.train(torch.arange(80))
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(everything.std(0), 1, rtol=1e-6)
    np.testing.assert_array_equal(features.train(torch.tensor([5, 3])), everything[[5, 3]])
    raw = Unsteady(scale).eval()(shifted.train[0]).detach().double().numpy()
    test = Unsteady(scale).eval()(shifted.test[0]).detach().double().numpy()
    np.testing.assert_allclose(features.held_out("test"), (test - raw.mean(0)) / raw.std(0), rtol=1e-4, atol=1e-5)
    assert features.held_out("test").mean() > 1


def test_statistics_of_a_large_split_come_from_evenly_spread_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on encoded images must not pick the first rows: sets are often sorted by class."""
    monkeypatch.setattr("mkdt.evaluate.features.STATISTICS_IMAGES", 20)
    data = labelled(count=200)
    order = data.train[1].argsort(stable=True)
    data = replace(data, train=(data.train[0][order], data.train[1][order]))
    backbone = Unsteady()
    rows = torch.tensor([0, 1, 7, 198])
    features = Features(backbone, data, CPU, rows, standardise=True)
    assert 20 <= sum(count for _, count in backbone.calls) <= 24  # each needed image once
    raw = Unsteady().eval()(data.train[0]).detach().double().numpy()
    # The first 20 rows are all of one class: their deviation would be the noise's, several times smaller.
    sizes = np.abs(features.train(rows)).mean() / np.abs((raw[rows] - raw.mean(0)) / raw.std(0)).mean()
    assert 0.8 < sizes < 1.25


def test_a_dead_feature_does_not_become_nan() -> None:
    """An untrained ReLU network has features that are always zero."""
    scale = torch.ones(16)
    scale[3] = 0
    features = Features(Unsteady(scale), labelled(), CPU, torch.arange(5), standardise=True)
    for values in (features.train(torch.arange(5)), features.held_out("test")):
        assert np.isfinite(values).all()
        assert not values[:, 3].any()
