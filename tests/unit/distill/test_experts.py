"""Test the training of experts and their trajectories."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mkdt.data.pixels import Normalised, normalise
from mkdt.distill.experts import train_expert
from mkdt.errors import UserError
from mkdt.networks.flat import flatten, load_state
from mkdt.networks.students import build_student

TRAINING: dict[str, Any] = {"epochs": 3, "batch": 7, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
Source = tuple[Tensor, Tensor]


def train(source: Source, spec: dict[str, Any], expert: int = 0, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Train an expert for a few epochs."""
    return train_expert(*source, spec, TRAINING | changes, seed=seed, expert=expert)


def test_rows_are_copies_of_the_weights_at_each_epoch(source: Source, spec: dict[str, Any]) -> None:
    """The public code stored references to the live weights on the CPU, so all rows equalled the last."""
    trajectory = train(source, spec)["trajectory"]
    count = sum(parameter.numel() for parameter in build_student(spec, 1, 8, 3, 0, "x").parameters())
    assert trajectory.shape == (TRAINING["epochs"] + 1, count)
    assert trajectory.dtype == torch.float32
    for k in range(TRAINING["epochs"]):
        assert not torch.equal(trajectory[k], trajectory[k + 1])
    for epochs in range(3):  # row k is what a training of k epochs ends with
        assert torch.equal(train(source, spec, epochs=epochs)["trajectory"][-1], trajectory[epochs])


def test_row_zero_is_the_initial_student(source: Source, spec: dict[str, Any]) -> None:
    """Distillation from epoch 0 starts there; weights after some steps would shift all start epochs."""
    initial = flatten(build_student(spec, 1, 8, 3, 0, "expert weights", 2))
    assert torch.equal(train(source, spec, expert=2)["trajectory"][0], initial)


def test_the_first_epoch_is_plain_sgd_on_the_mse(source: Source, spec: dict[str, Any]) -> None:
    """With one full batch the result is theta - lr * (gradient + weight_decay * theta)."""
    images, targets = source
    made = train(source, spec, epochs=1, batch=len(images), lr=0.2, weight_decay=0.1)["trajectory"]
    model = build_student(spec, 1, 8, 3, 0, "x")
    load_state(model, made[0])
    loss = ((model(images) - targets) ** 2).mean()
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(made[1], made[0] - 0.2 * (gradient + 0.1 * made[0]), rtol=1e-4, atol=1e-6)


def test_images_that_stay_bytes_give_the_same_weights(source: Source, spec: dict[str, Any]) -> None:
    """Normalising batches of uint8 images gives the same bits as normalising all images at once."""
    pixels = torch.arange(source[0].numel(), dtype=torch.uint8).reshape(source[0].shape)
    mean, std = torch.tensor([0.4]), torch.tensor([0.3])
    lazy, whole = (
        train((images, source[1]), spec)
        for images in (  # type: ignore[arg-type]
            Normalised(pixels, mean, std),
            normalise(pixels, mean, std),
        )
    )
    assert all(torch.equal(lazy[name], whole[name]) for name in whole)


def test_losses_are_each_images_mse_after_the_first_epoch(source: Source, spec: dict[str, Any]) -> None:
    """They rank the images for the initial set; another epoch, or a mean over images, would choose other images."""
    images, targets = source
    made = train(source, spec)
    model = build_student(spec, 1, 8, 3, 0, "x").eval()
    load_state(model, made["trajectory"][1])
    with torch.no_grad():
        wanted = ((model(images) - targets).double().numpy() ** 2).mean(1)
    assert made["losses"].shape == (len(images),)
    np.testing.assert_allclose(made["losses"].numpy(), wanted, rtol=1e-5)


def test_an_expert_is_the_same_whichever_were_trained_before(source: Source, spec: dict[str, Any]) -> None:
    """In the public code experts competed for names. Here expert k depends on k only."""
    torch.manual_seed(0)
    alone = train(source, spec, expert=3)
    torch.manual_seed(1)
    for expert in (0, 1):
        train(source, spec, expert=expert)
    after = train(source, spec, expert=3)
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_different_experts_and_seeds_differ_in_start_and_order(source: Source, spec: dict[str, Any]) -> None:
    """Equal experts would count as one expert. Initial weights and order of rows must both differ."""
    made = [train(source, spec, expert, seed)["trajectory"] for expert, seed in ((0, 0), (1, 0), (0, 1))]
    for k in range(3):
        for other in range(k):
            assert not torch.equal(made[k][0], made[other][0])
            assert not torch.equal(made[k][-1], made[other][-1])
    one_batch = [
        train(source, spec, batch=24, epochs=1)["trajectory"],
        train(source, spec, epochs=1)["trajectory"],
    ]
    assert torch.equal(one_batch[0][0], one_batch[1][0])
    assert not torch.allclose(one_batch[0][1], one_batch[1][1])


def test_training_lowers_the_reported_loss(source: Source, spec: dict[str, Any]) -> None:
    """The reported mean loss over images falls."""
    seen: list[tuple[int, dict[str, float]]] = []
    train_expert(
        *source,
        spec,
        TRAINING | {"epochs": 8},
        seed=0,
        expert=5,
        report=lambda epoch, values: seen.append((epoch, values)),
    )
    assert [epoch for epoch, _ in seen] == list(range(1, 9))
    assert seen[-1][1]["loss/5"] < 0.7 * seen[0][1]["loss/5"]


def test_a_diverging_expert_names_itself_and_the_key(source: Source, spec: dict[str, Any]) -> None:
    """Otherwise distillation would be the first to notice a NaN trajectory."""
    with pytest.raises(UserError, match=r"expert 4: diverged in epoch \d+.* lower experts\.lr"):
        train(source, spec, expert=4, lr=1e20, epochs=5)


def test_a_resumed_expert_equals_a_straight_one(
    source: Source, spec: dict[str, Any], freeze: Callable[[Any], Any]
) -> None:
    """Resuming from each state gives the same bits, so the state has momentum and the losses of epoch 1."""
    states: list[dict[str, Any]] = []
    training = TRAINING | {"epochs": 4}
    straight = train_expert(
        *source, spec, training, seed=0, expert=1, checkpoint=lambda make: states.append(freeze(make()))
    )
    assert [state["epoch"] for state in states] == [1, 2, 3, 4]
    assert [len(state["trajectory"]) for state in states] == [2, 3, 4, 5]
    for state in states:
        torch.manual_seed(state["epoch"])
        epochs: list[int] = []
        resumed = train_expert(
            *source,
            spec,
            training,
            seed=0,
            expert=1,
            state=state,
            report=lambda epoch, values, epochs=epochs: epochs.append(epoch),
        )
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)
        assert epochs == list(range(state["epoch"] + 1, 5))


def test_epoch_losses_are_what_was_reported(source: Source, spec: dict[str, Any]) -> None:
    """The stored curve and the reported one are the same: the mean over images."""
    seen: list[float] = []
    made = train_expert(
        *source,
        spec,
        TRAINING | {"lr": 0.0},
        seed=0,
        expert=1,
        report=lambda epoch, values: seen.append(values["loss/1"]),
    )
    assert made["epoch_losses"].tolist() == seen
    # Without learning every epoch's loss is the mean of the images' losses, though the last batch is smaller.
    np.testing.assert_allclose(seen, float(made["losses"].mean()), rtol=1e-5)
