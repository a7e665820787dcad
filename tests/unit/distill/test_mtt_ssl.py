"""Test mtt_ssl: its hypergradient against finite differences, its views, experts and resuming."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matching import match_trajectory
from torch import Tensor

from mkdt import artifacts, seeding
from mkdt.artifacts import Artifact
from mkdt.data.pixels import denormalise, normalise
from mkdt.distill.mtt_ssl import build_ssl_student, draw_views, flat_ssl, mtt_ssl_expert, mtt_ssl_set, views_of_steps
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.networks.flat import flatten
from mkdt.teacher.ssl import LOSSES, build_views

CPU = torch.device("cpu")
AUGMENT = {
    "crop_scale": [0.5, 1.0], "flip": False, "rotate": 15, "shift": 0.1, "jitter": 0.4, "grayscale": 0, "blur": 0, "noise": 0.05,
}  # fmt: skip
LOSS = {"barlow_twins": {"off_diagonal": 0.01}, "simclr": {"temperature": 0.2}}
SSL: dict[str, Any] = {
    "method": "barlow_twins", "loss": LOSS["barlow_twins"], "augment": AUGMENT, "projector": [6, 5],
}  # fmt: skip
TRAINING: dict[str, Any] = SSL | {"epochs": 3, "batch": 10, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
SETTINGS: dict[str, Any] = SSL | {
    "iterations": 4, "steps": 3, "batch": 4, "match_epochs": 1, "start_epochs": 2, "curriculum": False, "momentum": 0.0,
    "image_optimizer": "sgd", "target_optimizer": "sgd", "schedule": "constant", "average": 0, "image_lr": 5.0, "learn_targets": False, "step_size": {"initial": 0.1, "lr": 1e-3, "space": "log"},
    "retain": 0, "compile": False, "pictures": 2,
}  # fmt: skip
MakeSet = Callable[..., SyntheticSet]
STATISTICS = torch.tensor([0.4]), torch.tensor([0.2])


@pytest.fixture(scope="module")
def pictures(source: tuple[Tensor, Tensor]) -> Source:
    """Return the tiny source with uint8 images."""
    return Source(denormalise(source[0], *STATISTICS), *STATISTICS)


def train(pictures: Source, spec: dict[str, Any], expert: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Train a short SSL expert; settings and callbacks may be changed."""
    callbacks = {key: changes.pop(key) for key in ("state", "report", "checkpoint") if key in changes}
    return mtt_ssl_expert(pictures, spec, TRAINING | changes, seed=0, expert=expert, device=CPU, **callbacks)


