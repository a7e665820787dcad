"""Test trajectory matching: draws, updates, checks for divergence, and resuming."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from matching import match_trajectory
from torch import Tensor

from mkdt.artifacts import Artifact
from mkdt.distill.outer_loop import target_rate
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.trajectory_matching import match_experts, start_epochs_at
from mkdt.errors import UserError
from mkdt.networks.flat import flat_mse
from mkdt.networks.students import build_student

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "iterations": 5,
    "steps": 3,
    "batch": 4,
    "match_epochs": 2,
    "start_epochs": 2,
    "curriculum": False,
    "image_optimizer": "sgd",
    "target_optimizer": "sgd",
    "schedule": "constant",
    "average": 0,
    "image_lr": 5.0,
    "target_lr": 1.0,
    "learn_targets": True,
    "step_size": {"initial": 0.1, "lr": 1e-3, "space": "log"},
    "momentum": 0.0,
    "retain": 0,
    "compile": False,
    "pictures": 2,
}
MakeSet = Callable[..., SyntheticSet]
Run = Callable[..., tuple[SyntheticSet, Tensor]]
Freeze = Callable[[Any], Any]
NAMES = ("images", "targets", "step_size")


@pytest.fixture
def run(experts: list[Artifact], make_set: MakeSet, spec: dict[str, Any]) -> Run:
    """Distil from the shared experts; keys of the settings and arguments of the function may be changed."""
    loss_fn = flat_mse(build_student(spec, 1, 8, 3, 0, "any weights"))

    def call(
        initial: SyntheticSet | None = None, files: Sequence[Any] | None = None, **changes: Any
    ) -> tuple[SyntheticSet, Tensor]:
        keys = ("state", "report", "checkpoint", "seed", "distill_seed")
        options = {"seed": 0, "distill_seed": 0} | {key: changes.pop(key) for key in keys if key in changes}
        return match_experts(
            initial or make_set(), files or experts, loss_fn, SETTINGS | changes, device=CPU, **options
        )

    return call


def equal(first: SyntheticSet, second: SyntheticSet) -> bool:
    """Return whether all learned values are equal in all bits."""
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in NAMES)


def hand_made_step(
    before: SyntheticSet,
    experts: list[Artifact],
    spec: dict[str, Any],
    expert: int,
    epoch: int,
    lr: float,
    target_lr: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute images and targets after one plain step with full batches, and the step size's gradient."""
    loss_fn = flat_mse(build_student(spec, 1, 8, 3, 123, "any weights"))
    rows = [experts[expert].tensor("trajectory")[k] for k in (epoch, epoch + SETTINGS["match_epochs"])]
    _, d_images, d_targets, d_step = match_trajectory(
        loss_fn,
        *rows,
        before.images,
        before.targets,
        before.step_size,
        [torch.arange(len(before))] * SETTINGS["steps"],
    )
    return before.images - lr * d_images, before.targets - target_lr * d_targets, d_step


class Spy:
    """An expert file that records which rows are read."""

    def __init__(self, file: Artifact, number: int, seen: list[tuple[int, int]]) -> None:
        self.file, self.number, self.seen = file, number, seen

    def row(self, name: str, index: int) -> Tensor:
        """Record and return the row."""
        self.seen.append((self.number, index))
        return self.file.row(name, index)


def test_every_expert_and_start_epoch_is_used(run: Run, experts: list[Artifact]) -> None:
    """The public code used the first expert file only."""
    seen: list[tuple[int, int]] = []
    reported: list[dict[str, float]] = []
    run(
        files=[Spy(file, number, seen) for number, file in enumerate(experts)],
        report=lambda step, values, pictures=None: reported.append(values),
        iterations=60,
        steps=1,
    )
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert {start for start, _ in pairs} == {(k, epoch) for k in range(3) for epoch in range(2)}
    assert all(end == (start[0], start[1] + SETTINGS["match_epochs"]) for start, end in pairs)
    assert [(values["expert"], values["start_epoch"]) for values in reported] == [start for start, _ in pairs]


