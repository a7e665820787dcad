"""Pre-training on a set, at one point and over a grid."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mkdt import artifacts
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import grid_points, pretrain, pretrain_grid, snapshots
from mkdt.networks.flat import flatten, flatten_state, load_state
from mkdt.networks.students import build_student

TRAINING: dict[str, Any] = {"batch": 4, "momentum": 0.9, "weight_decay": 1e-4}
RATES, STEPS = [0.02, 0.1], [0, 3, 7, 12]  # 24 images, batch 4: six steps an epoch, so 7 lies in the second
Source = tuple[Tensor, Tensor]
MakeSet = Callable[..., SyntheticSet]


def grid(source: Source, spec: dict[str, Any], seed: int = 0, **options: Any) -> dict[str, Tensor]:
    """Pre-train over the rates and steps of this file."""
    return pretrain_grid(*source, spec, TRAINING, **({"rates": RATES, "steps": STEPS, "seed": seed} | options))


def test_seeds_reach_pretraining_and_the_global_generators_do_not(make_set: MakeSet, spec: dict[str, Any]) -> None:
    """The public code has this fault: the clock reseeded torch, so seeds had no effect."""
    weights = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        weights.append(flatten(pretrain(make_set(), spec, steps=5, batch=4, seed=seed)))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


def test_the_seed_decides_the_order_of_images_too(
    source: Source, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal initial weights, two seeds still give different orders of images."""
    common = build_student(spec, 1, 8, 3, 0, "common").state_dict()

    def same_start(*args: Any) -> nn.Module:
        model = build_student(*args)
        model.load_state_dict(common)
        return model

    monkeypatch.setattr("mkdt.evaluate.pretraining.build_student", same_start)
    first, second = grid(source, spec, 0), grid(source, spec, 1)
    assert torch.equal(first["snapshots"][:, 0], second["snapshots"][:, 0])
    assert not torch.allclose(first["snapshots"][:, 1], second["snapshots"][:, 1])


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_snapshot_at_k_steps_is_a_pretraining_of_k_steps(
    source: Source, make_set: MakeSet, spec: dict[str, Any], norm: str
) -> None:
    """The table must have what `mkdt.pretrain` gives."""
    spec = spec | {"norm": norm}
    made = grid(source, spec)
    assert bool(made["valid"].all())
    assert made["steps"].tolist() == STEPS
    assert made["rates"].tolist() == RATES
    for r, rate in enumerate(RATES):
        for s, steps in enumerate(STEPS):
            alone = pretrain(make_set(24), spec, steps=steps, rate=rate, **TRAINING)
            assert torch.equal(made["snapshots"][r, s], flatten_state(alone))
            assert not alone.training
    assert len({row.numpy().tobytes() for row in made["snapshots"].flatten(0, 1)}) == 1 + len(RATES) * 3


def test_without_a_rate_the_learned_step_size_is_used(make_set: MakeSet, spec: dict[str, Any]) -> None:
    """The public code has this fault: a step size of 0.1, not the learned one."""
    learned = flatten(pretrain(make_set(6, step_size=0.03), spec, steps=3))
    assert torch.equal(
        learned, flatten(pretrain(make_set(6, step_size=0.5), spec, steps=3, rate=float(torch.tensor(0.03))))
    )
    assert not torch.allclose(learned, flatten(pretrain(make_set(6, step_size=0.1), spec, steps=3)))


def test_every_set_and_rate_starts_from_the_same_student(source: Source, spec: dict[str, Any]) -> None:
    """Methods are compared on equal students: the initial weights depend on the seed only."""
    images, targets = source
    initial = grid(source, spec)["snapshots"][:, 0]
    other = pretrain_grid(
        images[:5] + 1, targets[:5], spec, TRAINING | {"batch": 2}, rates=[0.3], steps=[0, 1], seed=0
    )["snapshots"][:, 0]
    assert torch.equal(initial[0], initial[1])
    assert torch.equal(initial[0], other[0])


def test_more_steps_lower_the_loss(source: Source, spec: dict[str, Any]) -> None:
    """Pre-training learns the targets; each point of the grid is reported once."""
    seen: list[tuple[int, dict[str, float]]] = []
    made = grid(source, spec, steps=[0, 60], report=lambda step, values: seen.append((step, values)))
    model = build_student(spec, 1, 8, 3, 0, "x")
    losses = []
    for snapshot in made["snapshots"][1]:
        load_state(model, snapshot)
        losses.append(float(((model(source[0]) - source[1]) ** 2).mean().detach()))
    assert losses[1] < 0.5 * losses[0]
    assert [step for step, _ in seen] == [60, 60]
    assert {name for _, values in seen for name in values} == {
        "loss/rate 0.02",
        "loss/rate 0.1",
    }


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_resumed_grid_equals_an_uninterrupted_one(
    source: Source, spec: dict[str, Any], freeze: Callable[[Any], Any], norm: str
) -> None:
    """Results are equal bit for bit, from the state after any step of any rate."""
    spec = spec | {"norm": norm}
    states: list[dict[str, Any]] = []
    uninterrupted = grid(source, spec, checkpoint=lambda make: states.append(freeze(make())))
    assert len(states) == len(RATES) * STEPS[-1]
    for state in states:
        resumed = grid(source, spec, state=state)
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_a_resumed_grid_does_not_repeat_what_was_done(
    source: Source, spec: dict[str, Any], freeze: Callable[[Any], Any]
) -> None:
    """A resume that starts over would give the right numbers too, but hours late."""
    states: list[dict[str, Any]] = []
    grid(source, spec, checkpoint=lambda make: states.append(freeze(make())))
    count = 0

    def counting(make: Callable[[], Any]) -> None:
        nonlocal count
        count += 1

    grid(source, spec, state=states[14], checkpoint=counting)
    assert count == len(states) - 15


