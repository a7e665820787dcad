"""Learning rates and step sizes that diverge: a stage stops with one sentence and saves no diverged result."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_settings
import torch
from torch import Tensor

from mkdt.artifacts import Artifact
from mkdt.distill.experts import train_expert
from mkdt.distill.krr_st import krr_st_set
from mkdt.distill.mkdt import mkdt_set
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.errors import UserError
from mkdt.evaluate.pretraining import pretrain_grid
from mkdt.networks.divergence import EXPLODED, diverged
from mkdt.teacher.training import train_teacher

pytestmark = pytest.mark.counts("faults injected")

SETTINGS: dict[str, Any] = {
    "iterations": 12, "steps": 3, "match_epochs": 1, "start_epochs": 2, "curriculum": False, "batch": 4, "momentum": 0.0,
    "image_optimizer": "sgd", "target_optimizer": "sgd", "schedule": "constant", "average": 0, "image_lr": 1.0, "learn_targets": True, "target_lr": 1.0,
    "step_size": {"initial": 0.1, "lr": 1e-3, "space": "log"}, "retain": 0, "compile": False, "pictures": 2,
}  # fmt: skip
KRR = tiny_settings.KRR_ST | {"iterations": 8, "students": 2}
TEACHER = tiny_settings.TEACHER | {
    "method": "vicreg",
    "loss": tiny_settings.LOSSES["vicreg"],
    "batch": 12,
    "warmup_epochs": 0,
}
RATES = [10.0**exponent for exponent in (2, 5, 10, 20, 30)]


def test_the_rule_for_divergence() -> None:
    """A loss diverged if it is not finite or a million times the first loss; a first loss of 0 counts as 1."""
    assert not diverged(EXPLODED, 1.0)
    assert not diverged(1.0, 0.0)
    for loss in (EXPLODED * 1.01, float("nan"), float("inf")):
        assert diverged(loss, 1.0)
    assert diverged(float("inf"), float("inf"))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("key", ["image_lr", "target_lr", "step_size.lr", "step_size.initial"])
def test_distilling_saves_finite_states_only(
    key: str, rate: float, experts: list[Artifact], spec: dict[str, Any], make_set: Callable[..., SyntheticSet]
) -> None:
    """Each saved state and the returned set are finite, and their losses did not diverge."""
    settings = SETTINGS | {"step_size": dict(SETTINGS["step_size"])}
    (settings["step_size"] if "." in key else settings)[key.split(".")[-1]] = rate
    losses: list[float] = []
    kept: list[tuple[int, Tensor]] = []

    def checkpoint(make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        state = make()
        assert all(bool(part.isfinite().all()) for part in state["set"])
        kept.append((state["iteration"], state["set"][0].clone()))

    try:
        final, history = mkdt_set(
            make_set(), Source(experts=experts), spec, settings, seed=0, distill_seed=0, device=torch.device("cpu"),
            report=lambda step, values, pictures=None: losses.append(values["loss"]), checkpoint=checkpoint,
        )  # fmt: skip
        assert all(bool(part.isfinite().all()) for part in (*final.tensors().values(), history))
    except UserError as stopped:
        assert "lower distill.image_lr" in str(stopped)  # noqa: PT017
    assert len(kept) == len(losses)  # a state is saved after its loss is known
    assert not any(diverged(loss, max(1.0, losses[0])) for loss in losses)


@pytest.mark.parametrize("rate", RATES)
def test_an_expert_is_finite_or_refused(rate: float, source: tuple[Tensor, Tensor], spec: dict[str, Any]) -> None:
    """The loss of an epoch does not include its last step, so the weights are checked as well."""
    training = {"epochs": 3, "batch": 8, "lr": rate, "momentum": 0.9, "weight_decay": 1e-4}
    with pytest.raises(UserError, match=r"diverged in epoch \d.*lower experts\.lr"):
        train_expert(*source, spec, training, seed=0, expert=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("rate", RATES)
def test_a_teacher_that_diverges_is_refused(rate: float, optimizer: str, source: tuple[Tensor, Tensor]) -> None:
    """No state that is not finite is saved before."""
    pixels = (source[0] * 50 + 127).clamp(0, 255).to(torch.uint8)

    def checkpoint(make: Callable[[], dict[str, Any]]) -> None:
        assert all(bool(tensor.isfinite().all()) for tensor in make()["model"].values())

    with pytest.raises(UserError, match=r"diverged in epoch \d.*lower teacher\.lr"):
        train_teacher(
            pixels, torch.tensor([0.5]), torch.tensor([0.2]), TEACHER | {"lr": rate, "optimizer": optimizer}, seed=0,
            device=torch.device("cpu"), checkpoint=checkpoint,
        )  # fmt: skip


@pytest.mark.parametrize("key", ["lr", "student_lr"])
@pytest.mark.parametrize("rate", RATES)
def test_krr_saves_finite_states_only(
    key: str, rate: float, source: tuple[Tensor, Tensor], spec: dict[str, Any], make_set: Callable[..., SyntheticSet]
) -> None:
    """Images, targets and the students of the pool may diverge."""
    losses: list[float] = []

    def checkpoint(make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        assert all(bool(part.isfinite().all()) for part in make()["set"])

    pixels = (source[0] * 50 + 127).clamp(0, 255).to(torch.uint8)
    try:
        final, history = krr_st_set(
            make_set(), Source(pixels, targets=source[1]), spec, KRR | {key: rate}, seed=0, distill_seed=0, device=torch.device("cpu"),
            report=lambda step, values, pictures=None: losses.append(values["loss"]), checkpoint=checkpoint,
        )  # fmt: skip
        assert all(bool(part.isfinite().all()) for part in (*final.tensors().values(), history))
    except UserError as stopped:
        assert "lower krr_st." in str(stopped)  # noqa: PT017
    assert not any(diverged(loss, losses[0]) for loss in losses)


def test_rates_of_pretraining_that_diverge_are_marked_and_do_not_affect_others(
    source: tuple[Tensor, Tensor], spec: dict[str, Any]
) -> None:
    """Every valid snapshot is finite; a good rate gives the same bits next to diverging ones."""
    training = {"batch": 4, "momentum": 0.9, "weight_decay": 1e-4}
    alone = pretrain_grid(*source, spec, training, rates=[0.02], steps=[1, 4, 9], seed=0)
    grid = pretrain_grid(*source, spec, training, rates=[*RATES, 0.02], steps=[1, 4, 9], seed=0)
    assert not grid["valid"][:-1, 1:].any()
    assert grid["valid"][-1].all()
    assert torch.equal(grid["snapshots"][-1], alone["snapshots"][0])
    assert grid["snapshots"].isfinite().all()
    assert grid["losses"][grid["valid"]].isfinite().all()
