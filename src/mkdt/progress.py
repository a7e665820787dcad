"""How a training loop speaks to the job that runs it: values to show, and a state to go on from after an interruption."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor


class Report(Protocol):
    """Takes what a loop shows."""

    def __call__(self, step: int, values: Mapping[str, float], pictures: Tensor | None = None) -> None:
        """Take named values, and where there are any pictures uint8 [n,C,H,W], at a step."""


class Checkpoint(Protocol):
    """Takes what a loop needs to go on from here."""

    def __call__(self, make: Callable[[], dict[str, Any]], now: bool = False) -> None:
        """Save the state that ``make`` returns, if it is time to or ``now``.

        Raises:
            SystemExit: the job was asked to stop, and the state is saved.
        """


def no_report(step: int, values: Mapping[str, float], pictures: Tensor | None = None) -> None:
    """Show nothing."""


def no_checkpoint(make: Callable[[], dict[str, Any]], now: bool = False) -> None:
    """Save nothing."""
