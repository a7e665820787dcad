"""When training has diverged: one rule for every stage that trains."""

import math

# A choice: high enough for a spike that training recovers from, and far below where float32 ends.
EXPLODED = 100.0


def diverged(loss: float, start: float) -> bool:
    """Whether a loss is not finite, or above ``EXPLODED`` times what it was at the start (at the first step)."""
    return not (math.isfinite(loss) and loss <= EXPLODED * (start or 1.0))
