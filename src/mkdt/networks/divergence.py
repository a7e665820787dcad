"""When training has diverged: one rule for every stage that trains."""

import math

from mkdt.errors import UserError

# A cautious choice from a few runs: stopping one that would recover costs more than letting one pass, whose losses show it.
# Seen: a peak of 10 times the start, recovered (study of digits); of 3e5, which ended where it started; of 6e6, which ended at 16.
EXPLODED = 1e6


class Diverged(UserError):
    """Training has diverged: what was asked for cannot be had at these rates."""


def diverged(loss: float, start: float) -> bool:
    """Whether a loss is not finite, or above ``EXPLODED`` times what it was at the start (at the first step)."""
    return not (math.isfinite(loss) and loss <= EXPLODED * (start or 1.0))
