"""Rates and step sizes that diverge: a stage stops with one sentence and never keeps or returns a set that exploded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mkdt.artifacts import Artifact
from mkdt.distill import distill
from mkdt.divergence import EXPLODED, diverged
from mkdt.errors import UserError
from mkdt.experts import train_expert
from mkdt.synthetic import SyntheticSet

pytestmark = pytest.mark.counts("faults injected")

SETTINGS: dict[str, Any] = {
    "iterations": 12, "steps": 3, "match_epochs": 1, "start_epochs": 2, "curriculum": False, "batch": 4, "momentum": 0.0,
    "image_optimizer": "sgd", "image_lr": 1.0, "learn_targets": True, "target_lr": 1.0,
    "step_size": {"initial": 0.1, "lr": 1e-3, "space": "log"}, "retain": 0, "compile": False, "pictures": 2,
}  # fmt: skip
RATES = [10.0**exponent for exponent in (2, 5, 10, 20, 30)]


def test_the_rule() -> None:
    """Not finite, or a million times the start; a start of nothing counts as one."""
    assert not diverged(EXPLODED, 1.0)
    assert not diverged(1.0, 0.0)
    for loss in (EXPLODED * 1.01, float("nan"), float("inf")):
        assert diverged(loss, 1.0)
    assert diverged(float("inf"), float("inf"))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("key", ["image_lr", "target_lr", "step_size.lr", "step_size.initial"])
def test_distilling_keeps_good_states_only(
    key: str, rate: float, experts: list[Artifact], spec: dict[str, Any], make_set: Callable[..., SyntheticSet]
) -> None:
    """Whatever is swept: each kept state is finite and its loss within the rule, and so is a set that is returned."""
    settings = SETTINGS | {"step_size": dict(SETTINGS["step_size"])}
    (settings["step_size"] if "." in key else settings)[key.split(".")[-1]] = rate
    losses: list[float] = []
    kept: list[tuple[int, Tensor]] = []

    def checkpoint(make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        state = make()
        assert all(bool(part.isfinite().all()) for part in state["set"])
        kept.append((state["iteration"], state["set"][0].clone()))

    try:
        final, history = distill(
            make_set(), experts, spec, settings, seed=0, distill_seed=0, device=torch.device("cpu"),
            report=lambda step, values, pictures=None: losses.append(values["loss"]), checkpoint=checkpoint,
        )  # fmt: skip
        assert all(bool(part.isfinite().all()) for part in (*final.tensors().values(), history))
    except UserError as stopped:
        assert "lower distill.image_lr" in str(stopped)  # noqa: PT017
    assert len(kept) == len(losses)  # a state is kept once its own loss is known
    assert not any(diverged(loss, max(1.0, losses[0])) for loss in losses)


@pytest.mark.parametrize("rate", RATES)
def test_an_expert_is_finite_or_refused(rate: float, source: tuple[Tensor, Tensor], spec: dict[str, Any]) -> None:
    """The last step of an epoch is not seen by its loss: the weights are looked at too."""
    training = {"epochs": 3, "batch": 8, "lr": rate, "momentum": 0.9, "weight_decay": 1e-4}
    with pytest.raises(UserError, match=r"diverged in epoch \d.*lower experts\.lr"):
        train_expert(*source, spec, training, seed=0, expert=0)
