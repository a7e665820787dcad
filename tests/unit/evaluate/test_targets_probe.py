"""The probe on targets before experts are trained on them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mkdt.evaluate import targets_probe
from mkdt.evaluate.labels import Downstream, at_chance, chance_level
from mkdt.evaluate.selection import select
from mkdt.evaluate.student_grid import StudentGrid
from mkdt.evaluate.targets_probe import Encoder, probe_statistics, probe_targets, statistics_in_words

STREAM = torch.Generator().manual_seed(0)
LABELS = torch.arange(300) % 3
NOISE = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=STREAM)  # pixels without information
GOOD = torch.eye(3)[LABELS] + 0.05 * torch.randn(300, 3, generator=STREAM)
SETTINGS: dict[str, Any] = {"label_fractions": [0.1, 0.3], "label_draws": 2, "l2": 1e-3, "standardise": True}


def split(targets: Tensor, images: Tensor = NOISE) -> list[dict[str, float]]:
    """Probe targets; the last hundred rows are the validation split."""
    held_out = targets[200:], images[200:], LABELS[200:]
    return probe_targets(targets[:200], images[:200], LABELS[:200], held_out, SETTINGS, seed=0, dataset="toy")


def test_good_targets_beat_pixels_of_noise() -> None:
    """Separable classes give nearly 100 %; noise gives chance, a third."""
    rows = split(GOOD)
    assert [(row["label_fraction"], row["labels"]) for row in rows] == [(0.1, 20), (0.3, 60)]
    for row in rows:
        assert row["targets"] > 98
        assert 15 < row["pixels"] < 55


def test_rows_in_the_wrong_order_score_at_chance() -> None:
    """The probe shows targets of other images, which no digest can show."""
    wrong = GOOD[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert all(row["targets"] < 55 for row in split(wrong))


def test_good_pixels_beat_targets_of_noise() -> None:
    """The warning needs this comparison."""
    bright = (LABELS * 100)[:, None, None, None].expand(300, 1, 8, 8).byte()
    for row in split(torch.randn(300, 3, generator=STREAM), bright):
        assert row["pixels"] > 98 > row["targets"] + 40


def test_targets_are_scored_as_students_are_on_the_same_labels() -> None:
    """The teacher's accuracies can be compared with those of its students on validation."""
    tail = torch.randn(300, 4, generator=STREAM)
    targets = torch.cat([GOOD + tail[:, :3], tail], 1)
    data = Downstream(
        "toy", *[(targets[part], LABELS[part]) for part in (slice(200), slice(200, 300), slice(200, 300))]
    )
    students = StudentGrid({(0, 0): lambda rate, step: nn.Identity()}, {(0, 0): [0.1]}, [1])
    rows = select(students, data, SETTINGS | {"selection_draws": 2}, seed=0, device=torch.device("cpu"))
    for row in split(targets):
        of_student = [r["accuracy"] for r in rows if r["label_fraction"] == row["label_fraction"]]
        assert row["targets"] == pytest.approx(sum(of_student) / 2)


def test_without_a_validation_split_half_of_the_training_images_score() -> None:
    """Targets from elsewhere have rows for training images only: no image is both fitted and scored."""
    rows = probe_targets(GOOD, NOISE, LABELS, None, SETTINGS, seed=0, dataset="toy")
    assert [row["labels"] for row in rows] == [15, 45]
    assert all(row["targets"] > 98 for row in rows)
    memorised = torch.eye(300)  # each row is another unit vector: no row helps to classify another
    everything = SETTINGS | {"label_fractions": [1.0]}
    assert probe_targets(memorised, NOISE, LABELS, None, everything, seed=0, dataset="toy")[0]["targets"] < 55


