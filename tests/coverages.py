"""Coverage of the report's intervals in simulated experiments with known truth; run as a script, it prints the table of docs/method.md."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mkdt.report.statistics import half_width
from mkdt.report.tables import markdown

LEVELS = [(2, 2), (2, 3), (3, 3), (3, 5), (5, 5), (2, 2, 2), (2, 5, 5), (5, 5, 5)]
KNOWN = 1.959964  # half the width of an interval that knows the variance, in standard deviations
COARSE = 2.0


@dataclass(frozen=True)
class World:
    """How values vary.

    Attributes:
        first, others: standard deviations of the effect of the factor with the fewest levels, and of the others.
        interaction: standard deviation of every interaction, that of all factors included.
        coarse: whether values are multiples of ``COARSE``, as accuracies on few images are.
    """

    first: float
    others: float
    interaction: float
    coarse: bool = False

    def draw(self, levels: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw the values of an experiment; the mean of all experiments is 0."""
        values = np.zeros(levels)
        for kept in np.ndindex(*(2,) * len(levels)):
            if any(kept):
                main = self.first if kept[0] else self.others
                deviation = main if sum(kept) == 1 else self.interaction
                shape = [count if one else 1 for count, one in zip(levels, kept, strict=True)]
                values = values + rng.normal(0, deviation, shape)
        if self.coarse:  # up or down at random, so that the mean stays
            values = COARSE * np.floor(values / COARSE + rng.random(levels))
        return values

    def deviation(self, levels: tuple[int, ...]) -> float:
        """Return the standard deviation of the mean of an experiment, without that of rounding."""
        variance = 0.0
        for kept in np.ndindex(*(2,) * len(levels)):
            if any(kept):
                main = self.first if kept[0] else self.others
                deviation = main if sum(kept) == 1 else self.interaction
                variance += deviation**2 / math.prod(count for count, one in zip(levels, kept, strict=True) if one)
        return math.sqrt(variance)


WORLDS = {
    "interaction alone": World(0, 0, 1),
    "small effects, interaction": World(0.3, 0.3, 1),
    "large effects, interaction": World(3, 3, 1),
    "large effects": World(3, 3, 0),
    "one large effect, interaction": World(3, 0.3, 1),
    "one large effect": World(3, 0.3, 0),
    "small effects, coarse": World(0.3, 0.3, 0, coarse=True),
}


def coverage(world: World, levels: tuple[int, ...], experiments: int, seed: int = 0) -> tuple[float, float]:
    """Return the coverage in per cent, of the experiments that have an interval, and the median half width."""
    rng = np.random.default_rng(seed)
    hits, widths = [], []
    for _ in range(experiments):
        values = world.draw(levels, rng)
        half = half_width(values)
        if not math.isnan(half):
            hits.append(abs(values.mean()) <= half)
            widths.append(half)
    return 100 * float(np.mean(hits)), float(np.median(widths))


def table(experiments: int) -> str:
    """Format a row for each number of levels, a column for each world, and how much wider than with known variance."""
    rows = []
    for levels in LEVELS:
        found = {name: coverage(world, levels, experiments) for name, world in WORLDS.items()}
        ratios = [found[n][1] / KNOWN / w.deviation(levels) for n, w in WORLDS.items() if not w.coarse]
        cells = [f"{covered:.1f}" for covered, _ in found.values()]
        rows.append(["x".join(map(str, levels)), *cells, f"{min(ratios):.1f} to {max(ratios):.1f}"])
    return markdown(["levels", *WORLDS, "width"], rows)


if __name__ == "__main__":
    print(table(10_000))
