"""Divergence of a training: the rule that all stages use."""

import math

from mkdt.errors import UserError

# A high factor, because stopping a run that would recover costs more than finishing one that does not, which its losses
# show. Observed peaks, in multiples of the first loss: 10, which recovered (study of digits); 3e5, which returned to the
# first loss; 6e6, which ended at 16.
EXPLODED = 1e6


class Diverged(UserError):
    """Raised when a training diverged; the message names the learning rate to lower."""


def diverged(loss: float, start: float) -> bool:
    """Return whether a loss is not finite, or above ``EXPLODED`` times ``start``, the loss of the first step.

    A ``start`` of 0 counts as 1.
    """
    return not (math.isfinite(loss) and loss <= EXPLODED * (start or 1.0))