@pytest.fixture(scope="module")
def files(pictures: Source, spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two SSL experts to files."""
    folder = tmp_path_factory.mktemp("ssl_experts")
    paths = [folder / f"{expert}.safetensors" for expert in range(2)]
    for expert, path in enumerate(paths):
        artifacts.save(path, train(pictures, spec, expert), stage="expert", rows=["trajectory"])
    return paths


@pytest.fixture
def run(files: list[Path], make_set: MakeSet, spec: dict[str, Any]) -> Callable[..., tuple[SyntheticSet, Tensor]]:
    """Distil from the shared experts; settings and arguments may be changed."""

    def call(**changes: Any) -> tuple[SyntheticSet, Tensor]:
        keys = ("state", "report", "checkpoint", "distill_seed", "seed")
        options = {"seed": 0, "distill_seed": 0} | {key: changes.pop(key) for key in keys if key in changes}
        experts = [Artifact(path, "expert") for path in files]
        initial = changes.pop("initial", None) or make_set()
        return mtt_ssl_set(initial, Source(experts=experts), spec, SETTINGS | changes, device=CPU, **options)

    return call


@pytest.mark.parametrize("method", ["barlow_twins", "simclr"])
def test_the_hypergradient_against_finite_differences(spec: dict[str, Any], make_set: MakeSet, method: str) -> None:
    """Differentiate through SSL loss, steps and augmentations in float64, with the pull-back of `match_experts`."""
    settings = SETTINGS | {"method": method, "loss": LOSS[method]}
    initial = make_set()
    initial.images, initial.mean, initial.std = (part.double() for part in (initial.images, *STATISTICS))
    module = build_ssl_student(spec, 1, 8, settings["projector"], 0, "weights").double()
    loss_fn, theta = flat_ssl(module, settings), flatten(module)
    stream = torch.Generator().manual_seed(1)
    target = theta + 0.1 * torch.randn(len(theta), generator=stream, dtype=torch.float64)
    # Grey images, because clamped pixels have no gradient.
    images = 0.2 * initial.images
    rows = [torch.tensor([0, 1, 2]), torch.tensor([5, 1, 3])]
    views = views_of_steps(settings, initial, CPU, seed=0, distill_seed=0)

    def value(images: Tensor) -> float:
        decode, batches = views(rows, 7)
        seen = decode(images)
        current = theta
        for batch in batches:
            leaf = current.detach().requires_grad_()
            current = current - 0.3 * torch.autograd.grad(loss_fn(leaf, seen[batch], seen), leaf)[0]
        return float((current - target).square().sum() / (theta - target).square().sum())

    leaf = images.clone().requires_grad_()
    decode, batches = views(rows, 7)
    seen = decode(leaf)
    loss, by_views, _, _ = match_trajectory(
        loss_fn, theta, target, seen.detach(), seen.new_empty(len(seen), 0), 0.3, batches, learn_targets=False
    )
    (gradient,) = torch.autograd.grad(seen, leaf, by_views)
    assert float(loss) == pytest.approx(value(images), rel=1e-9)
    assert torch.equal(gradient[4], torch.zeros_like(gradient[4]))  # the row that no step uses
    direction = torch.randn(images.shape, generator=stream, dtype=torch.float64)
    slope = (value(images + 1e-6 * direction) - value(images - 1e-6 * direction)) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_views_come_in_pairs_step_by_step(make_set: MakeSet) -> None:
    """First and second halves are views of the same rows; without augmentation they equal the images."""
    still = AUGMENT | {"crop_scale": [1.0, 1.0], "rotate": 0, "shift": 0, "jitter": 0, "noise": 0}
    initial, rows = make_set(), [torch.tensor([3, 0]), torch.tensor([1])]
    decode, batches = views_of_steps(SSL | {"augment": still}, initial, CPU, 0, 0)(rows, 0)
    seen = decode(initial.images)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    torch.testing.assert_close(seen, initial.images[[3, 0, 3, 0, 1, 1]], rtol=0, atol=1e-5)
    drawn = views_of_steps(SSL, initial, CPU, 0, 0)
    first, again, other = (drawn(rows, k)[0](initial.images) for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[2])


def test_an_expert_is_sgd_on_the_ssl_loss(pictures: Source, spec: dict[str, Any]) -> None:
    """With one full batch the result is one SGD step; a row holds the weights of backbone and head."""
    made = train(pictures, spec, expert=1, epochs=1, batch=100, momentum=0.0, weight_decay=0.0)["trajectory"]
    model = build_ssl_student(spec, 1, 8, SSL["projector"], 0, "ssl expert weights", 1)
    assert torch.equal(made[0], flatten(model))
    rows = next(seeding.batches(24, 24, seeding.generator(0, "expert order", 1, 0)))
    with seeding.global_stream(0, "ssl expert views", 1, 0):
        first, second = draw_views(
            normalise(pictures.images[rows], *STATISTICS), build_views(AUGMENT, 1, 8), *STATISTICS
        )
    loss = LOSSES["barlow_twins"](*model(torch.cat([first, second])).chunk(2), **SSL["loss"])
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(made[1], made[0] - 0.05 * gradient, rtol=1e-4, atol=1e-6)


def test_weights_are_all_its_state(spec: dict[str, Any]) -> None:
    """A trajectory does not hold running statistics, so there must be none."""
    model = build_ssl_student(spec, 1, 8, SSL["projector"], 0, "weights")
    assert not list(model.buffers())


def test_a_last_smaller_batch_is_left_out(pictures: Source, spec: dict[str, Any]) -> None:
    """As for the teacher, an epoch of 24 images in batches of 10 has two steps."""
    steps: list[int] = []
    original = seeding.global_stream

    def note(seed: int, purpose: str, *who: int | str) -> Any:
        steps.extend([int(who[1])] if purpose == "ssl expert views" else [])
        return original(seed, purpose, *who)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding, "global_stream", note)
        train(pictures, spec)
    assert steps == list(range(2 * TRAINING["epochs"]))


def test_a_resumed_expert_equals_a_straight_one(
    pictures: Source, spec: dict[str, Any], freeze: Callable[[Any], Any]
) -> None:
    """Resuming gives the same bits, because the number of a step decides its views."""
    states: list[dict[str, Any]] = []
    straight = train(pictures, spec, checkpoint=lambda make: states.append(freeze(make())))
    for state in states:
        torch.manual_seed(state["epoch"])
        resumed = train(pictures, spec, state=state)
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_diverging_expert_names_its_own_key(pictures: Source, spec: dict[str, Any]) -> None:
    """The key is that of the SSL experts, not `experts.lr`."""
    with pytest.raises(UserError, match=r"expert 0: diverged in epoch \d.* lower mtt_ssl\.expert_lr"):
        train(replace(pictures, std=torch.tensor([torch.nan])), spec)


def test_a_resumed_run_equals_a_straight_one(run: Any, freeze: Callable[[Any], Any]) -> None:
    """Resuming from each state gives the same bits, whatever the state of the global generators."""
    states: list[dict[str, Any]] = []
    straight, history = run(checkpoint=lambda make, now=False: states.append(freeze(make())))
    for state in states:
        torch.manual_seed(state["iteration"])
        resumed, resumed_history = run(state=state)
        assert torch.equal(resumed.images, straight.images)
        assert torch.equal(resumed_history, history)
    assert not torch.equal(run(distill_seed=1)[0].images, straight.images)


def test_only_the_images_move(run: Any, make_set: MakeSet) -> None:
    """Targets and step size stay those of the initial set."""
    final, _ = run()
    for name, tensor in make_set().tensors().items():
        assert torch.equal(getattr(final, name), tensor) == (name != "images")


def test_exploding_images_are_stopped(run: Any) -> None:
    """The message names the method's own key."""
    with pytest.raises(UserError, match=r"diverged.* at iteration \d+ .* lower mtt_ssl\.image_lr"):
        run(image_lr=1e30, iterations=30)


def test_distilling_lowers_the_matching_loss(run: Any) -> None:
    """On one piece of a trajectory the mean loss falls by at least 5 %."""
    losses: list[float] = []
    run(
        iterations=80,
        start_epochs=1,
        image_optimizer="adam",
        image_lr=0.05,
        step_size={"initial": 0.05, "lr": 0.002, "space": "log"},
        report=lambda step, values, pictures=None: losses.append(values["loss"]),
    )
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])