def test_the_curriculum_opens_start_epochs_one_after_another() -> None:
    """The number of start epochs grows from one to all."""
    settings = {"iterations": 100, "start_epochs": 5, "curriculum": True}
    limits = [start_epochs_at(iteration, settings) for iteration in range(100)]
    assert limits[0] == 1
    assert limits[-1] == 5
    assert limits == sorted(limits)
    assert set(limits) == {1, 2, 3, 4, 5}
    assert {start_epochs_at(iteration, settings | {"curriculum": False}) for iteration in (0, 99)} == {5}


def test_one_iteration_is_one_step_and_is_in_the_result(
    run: Run, experts: list[Artifact], make_set: MakeSet, spec: dict[str, Any]
) -> None:
    """The public code never saved the last update. Here the last one is the only one."""
    seen: list[dict[str, float]] = []
    final, _ = run(
        iterations=1,
        batch=100,
        image_lr=3.0,
        target_lr=2.0,
        step_size={"initial": 0.1, "lr": 0.01, "space": "plain"},
        report=lambda step, values, pictures=None: seen.append(values),
    )
    initial = make_set()
    drawn = int(seen[0]["expert"]), int(seen[0]["start_epoch"])
    images, targets, d_step = hand_made_step(initial, experts, spec, *drawn, lr=3.0, target_lr=2.0)
    torch.testing.assert_close(final.images, images, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(final.targets, targets, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(final.step_size, initial.step_size - 0.01 * d_step, rtol=1e-4, atol=1e-7)
    assert not torch.equal(final.images, initial.images)
    assert seen[0]["step_size"] == pytest.approx(float(final.step_size))


def test_the_targets_rate_grows_with_the_set(run: Run, make_set: MakeSet) -> None:
    """With ``auto``, doubling all images leaves the targets' updates as they are; a fixed rate halves them."""
    assert target_rate(14, {"target_lr": "auto"}) == 10.0
    assert target_rate(140, {"target_lr": 3.0}) == 3.0
    initial = make_set()
    half, rows = len(initial.images), torch.arange(len(initial.images)).repeat(2)
    twice = replace(
        initial, images=initial.images[rows], targets=initial.targets[rows], init_index=initial.init_index[rows]
    )
    for rate, factor in (("auto", 1.0), (2.0, 0.5)):
        once, doubled = (run(given, iterations=1, batch=100, target_lr=rate)[0] for given in (initial, twice))
        moved = once.targets - initial.targets
        assert float(moved.abs().max()) > 1e-4
        torch.testing.assert_close(doubled.targets[:half] - initial.targets, factor * moved, rtol=1e-3, atol=1e-6)


def test_the_step_size_in_log_space_moves_by_its_own_chain_rule(
    run: Run, experts: list[Artifact], make_set: MakeSet, spec: dict[str, Any]
) -> None:
    """d/d log a = a d/da; without the factor the learning rate would have another scale."""
    seen: list[dict[str, float]] = []
    final, _ = run(
        iterations=1,
        batch=100,
        step_size={"initial": 0.1, "lr": 0.5, "space": "log"},
        report=lambda step, values, pictures=None: seen.append(values),
    )
    drawn = int(seen[0]["expert"]), int(seen[0]["start_epoch"])
    d_step = hand_made_step(make_set(), experts, spec, *drawn, lr=0, target_lr=0)[2]
    wanted = math.exp(math.log(0.1) - 0.5 * 0.1 * float(d_step))
    assert float(final.step_size) == pytest.approx(wanted, rel=1e-5)
    assert float(final.step_size) != pytest.approx(0.1, rel=1e-6)


def test_the_result_is_the_state_after_the_last_update(run: Run, freeze: Freeze) -> None:
    """The public code saved before the update. The result equals the state that a longer run has next."""
    states: list[dict[str, Any]] = []
    final, _ = run(checkpoint=lambda make, now=False: states.append(freeze(make())))
    assert [state["iteration"] for state in states] == [0, 1, 2, 3, 4]
    assert not torch.equal(states[-1]["set"][0], final.images)
    shorter, _ = run(iterations=4)
    images, targets, log_step = states[-1]["set"]
    assert torch.equal(shorter.images, images)
    assert torch.equal(shorter.targets, targets)
    assert torch.equal(shorter.step_size, log_step.exp())


def test_momentum_is_the_papers(run: Run, freeze: Freeze) -> None:
    """With a tiny rate the gradients hardly change, so the sizes of the updates show momentum 0.5."""
    states: list[dict[str, Any]] = []
    run(
        iterations=3,
        batch=100,
        start_epochs=1,
        image_lr=1e-3,
        target_lr=0.0,
        step_size={"initial": 0.1, "lr": 0.0, "space": "plain"},
        checkpoint=lambda make, now=False: states.append(freeze(make())),
    )
    states = states[1:]  # before the first update there is no momentum
    speeds = [state["optimizer"][0]["state"][0]["momentum_buffer"] for state in states]
    moved = states[0]["set"][0] - states[1]["set"][0]
    torch.testing.assert_close(moved, 1e-3 * speeds[1], rtol=0.05, atol=1e-6)
    assert {group["momentum"] for state in states for part in state["optimizer"] for group in part["param_groups"]} == {
        0.5
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("space", ["log", "plain"])
def test_a_resumed_run_equals_a_straight_one(run: Run, freeze: Freeze, optimizer: str, space: str) -> None:
    """Resuming from each state gives the same bits, the history included."""
    options: dict[str, Any] = {
        "image_optimizer": optimizer,
        "image_lr": 0.05 if optimizer == "adam" else 5.0,
        "step_size": {"initial": 0.1, "lr": 1e-2, "space": space},
        "curriculum": True,
    }
    states: list[dict[str, Any]] = []
    straight, history = run(checkpoint=lambda make, now=False: states.append(freeze(make())), **options)
    assert len(states) == SETTINGS["iterations"]
    for state in states:
        torch.manual_seed(state["iteration"])
        steps: list[int] = []
        resumed, resumed_history = run(
            state=state, report=lambda step, values, pictures=None, steps=steps: steps.append(step), **options
        )
        assert equal(resumed, straight)
        assert torch.equal(resumed_history, history)
        assert steps == list(range(state["iteration"] + 1, SETTINGS["iterations"] + 1))


def test_seeds_decide_the_draws(run: Run) -> None:
    """The seeds decide the result, and the global generators do not."""
    torch.manual_seed(1)
    first, _ = run()
    torch.manual_seed(2)
    assert equal(first, run()[0])
    assert not equal(first, run(distill_seed=1)[0])
    assert not equal(first, run(seed=1)[0])


def test_keeping_graphs_changes_rounding_only(run: Run) -> None:
    """`retain` changes memory and time only."""
    few, all_kept = run(retain=0)[0], run(retain=3)[0]
    torch.testing.assert_close(few.images, all_kept.images, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(
    run: Run, experts: list[Artifact], freeze: Freeze
) -> None:
    """The public code did not check for NaN. The message says where it is; the last good state is saved."""

    class Broken(Spy):
        """Returns NaN from the third iteration (fifth row) on."""

        def row(self, name: str, index: int) -> Tensor:
            """Return the row, or NaN."""
            row = super().row(name, index)
            return row * torch.nan if len(self.seen) > 4 else row

    seen: list[tuple[int, int]] = []
    kept: list[tuple[bool, dict[str, Any]]] = []
    with pytest.raises(UserError, match="diverged at iteration 2 ") as caught:
        run(
            files=[Broken(file, number, seen) for number, file in enumerate(experts)],
            checkpoint=lambda make, now=False: kept.append((now, freeze(make()))),
        )
    number, epoch = seen[4]
    assert f"expert {number}, start epoch {epoch}" in str(caught.value)
    assert "distill.image_lr" in str(caught.value)
    assert [state["iteration"] for _, state in kept] == [0, 1]
    assert all(bool(value.isfinite().all()) for value in kept[-1][1]["set"])
    assert equal(run(state=kept[-1][1])[0], run()[0])  # the state is good to go on from


def test_exploding_images_are_stopped_not_returned(run: Run) -> None:
    """A rate that is far too high ends in a message, not in a set."""
    with pytest.raises(UserError, match=r"diverged.* at iteration \d+ \(expert \d, start epoch \d, step size"):
        run(image_lr=1e30, iterations=30)


@pytest.mark.parametrize("space", ["plain", "log"])
@pytest.mark.parametrize("initial", [0.1, 3.0])
def test_the_step_size_stays_positive_under_a_huge_rate(run: Run, space: str, initial: float) -> None:
    """The public code accepted a negative step size. Here a run may stop as diverged, but is never at <= 0."""
    sizes: list[float] = []
    for rate in (1.0, 1e3, 1e6):
        try:
            final, _ = run(
                iterations=20,
                image_lr=0.0,
                target_lr=0.0,
                step_size={"initial": initial, "lr": rate, "space": space},
                report=lambda step, values, pictures=None: sizes.append(values["step_size"]),
            )
            sizes.append(float(final.step_size))
        except UserError as stopped:
            assert "distill.step_size.lr" in str(stopped)  # noqa: PT017
    assert len(sizes) > 5
    assert min(sizes) >= 1e-6 * (1 - 1e-5)


def test_the_initial_set_is_left_alone(run: Run, make_set: MakeSet) -> None:
    """Other methods use the same set."""
    initial = make_set()
    final, history = run(initial)
    for name, tensor in make_set().tensors().items():
        assert torch.equal(getattr(initial, name), tensor)
    assert not torch.equal(final.images, initial.images)
    assert torch.equal(history[0], initial.images)
    for name in ("mean", "std", "init_index"):
        assert torch.equal(getattr(final, name), getattr(initial, name))


def test_fixed_targets_stay(run: Run, make_set: MakeSet) -> None:
    """`learn_targets: false` keeps the targets; images and step size still change."""
    final, _ = run(learn_targets=False)
    assert torch.equal(final.targets, make_set().targets)
    assert not torch.equal(final.images, make_set().images)
    assert not torch.equal(final.step_size, make_set().step_size)
    assert not torch.equal(run()[0].targets, make_set().targets)


def test_pictures_come_at_even_moments_and_the_last_is_the_result(run: Run) -> None:
    """The frames of the history are copies of different moments, and the last one is the result."""
    shown: dict[int, Tensor] = {}

    def report(step: int, values: dict[str, float], pictures: Tensor | None = None) -> None:
        if pictures is not None:
            shown[step] = pictures

    final, history = run(iterations=6, pictures=3, report=report)
    assert sorted(shown) == [2, 4, 6]
    assert torch.equal(shown[6], final.pixels())
    assert history.shape == (4, 6, 1, 8, 8)
    assert torch.equal(history[-1], final.images)
    assert len({frame.numpy().tobytes() for frame in history}) == 4


def test_every_row_is_used_before_any_is_used_again(run: Run, make_set: MakeSet) -> None:
    """Three steps of batches of 2 change all of 6 images."""
    final, _ = run(iterations=1, batch=2, steps=3)
    moved = (final.images != make_set().images).flatten(1).any(1)
    assert bool(moved.all())


def test_distilling_lowers_the_matching_loss(run: Run) -> None:
    """The set follows the trajectories better than the images it started from."""
    losses: list[float] = []
    run(
        iterations=60,
        steps=5,
        image_lr=20.0,
        target_lr=5.0,
        step_size={"initial": 0.05, "lr": 0.05, "space": "log"},
        report=lambda step, values, pictures=None: losses.append(values["loss"]),
    )
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])