@pytest.mark.parametrize("size", [8, 48])
def test_the_number_of_scored_images_and_of_pixels_is_limited(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A large source must not make this a long stage."""
    monkeypatch.setattr(targets_probe, "HELD_OUT", 30)
    seen: list[tuple[int, ...]] = []
    scored = targets_probe.score

    def watched(features: Any, data: Downstream, *rest: Any) -> Any:
        seen.append(features.held_out("validation").shape)
        return scored(features, data, *rest)

    monkeypatch.setattr(targets_probe, "score", watched)
    split(GOOD, torch.zeros(300, 1, size, size, dtype=torch.uint8))
    assert seen == [(30, 3), (30, min(size, 16) ** 2)]


class Threshold(nn.Module):
    """A teacher that sees a class only if its input is in the units that it was trained with."""

    def forward(self, images: Tensor) -> Tensor:
        """Say of the mean pixel, here -1, 0 or 1, which it is; all else looks alike."""
        value = images.mean((1, 2, 3))
        return torch.stack([(value - place).abs() < 0.3 for place in (-1, 0, 1)], 1).float()


def test_the_probe_says_when_statistics_matter() -> None:
    """A teacher that was trained with other statistics than the source's makes poor targets with these."""
    bright = (50 + 100 * LABELS)[:, None, None, None].expand(300, 1, 8, 8).byte()
    trained = Encoder(Threshold(), torch.tensor([150 / 255]), torch.tensor([100 / 255]))
    other = Encoder(Threshold(), torch.tensor([0.5]), torch.tensor([0.02]))
    scores = {}
    for name, made, alternative in (("right", trained, other), ("wrong", other, trained), ("same", trained, trained)):
        targets = made(bright)
        held_out = targets[200:], bright[200:], LABELS[200:]
        probed = targets[:200], bright[:200], LABELS[:200], held_out, SETTINGS
        scores[name] = probe_statistics(alternative, *probed, seed=0, dataset="toy")
    assert scores["right"]["labels"] == 20  # of the smallest fraction
    assert scores["right"]["targets"] == scores["wrong"]["other"] > 98
    assert scores["right"]["other"] == scores["wrong"]["targets"] < 60
    for name, warned in (("right", False), ("wrong", True), ("same", False)):
        sentence, warn = statistics_in_words(scores[name], "mix_bt for cifar10")
        assert warn == warned
        assert "mix_bt for cifar10" in sentence
        assert ("teacher.checkpoint.mean" in sentence) == warned
        assert ("hardly" in sentence) == (name == "same")


def test_the_encoder_sees_pixels_in_the_given_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks too."""
    monkeypatch.setattr(targets_probe, "ENCODED", 7)
    mean, std = torch.tensor([0.4]), torch.tensor([0.2])
    found = Encoder(nn.Flatten(), mean, std)(NOISE[:20])
    torch.testing.assert_close(found, ((NOISE[:20].float() / 255 - 0.4) / 0.2).flatten(1))


def test_the_same_seed_gives_the_same_accuracies() -> None:
    """The global generator has no influence."""
    torch.manual_seed(1)
    first = split(GOOD)
    torch.manual_seed(2)
    assert split(GOOD) == first


def test_labels_dealt_at_random_are_at_chance() -> None:
    """Neither images nor targets predict them; good targets or good pixels alone are above chance."""
    bright = (LABELS * 100)[:, None, None, None].expand(300, 1, 8, 8).byte()
    dealt = LABELS[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    held_out = GOOD[200:], bright[200:], dealt[200:]
    rows = probe_targets(GOOD[:200], bright[:200], dealt[:200], held_out, SETTINGS, seed=0, dataset="toy")
    assert at_chance(rows)
    assert all(row["chance"] == chance_level(dealt[200:]) for row in rows)
    assert not at_chance(split(GOOD))
    assert not at_chance(split(torch.randn(300, 3, generator=STREAM), bright))


@pytest.mark.parametrize(
    ("chance", "scored", "said"),
    [
        (15, 20, False),
        (12.5, 111, False),
        (12.5, 112, True),
        (50, 16, True),
        (50, 15, False),
        (1, 1584, True),
        (100, 500, False),
    ],
)
def test_guessing_is_only_said_where_enough_images_score(chance: float, scored: int, said: bool) -> None:
    """Two deviations are at most half of chance; where all labels are one class, nothing can be above it."""
    row = {"targets": chance, "pixels": chance, "chance": chance, "scored": scored}
    assert at_chance([row]) == said
    assert at_chance([row | {"pixels": chance / 2}]) == said
    assert not at_chance([])


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    """With classes of unequal size it is more than one by their number."""
    assert chance_level(torch.tensor([2, 0, 2, 1])) == 50