@pytest.mark.parametrize("rates", [[0.02, 1e25, 0.1], [1e25, 0.02, 0.1], [0.02, 0.1, 1e25]])
def test_a_diverging_rate_does_not_change_the_others(source: Source, spec: dict[str, Any], rates: list[float]) -> None:
    """A rate that is too high is marked invalid, its snapshots are zero, and the other rates do not change."""
    made = grid(source, spec, rates=rates)
    clean = grid(source, spec)
    for r, rate in enumerate(rates):
        if rate in RATES:
            assert torch.equal(made["snapshots"][r], clean["snapshots"][RATES.index(rate)])
            assert bool(made["valid"][r].all())
        else:
            assert made["valid"][r].tolist() == [True, False, False, False]
            assert not made["snapshots"][r, 1:].any()
    assert bool(made["snapshots"].isfinite().all())


def test_resuming_after_a_diverged_rate_equals_the_uninterrupted_run(
    source: Source, spec: dict[str, Any], freeze: Callable[[Any], Any]
) -> None:
    """The interruption is inside, or right after, the rate that diverges."""
    states: list[dict[str, Any]] = []
    rates = [1e25, 0.1]
    uninterrupted = grid(source, spec, rates=rates, checkpoint=lambda make: states.append(freeze(make())))
    for state in states:
        resumed = grid(source, spec, rates=rates, state=state)
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_running_statistics_are_part_of_a_snapshot(source: Source, batch_norm_spec: dict[str, Any]) -> None:
    """With batch norm, the weights alone are another network in eval mode."""
    made = grid(source, batch_norm_spec)
    model = build_student(batch_norm_spec, 1, 8, 3, 0, "x")
    load_state(model, made["snapshots"][0, -1])
    means = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(means) == 2
    assert all(float(mean.abs().max()) > 0 for mean in means if mean is not None)
    assert made["snapshots"].shape[2] > len(flatten(model))


