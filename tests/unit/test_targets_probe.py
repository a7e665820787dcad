"""The probe that says what targets are worth before experts are trained on them."""

import pytest
import torch
from torch import Tensor

from mkdt import targets_probe
from mkdt.targets_probe import probe_targets

STREAM = torch.Generator().manual_seed(0)
LABELS = torch.arange(300) % 3
NOISE = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=STREAM)  # pixels that say nothing
GOOD = torch.eye(3)[LABELS] + 0.05 * torch.randn(300, 3, generator=STREAM)


def split(targets: Tensor, images: Tensor = NOISE) -> dict[str, float]:
    """The last hundred rows are the validation split."""
    held_out = targets[200:], images[200:], LABELS[200:]
    return probe_targets(targets[:200], images[:200], LABELS[:200], held_out, seed=0)


def test_good_targets_beat_pixels_that_say_nothing() -> None:
    """Separable classes give nearly all; noise gives chance, a third."""
    found = split(GOOD)
    assert found["targets"] > 98
    assert 15 < found["pixels"] < 55
    assert (found["labels"], found["held_out"]) == (200, 100)


def test_rows_in_the_wrong_order_are_seen() -> None:
    """Targets of other images score like chance: what no digest proves, the probe shows."""
    assert split(GOOD[torch.randperm(300, generator=torch.Generator().manual_seed(1))])["targets"] < 55


def test_pixels_that_say_all_beat_targets_of_noise() -> None:
    """The comparison that the warning rests on must go both ways."""
    bright = (LABELS * 100)[:, None, None, None].expand(300, 1, 8, 8).byte()
    found = split(torch.randn(300, 3, generator=STREAM), bright)
    assert found["pixels"] > 98 > found["targets"] + 40


def test_without_a_validation_split_other_training_images_score() -> None:
    """Targets that were brought have rows for the training images alone: no image is both fitted to and scored."""
    found = probe_targets(GOOD, NOISE, LABELS, None, seed=0)
    assert (found["labels"], found["held_out"]) == (150, 150)
    assert found["targets"] > 98
    memorised = torch.eye(300)  # each row is another unit vector: nothing carries over to other rows
    assert probe_targets(memorised, NOISE, LABELS, None, seed=0)["targets"] < 55


@pytest.mark.parametrize("size", [8, 16, 48])
def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A large source must not make this a long stage: labels, scored images and pixels have a limit."""
    monkeypatch.setattr(targets_probe, "LABELS", 30)
    widths: list[int] = []
    fit = targets_probe.fit_linear
    monkeypatch.setattr(targets_probe, "fit_linear", lambda x, y, l2: widths.append(x.shape[1]) or fit(x, y, l2))
    images = torch.zeros(300, 1, size, size, dtype=torch.uint8)
    found = split(GOOD, images)
    assert (found["labels"], found["held_out"]) == (30, 30)
    assert widths == [3, min(size, 16) ** 2]


def test_the_same_seed_gives_the_same_figures() -> None:
    """A report that changes from run to run would be no artifact."""
    torch.manual_seed(1)
    first = split(GOOD)
    torch.manual_seed(2)
    assert split(GOOD) == first
