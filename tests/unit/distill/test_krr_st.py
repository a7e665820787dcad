"""Test KRR-ST: its loss against an independent solution and finite differences, its pool, updates and resuming."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_settings import KRR_ST
from torch import Tensor
from torch.nn import functional as F

from mkdt.distill.krr_st import Pool, krr_loss, krr_st_set
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.students import build_student

CPU = torch.device("cpu")
MakeSet = Callable[..., SyntheticSet]
Run = Callable[..., tuple[SyntheticSet, Tensor]]


def parts(seed: int = 0, m: int = 5, features: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make features and targets of a synthetic set and of real images, float64."""
    stream = torch.Generator().manual_seed(seed)
    shapes = ((m, features), (m, 2), (7, features), (7, 2))
    return tuple(torch.randn(shape, generator=stream, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize(("m", "features"), [(5, 4), (3, 8), (9, 2)])
def test_the_loss_is_that_of_the_best_last_layer(m: int, features: int) -> None:
    """The loss equals that of ridge regression by normal equations in the weights, with the bias among them."""
    ours, targets, real, wanted = (part.numpy() for part in parts(m, m, features))
    a, b = (np.concatenate([part, np.ones((len(part), 1))], 1) for part in (ours, real))
    ridge = 1e-6 * (a**2).sum()
    weights = np.linalg.solve(a.T @ a + ridge * np.eye(features + 1), a.T @ targets)
    assert float(krr_loss(*parts(m, m, features))) == pytest.approx(((b @ weights - wanted) ** 2).mean(), rel=1e-6)


def test_gradients_against_finite_differences() -> None:
    """The ridge depends on the features but is not differentiated, as published."""
    ours, targets, real, wanted = parts()
    ours.requires_grad_()
    targets.requires_grad_()
    by_ours, by_targets = torch.autograd.grad(krr_loss(ours, targets, real, wanted), [ours, targets])
    ridge = 1e-6 * float((torch.cat([ours.detach(), torch.ones(5, 1)], 1) ** 2).sum())

    def value(ours: np.ndarray, targets: np.ndarray) -> float:
        a, b = (np.concatenate([part, np.ones((len(part), 1))], 1) for part in (ours, real.numpy()))
        prediction = b @ a.T @ np.linalg.inv(a @ a.T + ridge * np.eye(5)) @ targets
        return float(((prediction - wanted.numpy()) ** 2).mean())

    x, y = ours.detach().numpy(), targets.detach().numpy()
    for gradient, k in ((by_ours, 0), (by_targets, 1)):
        for i in range(3):
            step = np.zeros_like((x, y)[k])
            step[i, i % 2] = 1e-6
            high, low = (value(x + s * step, y) if k == 0 else value(x, y + s * step) for s in (1, -1))
            assert float(gradient[i, i % 2]) == pytest.approx((high - low) / 2e-6, rel=1e-3, abs=1e-6)


@pytest.fixture
def run(source: tuple[Tensor, Tensor], make_set: MakeSet, batch_norm_spec: dict[str, Any]) -> Run:
    """Distil on the tiny source; settings and arguments may be changed."""
    images, targets = source
    pixels = ((images - images.min()) / (images.max() - images.min()) * 255).byte()

    def call(**changes: Any) -> tuple[SyntheticSet, Tensor]:
        keys = ("state", "report", "checkpoint", "seed", "distill_seed")
        options = {"seed": 0, "distill_seed": 0} | {key: changes.pop(key) for key in keys if key in changes}
        initial = changes.pop("initial", make_set())
        return krr_st_set(
            initial, Source(pixels, targets=targets), batch_norm_spec, KRR_ST | changes, device=CPU, **options
        )

    return call


def test_a_student_is_trained_by_mse_and_begun_anew_after_its_steps(
    source: tuple[Tensor, Tensor], batch_norm_spec: dict[str, Any]
) -> None:
    """The public code never resets its counter, so all students are fresh ones after the first round."""
    images, targets = source
    built: list[tuple[int, int]] = []

    def build(place: int, generation: int) -> Any:
        built.append((place, generation))
        return build_student(batch_norm_spec, 1, 8, 3, 0, "x", place, generation)

    pool = Pool(build, KRR_ST)
    pool.add(images, targets, 2)
    mine = build(0, 0)
    optimizer = torch.optim.SGD(mine.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(mine(images), targets).backward()
        optimizer.step()
    for value, other in zip(pool.student(0).state_dict().values(), mine.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    built.clear()
    seen = []
    for _ in range(8):
        pool.train(0, images, targets)
        seen.append(pool.state()[0]["steps"])
    assert seen == [3, 0, 1, 2, 3, 0, 1, 2]
    assert built == [(0, 1), (0, 2)]


def test_the_loss_falls(run: Run) -> None:
    """With a fixed student and all images, the updates of the set lower the loss."""
    losses: list[float] = []
    still = {"students": 1, "student_lr": 1e-12, "student_steps": 1000}
    final, history = run(
        iterations=200,
        lr=0.05,
        batch=24,
        report=lambda step, values, pictures=None: losses.append(values["loss"]),
        **still,
    )
    assert losses[-1] < 0.5 * losses[0]
    assert len(history) == 3
    assert torch.equal(history[-1], final.images[:16])
    assert float(final.step_size) == pytest.approx(0.1)


def test_the_learning_rate_falls_linearly(run: Run) -> None:
    """It falls to a thousandth, as published."""
    states: list[dict[str, Any]] = []
    # States are saved before the update, so the first one has the start rate.
    run(iterations=5, checkpoint=lambda make, now=False: states.append(make()))
    rates = [state["optimizer"]["param_groups"][0]["lr"] for state in states[KRR_ST["students"] + 1 :]]
    assert rates == pytest.approx([0.01 * (1 - 0.999 * k / 5) for k in range(4)])


def test_a_resumed_run_equals_a_straight_one(run: Run, freeze: Callable[[Any], Any]) -> None:
    """Resuming from each state gives the same bits, also while the pool is filled."""
    states: list[dict[str, Any]] = []
    straight, history = run(checkpoint=lambda make, now=False: states.append(freeze(make())))
    assert len(states) == KRR_ST["students"] + KRR_ST["iterations"]
    for state in states:
        torch.manual_seed(len(state["pool"]))
        resumed, resumed_history = run(state=state)
        assert torch.equal(resumed.images, straight.images)
        assert torch.equal(resumed.targets, straight.targets)
        assert torch.equal(resumed_history, history)


def test_seeds_decide_the_draws(run: Run) -> None:
    """Another distill seed gives another set from the same start."""
    first, _ = run()
    assert not torch.equal(first.images, run(distill_seed=1)[0].images)
    assert not torch.equal(first.images, run(seed=1)[0].images)


def test_a_loss_that_is_not_finite_stops_with_one_sentence(run: Run, make_set: MakeSet) -> None:
    """Only states from before the loss are saved, here those of the pool."""
    saved: list[int] = []
    broken = make_set()
    broken.targets[0] = torch.inf
    with pytest.raises(UserError, match=r"diverged at iteration 0.*krr_st\.lr"):
        run(initial=broken, checkpoint=lambda make, now=False: saved.append(make()["iteration"]))
    assert saved == [0] * KRR_ST["students"]
