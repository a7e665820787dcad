"""MKDT: the loss that it matches, and the arguments that it passes on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mkdt.artifacts import Artifact
from mkdt.distill.mkdt import mkdt_set
from mkdt.distill.source import Source
from mkdt.distill.synthetic_set import SyntheticSet
from mkdt.distill.trajectory_matching import match_experts
from mkdt.networks.flat import flat_mse
from mkdt.networks.students import build_student

SETTINGS: dict[str, Any] = {
    "iterations": 3, "steps": 2, "batch": 4, "match_epochs": 2, "start_epochs": 2, "curriculum": False, "momentum": 0.0,
    "image_optimizer": "sgd", "target_optimizer": "sgd", "schedule": "constant", "average": 0, "image_lr": 5.0, "target_lr": 1.0, "learn_targets": True, "retain": 0, "compile": False,
    "step_size": {"initial": 0.1, "lr": 1e-3, "space": "log"}, "pictures": 2,
}  # fmt: skip


def test_mkdt_matches_experts_by_the_mse_to_the_targets(
    experts: list[Artifact],
    make_set: Callable[..., SyntheticSet],
    spec: dict[str, Any],
    freeze: Callable[[Any], Any],
) -> None:
    """Both seeds, reports, checkpoints and a saved state reach the loop; the template's weights do not matter."""
    how: dict[str, Any] = {"seed": 1, "distill_seed": 2, "device": torch.device("cpu")}
    states: list[dict[str, Any]] = []
    losses: list[float] = []

    def report(step: int, values: Any, pictures: Tensor | None = None) -> None:
        losses.append(values["loss"])

    made, history = mkdt_set(
        make_set(), Source(experts=experts), spec, SETTINGS, report=report,
        checkpoint=lambda make, now=False: states.append(freeze(make())), **how,
    )  # fmt: skip
    assert len(losses) == len(states) == SETTINGS["iterations"]
    resumed, _ = mkdt_set(make_set(), Source(experts=experts), spec, SETTINGS, state=states[1], **how)
    loss_fn = flat_mse(build_student(spec, 1, 8, 3, 123, "any weights"))
    expected, expected_history = match_experts(make_set(), experts, loss_fn, SETTINGS, **how)
    assert torch.equal(history, expected_history)
    for name, tensor in expected.tensors().items():
        assert torch.equal(getattr(made, name), tensor)
        assert torch.equal(getattr(resumed, name), tensor)
