"""The choice of one point of a method's pre-training grid, by the linear probe on validation images."""

from collections.abc import Mapping
from typing import Any

import torch

from mkdt.errors import UserError
from mkdt.evaluate.labels import Downstream, all_draws
from mkdt.evaluate.student_grid import Point, Rows, StudentGrid, mean_accuracy
from mkdt.progress import Report, no_report


def select(
    students: StudentGrid,
    data: Downstream,
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    report: Report = no_report,
) -> Rows:
    """Score every point of the grid on validation, and choose.

    The point with the highest mean accuracy (over seeds, label fractions and draws) is chosen, once for all downstream sets;
    for the accuracy-against-steps curve also the best rate at each number of steps. Of equal points the first wins.

    Args:
        students: of one method.
        data: the labelled set whose validation split chooses.
        settings: ``label_fractions``, ``selection_draws``, ``l2``, ``standardise``.
        seed: of the label draws.
        device: where to encode.
        report: called for each point that is scored, and once more for the chosen one.

    Returns:
        one row an accuracy in per cent, without points at which a student diverged: the columns of ``StudentGrid.score``,
        ``chosen`` (the method's point), ``chosen_at_steps`` (the best rate at these steps), ``at_edge`` (the chosen point
        has the smallest or largest rate, or the most steps, of a grid with several).

    Raises:
        UserError: at every point of the grid some student diverged.
    """
    drawn = all_draws(data, settings["label_fractions"], settings["selection_draws"], seed)
    validation: dict[Point, Rows] = {}
    shown: dict[Point, dict[str, float]] = {}
    for k, point in enumerate(students.points):
        scored = students.score(point, data, "validation", drawn, settings, device)
        if scored is not None:
            validation[point] = scored
            where = {"rate": students.first_rates[point[0]], "steps": students.steps[point[1]]}
            shown[point] = {"validation_accuracy": mean_accuracy(scored), **where}
            report(k + 1, shown[point])
    if not validation:
        rates = ", ".join(f"{rate:g}" for rate in students.first_rates)
        raise UserError(
            f"select: training diverged at every point of the grid (learning rates {rates}) for at least one student: "
            "lower pretrain.rates, or with the paper's protocol distill.step_size."
        )
    accuracy = {point: mean_accuracy(rows) for point, rows in validation.items()}
    best = _best(accuracy)
    best_at_steps = {s: _best({p: value for p, value in accuracy.items() if p[1] == s}) for _, s in accuracy}
    report(len(students.points) + 1, shown[best])
    edge = {"at_edge": _at_edge(best, len(students.first_rates), len(students.steps))}
    return [
        row | {"chosen": point == best, "chosen_at_steps": point == best_at_steps[point[1]]} | edge
        for point, rows in validation.items()
        for row in rows
    ]


def _best(accuracy: Mapping[Point, float]) -> Point:
    return max(accuracy, key=lambda point: accuracy[point])


def _at_edge(point: Point, rates: int, steps: int) -> bool:
    """Return whether a grid larger than so many ``rates`` and ``steps`` might have a better point."""
    return (rates > 1 and point[0] in {0, rates - 1}) or (steps > 1 and point[1] == steps - 1)
