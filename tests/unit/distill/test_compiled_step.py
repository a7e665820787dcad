"""Compare compiled steps with plain ones, with and without a compiler."""

import logging
from typing import Any

import pytest
import torch
from matching import match_trajectory
from torch import Tensor

from mkdt.distill.compiled_step import CompiledStep
from mkdt.networks.flat import flat_mse, flatten
from mkdt.networks.students import build_student


def problem() -> tuple[Any, ...]:
    """Make a loss, theta0, target, images, targets, step size and batches of two sizes, float64."""
    student = build_student({"architecture": "convnet", "depth": 1, "width": 3, "norm": "instance"}, 1, 4, 2, 0, "x")
    student = student.double()
    stream = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    theta0 = flatten(student)
    batches = [torch.tensor(rows) for rows in ([0, 1, 2], [3, 4], [2, 0, 0])]
    return flat_mse(student), theta0, theta0 + 0.1 * normal(len(theta0)), normal(5, 1, 4, 4), normal(5, 2), 0.1, batches


@pytest.mark.parametrize("learn_targets", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_traced_steps_equal_the_plain_ones(
    learn_targets: bool, momentum: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a compiler the traced operators run, with the same numbers and one warning for all shapes."""

    def no_compiler(function: Any, **options: Any) -> Any:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    arguments = problem()
    options = {"learn_targets": learn_targets, "momentum": momentum}
    with caplog.at_level(logging.WARNING, "mkdt"):
        got = match_trajectory(*arguments, compiled=CompiledStep(arguments[0], learn_targets), **options)
    warnings = [record.getMessage() for record in caplog.records if record.name == "mkdt"]
    assert [warning.count("no C++ compiler") for warning in warnings] == [1]
    for mine, wanted in zip(got, match_trajectory(*arguments, **options), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_compiled_steps_equal_the_plain_ones(caplog: pytest.LogCaptureFixture) -> None:
    """With a compiler there is no warning, and the gradient is exact."""
    arguments = problem()
    with caplog.at_level(logging.WARNING, "mkdt"):
        got = match_trajectory(*arguments, compiled=CompiledStep(arguments[0]))
    warnings = [record.getMessage() for record in caplog.records if record.name == "mkdt"]
    if warnings:
        pytest.skip(warnings[0])
    for mine, wanted in zip(got, match_trajectory(*arguments), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