def test_batches_use_every_image_once_an_epoch(
    source: Source, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps of batch 5 on 12 images: two epochs of three batches, each with every image."""
    from mkdt.evaluate import pretraining

    seen: list[Tensor] = []
    true_batches = pretraining.seeding.batches

    def spy(*args: Any) -> Iterator[Tensor]:
        for rows in true_batches(*args):
            seen.append(rows)
            yield rows

    monkeypatch.setattr(pretraining.seeding, "batches", spy)
    images, targets = source
    pretrain_grid(images[:12], targets[:12], spec, TRAINING | {"batch": 5}, rates=[0.1], steps=[6], seed=0)
    for epoch in (seen[:3], seen[3:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(12))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_the_files_snapshots_are_the_pretrained_backbones(
    source: Source, make_set: MakeSet, batch_norm_spec: dict[str, Any], tmp_path: Path
) -> None:
    """The probe gets from a file what `pretrain` returns, and None where it diverged."""
    made = grid(source, batch_norm_spec, rates=[0.1, 1e25])
    path = tmp_path / "students.safetensors"
    artifacts.save(path, made, stage="pretrain", parameters={"student": batch_norm_spec}, rows=["snapshots"])
    restore = snapshots(artifacts.Artifact(path, "pretrain"))
    for s in (3, 1, 0):  # in any order: one module gets the weights
        backbone = restore(0, s)
        alone = pretrain(make_set(24), batch_norm_spec, steps=STEPS[s], rate=0.1, **TRAINING)
        assert backbone is not None
        assert not backbone.training
        assert torch.equal(backbone(source[0]), alone.backbone(source[0]))
        assert restore(1, max(s, 1)) is None


def test_the_losses_of_a_grid_belong_to_their_points(source: Source, spec: dict[str, Any]) -> None:
    """Each is the loss before its step."""
    images, targets = source
    made = pretrain_grid(images, targets, spec, TRAINING | {"batch": 24}, rates=[0.1], steps=[1, 2, 3], seed=0)
    model = build_student(spec, 1, 8, 3, 0, "x")
    for s in (0, 1):
        load_state(model, made["snapshots"][0, s])
        loss = float(((model(images) - targets) ** 2).mean().detach())
        assert float(made["losses"][0, s + 1]) == pytest.approx(loss, rel=1e-4)
    assert made["shape"].tolist() == [1, 8, 3]


def test_the_papers_protocol_is_one_point_at_the_learned_step_size() -> None:
    """It has 20 epochs of ceil(m / batch) steps; no pre-training is the untrained student at step 0."""
    paper = {"protocol": "paper", "epochs": 20, "batch": 256, "rates": [1.0], "steps": [5]}
    assert grid_points(paper, "mkdt", 1000, 0.03) == ([0.03], [80])
    assert grid_points(paper, "mkdt", 256, 0.03) == ([0.03], [20])
    assert grid_points(paper, "none", 1000, 0.03) == ([0.0], [0])
    fair = paper | {"protocol": "fair"}
    assert grid_points(fair, "mkdt", 1000, 0.03) == ([1.0], [5])
    assert grid_points(fair, "none", 1000, 0.03) == ([0.0], [0])


def test_the_untrained_student_is_a_grid_of_one_point(source: Source, spec: dict[str, Any]) -> None:
    """The baseline without pre-training has the same files as every method."""
    made = grid(source, spec, rates=[0.0], steps=[0])
    assert made["valid"].tolist() == [[True]]
    assert torch.equal(made["snapshots"][0, 0], grid(source, spec)["snapshots"][0, 0])


def test_a_loss_that_overflows_before_the_weights_counts_as_diverged(source: Source, spec: dict[str, Any]) -> None:
    """The square overflows first; a file with an infinite loss would be refused, and the stage fail."""
    images, targets = source
    made = pretrain_grid(images, targets * 1e25, spec, TRAINING, rates=[1e-3], steps=[0, 1], seed=0)
    assert made["valid"].tolist() == [[True, False]]
    assert bool(made["losses"].isfinite().all())
    assert not made["snapshots"][0, 1].any()


@pytest.mark.parametrize(("name", "size"), [("resnet10", 8), ("vgg11", 32), ("alexnet", 8), ("mobilenet", 8)])
def test_every_architecture_is_restored_from_its_file(name: str, size: int, tmp_path: Path) -> None:
    """A network trained with batch statistics and stored with running ones has the same features when it is restored."""
    stream = torch.Generator().manual_seed(0)
    images, targets = torch.randn(6, 1, size, size, generator=stream), torch.randn(6, 3, generator=stream)
    training = TRAINING | {"batch": 3}
    student = {"architecture": name}
    made = pretrain_grid(images, targets, student, training, rates=[0.01], steps=[0, 3], seed=5)
    path = tmp_path / "student.safetensors"
    artifacts.save(path, made, stage="pretrain", parameters={"student": student}, rows=["snapshots"])
    restore = snapshots(artifacts.Artifact(path, "pretrain"))
    tiny = SyntheticSet(images, targets, torch.tensor(0.1), torch.zeros(1), torch.ones(1), torch.arange(6))
    untrained, trained = (pretrain(tiny, student, steps=k, rate=0.01, seed=5, **training) for k in (0, 3))
    start = build_student(student, 1, size, 3, 5, "student weights")
    assert torch.equal(flatten(untrained), flatten(start))
    with torch.no_grad():
        for step, wanted in ((0, untrained), (1, trained)):
            backbone = restore(0, step)
            assert backbone is not None
            assert torch.equal(backbone(images), wanted.backbone(images))
    first = next(module for module in trained.modules() if isinstance(module, nn.BatchNorm2d))
    assert int(first.num_batches_tracked) == 3  # type: ignore[arg-type]
    assert bool((first.running_mean != 0).any())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet10", "mobilenet"])
def test_no_pretraining_is_a_baseline_for_deep_batch_norms_too(name: str) -> None:
    """With initial statistics, MobileNet's features are the same for every image, which would give 10 % on digits."""
    stream = torch.Generator().manual_seed(0)
    images = 3 + torch.randn(40, 1, 8, 8, generator=stream)
    made = pretrain_grid(images, torch.zeros(40, 3), {"architecture": name}, TRAINING, rates=[0.0], steps=[0], seed=0)
    student = build_student({"architecture": name}, 1, 8, 3, 0, "student weights")
    load_state(student, made["snapshots"][0, 0])
    with torch.no_grad():
        features = student.eval().backbone(images)
    assert float((features.std(0) > 0.01).float().mean()) > 0.9


def test_a_last_batch_of_one_image_is_refused_for_batch_norm_alone(
    source: Source, spec: dict[str, Any], batch_norm_spec: dict[str, Any]
) -> None:
    """The config check cannot see the size of a set from a file."""
    images, targets = source[0][:5], source[1][:5]
    with pytest.raises(UserError, match=r"one image of a set of 5.*change pretrain\.batch"):
        grid((images, targets), batch_norm_spec)
    grid((images, targets), spec, steps=[1])
    grid((images, targets), batch_norm_spec, rates=[0.0], steps=[0])  # nothing is trained
