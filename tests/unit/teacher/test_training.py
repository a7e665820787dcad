"""SSL training of the teacher."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_settings import LOSSES, TEACHER
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.networks.flat import flatten_state
from mkdt.teacher import training
from mkdt.teacher.training import train_teacher

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.4]), torch.tensor([0.2])
Freeze = Callable[[Any], Any]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Return 60 digits: SSL needs images with common structure."""
    from mkdt.data.readers.arrays import load_raw

    return load_raw("digits", ".")["all"][0][:60]


def train(pixels: Tensor, seed: int = 0, **changes: Any) -> nn.Module:
    """Train shortly, with changed settings or arguments of ``train_teacher``."""
    arguments = {
        key: changes.pop(key)
        for key in ("state", "report", "checkpoint", "validation", "monitor_every")
        if key in changes
    }
    return train_teacher(pixels, MEAN, STD, TEACHER | changes, seed=seed, device=CPU, **arguments)


@pytest.mark.parametrize("method", LOSSES)
def test_the_loss_falls_and_the_representation_does_not_collapse(pixels: Tensor, method: str) -> None:
    """Each loss falls on digits; the representation is measured at the interval and after the last epoch."""
    seen: dict[int, dict[str, float]] = {}
    labels = torch.arange(60) % 10
    backbone = train(
        pixels,
        method=method,
        loss=LOSSES[method],
        epochs=9,
        report=lambda epoch, values, pictures=None: seen.update({epoch: values}),
        validation=(labels, pixels[:20], labels[:20]),
        monitor_every=2,
    )
    assert list(seen) == list(range(1, 10))
    assert seen[9]["loss"] < 0.9 * seen[1]["loss"]
    assert [epoch for epoch in seen if "representation_std" in seen[epoch]] == [2, 4, 6, 8, 9]
    assert seen[9]["representation_std"] > 0.01
    assert 0 <= seen[9]["off_diagonal"] <= 1
    assert 20 < seen[9]["knn_accuracy"] <= 100  # one neighbour is the image itself, so far above chance (10)
    assert not backbone.training


def test_the_learning_rate_warms_up_and_falls_to_nearly_zero(pixels: Tensor) -> None:
    """The reported rate is full at the end of the warm-up, then falls."""
    rates: list[float] = []
    train(pixels, epochs=6, warmup_epochs=2, report=lambda epoch, values, pictures=None: rates.append(values["lr"]))
    top = TEACHER["lr"]
    assert rates[1] == pytest.approx(top)
    assert rates[0] == pytest.approx(top / 2)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 0 < rates[-1] < 0.1 * top


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_resumed_training_equals_a_straight_one(pixels: Tensor, freeze: Freeze, optimizer: str) -> None:
    """Weights and running statistics have the same bits, from the state after any epoch."""
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 4}
    states: list[dict[str, Any]] = []
    straight = train(pixels, checkpoint=lambda make, now=False: states.append(freeze(make())), **options)
    assert [state["epoch"] for state in states] == [1, 2, 3, 4]
    for state in states:
        torch.manual_seed(state["epoch"])
        assert torch.equal(flatten_state(train(pixels, state=state, **options)), flatten_state(straight))


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_training_resumed_within_an_epoch_equals_a_straight_one(
    pixels: Tensor, freeze: Freeze, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, running statistics and the reported losses have the same bits, from the state after any step."""
    monkeypatch.setattr(training, "OFFER_SECONDS", 0.0)
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 2}
    states: list[dict[str, Any]] = []
    losses: dict[int, float] = {}

    def report(epoch: int, values: Any, pictures: Any = None) -> None:
        assert losses.setdefault(epoch, values["loss"]) == values["loss"]

    straight = train(pixels, checkpoint=lambda make, now=False: states.append(freeze(make())), report=report, **options)
    assert [(state["epoch"], len(state["losses"])) for state in states] == [
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    for state in states:
        torch.manual_seed(state["epoch"])
        assert torch.equal(flatten_state(train(pixels, state=state, report=report, **options)), flatten_state(straight))


def test_an_epoch_is_not_interrupted_by_saving_before_it_is_time(
    pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short epochs are saved at their end alone."""
    monkeypatch.setattr(training, "OFFER_SECONDS", 1e9)
    states: list[dict[str, Any]] = []
    train(pixels, epochs=2, checkpoint=lambda make, now=False: states.append(make()))
    assert [len(state["losses"]) for state in states] == [0, 0]


def test_the_seed_determines_the_teacher(pixels: Tensor) -> None:
    """Equal seeds give equal teachers at any state of the global generators; other seeds give other teachers."""
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        weights.append(flatten_state(train(pixels, seed, epochs=1)))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_every_step_and_both_views_have_their_own_random_draw(pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are not repeated in later epochs, and the two views of a pair differ."""
    drawn: list[float] = []

    class Recorder(nn.Module):
        """Records the next number of the random stream that the views would use."""

        def forward(self, images: Tensor, *part: int) -> Tensor:
            """Return the images unchanged."""
            drawn.append(float(torch.rand((), dtype=torch.float64)))
            return images

    monkeypatch.setattr("mkdt.teacher.training.build_views", lambda *args: Recorder())
    for seed in (0, 1):
        train(pixels, seed)
    assert len(drawn) == 2 * 3 * (60 // 16) * 2  # seeds, epochs, full batches, views
    assert len(set(drawn)) == len(drawn)


def test_monitoring_changes_nothing(pixels: Tensor) -> None:
    """Measuring the representation in every epoch does not change the weights."""
    labels = torch.arange(60) % 10
    monitored = train(pixels, monitor_every=1, validation=(labels, pixels, labels))
    assert torch.equal(flatten_state(monitored), flatten_state(train(pixels)))


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_loss_that_is_not_finite_is_a_user_error(
    pixels: Tensor, freeze: Freeze, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names epoch and key; no state with such weights is saved before, neither within an epoch."""
    monkeypatch.setattr(training, "OFFER_SECONDS", seconds)
    states: list[Any] = []
    with pytest.raises(UserError, match=r"teacher: diverged in epoch \d+.*: lower teacher\.lr"):
        train(
            pixels,
            optimizer="sgd",
            lr=1e30,
            warmup_epochs=0,
            checkpoint=lambda make, now=False: states.append(freeze(make())),
        )
    assert all(bool(value.isfinite().all()) for state in states for value in state["model"].values())
