"""Test unrolled distillation: its gradient against the plain unroll, windows, averages, views, and resuming."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mkdt import seeding
from mkdt.data.pixels import normalise
from mkdt.distill.bptt import bptt_set, draw_iteration, longest_at
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.networks.divergence import Diverged
from mkdt.networks.students import build_student

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "iterations": 5,
    "steps": 4,
    "window": None,
    "losses_at": [],
    "curriculum": False,
    "outer_batch": 10,
    "batch": 4,
    "momentum": 0.9,
    "image_optimizer": "adam",
    "image_lr": 0.05,
    "learn_targets": True,
    "target_optimizer": "adam",
    "target_lr": 0.05,
    "step_size": {"initial": 0.1, "lr": 0.01, "space": "log"},
    "schedule": "cosine",
    "average": 0,
    "retain": 0,
    "compile": False,
    "pictures": 2,
}
PLAIN = {
    "image_optimizer": "sgd",
    "target_optimizer": "sgd",
    "schedule": "constant",
    "step_size": {"initial": 0.1, "lr": 0.01, "space": "plain"},
}
MakeSet = Callable[..., SyntheticSet]
Run = Callable[..., tuple[SyntheticSet, Tensor]]
Freeze = Callable[[Any], Any]
NAMES = ("images", "targets", "step_size")


@pytest.fixture
def pictures(source: tuple[Tensor, Tensor]) -> Source:
    """The tiny source as bytes, with its targets."""
    images, targets = source
    pixels = ((images - images.min()) / (images.max() - images.min()) * 255).byte()
    return Source(pixels, targets=targets)


@pytest.fixture
def run(pictures: Source, make_set: MakeSet, spec: dict[str, Any]) -> Run:
    """Distil from the tiny source; settings and arguments may be changed."""

    def call(initial: SyntheticSet | None = None, **changes: Any) -> tuple[SyntheticSet, Tensor]:
        keys = ("state", "report", "checkpoint", "seed", "distill_seed")
        options = {"seed": 0, "distill_seed": 0} | {key: changes.pop(key) for key in keys if key in changes}
        return bptt_set(initial or make_set(), pictures, spec, SETTINGS | changes, device=CPU, **options)

    return call


def views_of(initial: SyntheticSet) -> SyntheticSet:
    """The same images in two views, with other targets for the second."""
    return replace(initial, targets=torch.cat([initial.targets, -initial.targets]), views=("identity", "mirror"))


def plain_gradients(
    initial: SyntheticSet, pictures: Source, spec: dict[str, Any], settings: dict[str, Any]
) -> list[Tensor]:
    """Images', targets' and rate's gradients of the first iteration, by one graph of torch's own SGD arithmetic."""
    stream = seeding.generator(0, "bptt", 0, 0)
    draw = draw_iteration(len(initial.targets), len(pictures.images), settings, 0, stream)
    model = build_student(spec, 1, 8, 3, 0, "bptt student", 0, 0)
    images, targets = initial.images.clone().requires_grad_(), initial.targets.clone().requires_grad_()
    rate = torch.tensor(settings["step_size"]["initial"], requires_grad=True)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in weights.items()}
    losses = []
    real = normalise(pictures.images[draw.real], initial.mean, initial.std), pictures.targets[draw.real]
    for step, rows in enumerate(draw.rows):
        seen = torch.cat([images, images.flip(3)]) if len(initial.views) == 2 else images
        guess = torch.func.functional_call(model, weights, (seen[rows],))
        gradients = torch.autograd.grad(F.mse_loss(guess, targets[rows]), list(weights.values()), create_graph=True)
        for (name, value), gradient in zip(list(weights.items()), gradients, strict=True):
            velocity[name] = settings["momentum"] * velocity[name] + gradient
            weights[name] = value - rate * velocity[name]
        if step + 1 <= draw.free:  # neither the set nor the rate is differentiated so far back
            weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
            velocity = {name: value.detach() for name, value in velocity.items()}
        if step + 1 in {*settings["losses_at"], len(draw.rows)}:
            losses.append(F.mse_loss(torch.func.functional_call(model, weights, (real[0],)), real[1]))
    return list(torch.autograd.grad(torch.stack(losses).mean(), [images, targets, rate]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retain": 9},
        {"momentum": 0.0},
        {"losses_at": [1, 3]},
        {"window": 2},
        {"window": 2, "retain": "auto"},
        {"views": 2},
    ],
    ids=str,
)
def test_one_update_is_a_step_against_the_plain_gradient(
    run: Run, make_set: MakeSet, pictures: Source, spec: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Momentum, losses at several steps, a window and views are differentiated exactly."""
    changes = dict(changes)
    initial = views_of(make_set()) if changes.pop("views", 0) else make_set()
    settings = SETTINGS | PLAIN | changes | {"iterations": 1, "image_lr": 2.0, "target_lr": 3.0}
    by_images, by_targets, by_rate = plain_gradients(initial, pictures, spec, settings)
    final, _ = run(initial, **settings)
    assert by_images.any()
    torch.testing.assert_close(final.images, initial.images - 2.0 * by_images, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(final.targets, initial.targets - 3.0 * by_targets, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(final.step_size, torch.tensor(0.1) - 0.01 * by_rate, rtol=1e-3, atol=1e-6)


def test_the_set_gets_better(run: Run) -> None:
    """The loss on real images falls."""
    losses: list[float] = []
    run(
        iterations=80, steps=10, batch=6, outer_batch=24, image_lr=0.1, target_lr=0.1,
        report=lambda step, values, pictures=None: losses.append(values["loss"]),
    )  # fmt: skip
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])


def test_windows_end_anywhere_and_grow_with_the_curriculum() -> None:
    """Ends run from the window to all steps; the curriculum opens the later ones."""
    settings = SETTINGS | {"steps": 20, "window": 5, "iterations": 100}
    stream = torch.Generator().manual_seed(0)
    draws = [draw_iteration(6, 24, settings, 0, stream) for _ in range(300)]
    assert {len(draw.rows) for draw in draws} == set(range(5, 21))
    assert all(len(draw.rows) - draw.free == 5 for draw in draws)
    limits = [longest_at(iteration, settings | {"curriculum": True}) for iteration in range(100)]
    assert limits[0] == 5
    assert limits[-1] == 20
    assert limits == sorted(limits)


@pytest.mark.parametrize("changes", [{}, {"window": 2}, {"average": 0.5}, {"views": 2}], ids=str)
def test_a_resumed_run_equals_a_straight_one(
    run: Run, make_set: MakeSet, freeze: Freeze, changes: dict[str, Any]
) -> None:
    """From any state, to the last bit, history included."""
    changes = dict(changes)
    initial = views_of(make_set()) if changes.pop("views", 0) else make_set()
    states: list[Any] = []
    straight, history = run(initial, checkpoint=lambda make: states.append(freeze(make())), **changes)
    assert len(states) == 5
    for state in states[1:]:
        again, again_history = run(initial, state=state, **changes)
        assert all(torch.equal(getattr(straight, name), getattr(again, name)) for name in NAMES)
        assert torch.equal(history, again_history)


def test_the_average_is_of_all_updates(run: Run) -> None:
    """A moving average of the sets after each update, from the initial one."""
    states: list[Any] = []
    options = {"iterations": 4, "average": 0.75, "schedule": "constant"}
    final, _ = run(checkpoint=lambda make: states.append([part.clone() for part in make()["set"]]), **options)
    last, _ = run(**(options | {"average": 0}))
    sets = [images for images, *_ in states] + [last.images]
    mean = sets[0]
    for images in sets[1:]:
        mean = 0.75 * mean + 0.25 * images
    torch.testing.assert_close(final.images, mean)


def test_cosine_rates_fall_to_zero(run: Run) -> None:
    """The last of many updates is a small one."""
    states: list[Any] = []
    settings = {"iterations": 50, "image_optimizer": "adam"}
    final, _ = run(checkpoint=lambda make: states.append(make()["set"][0].clone()), **settings)
    first, last = (states[1] - states[0]).abs().max(), (final.images - states[-1]).abs().max()
    assert float(last) < 0.02 * float(first)
    assert math.isfinite(float(last))


def test_divergence_is_one_sentence_with_its_keys(run: Run) -> None:
    """The state that was kept is from before."""
    with pytest.raises(Diverged, match=r"bptt\.image_lr.*bptt\.step_size\.initial"):
        run(iterations=40, step_size={"initial": 100.0, "lr": 0.0, "space": "log"})


def test_seeds_decide_everything(run: Run) -> None:
    """Equal seeds give equal sets; another distill seed or another root seed gives another."""
    first, again = run(iterations=2)[0], run(iterations=2)[0]
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, run(iterations=2, distill_seed=1)[0].images)
    assert not torch.equal(first.images, run(iterations=2, seed=1)[0].images)
