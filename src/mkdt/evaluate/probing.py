"""The measurement of one method: the test split is opened once, at the points that validation chose."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mkdt.config.plan import scored_name
from mkdt.errors import UserError
from mkdt.evaluate.fine_tuning import score_finetuned
from mkdt.evaluate.labels import Downstream, all_draws
from mkdt.evaluate.student_grid import Point, Rows, StudentGrid, mean_accuracy
from mkdt.progress import Report, no_report

Flags = dict[str, bool]


def chosen_points(selected: Sequence[Mapping[str, Any]], students: StudentGrid) -> dict[Point, Flags]:
    """Return the points that ``selection.select`` chose, the method's and the best at each number of steps.

    Args:
        selected: its rows.
        students: that it chose for.

    Returns:
        by point the columns ``chosen``, ``chosen_at_steps`` and ``at_edge``.

    Raises:
        ValueError, LookupError: the rows are of other students, or name no point as the method's.
    """
    columns = ("chosen", "chosen_at_steps", "at_edge")
    rows = [row for row in selected if row["chosen_at_steps"]]
    points = {students.point_of(row): {column: bool(row[column]) for column in columns} for row in rows}
    if sum(flags["chosen"] for flags in points.values()) != 1:
        raise ValueError("not one point is chosen")
    return points


def probe(
    students: StudentGrid,
    chosen: Mapping[Point, Flags],
    downstream: Sequence[Downstream],
    settings: Mapping[str, Any],
    *,
    selection: Downstream | None = None,
    seed: int,
    device: torch.device,
    report: Report = no_report,
) -> Rows:
    """Score the chosen points on the test split by the linear probe; the method's own also by k-NN and fine-tuning.

    Validation chooses the learning rate of fine-tuning, once for all downstream sets, before the test split is opened.

    Args:
        students: of one method.
        chosen: as from ``chosen_points``.
        downstream: the sets whose test split is reported.
        settings: ``label_fractions``, ``label_draws``, ``l2``, ``standardise``; ``knn`` (neighbours, or None); ``finetune``
            (its section, or None), with it ``selection_draws``.
        selection: the set whose validation split chooses the rate of fine-tuning; None where there is none to choose.
        seed: of the label draws.
        device: where to encode and fine-tune.
        report: called for each downstream set with the mean accuracies at the method's point.

    Returns:
        one row an accuracy in per cent: split, downstream, rate, steps, distill_seed, seed, evaluation (linear, knn or
        finetune), label_fraction, label_draw, accuracy, gradient, finetune_rate, and the columns of ``chosen``. Rows of
        fine-tuning on validation have ``chosen`` at the chosen learning rate.

    Raises:
        UserError: a student fails on a downstream set.
    """
    best = next(point for point, flags in chosen.items() if flags["chosen"])
    rows, finetune_rate = [], None
    if settings["finetune"] is not None:
        assert selection is not None
        tried = {
            rate: _finetuned(students, best, selection, "validation", rate, settings, seed, device)
            for rate in settings["finetune"]["rates"]
        }
        finetune_rate = max(tried, key=lambda rate: mean_accuracy(tried[rate]))
        unchosen = {"chosen_at_steps": False, "at_edge": False}
        rows += [row | {"chosen": rate == finetune_rate} | unchosen for rate in tried for row in tried[rate]]
    for k, data in enumerate(downstream):
        drawn = all_draws(data, settings["label_fractions"], settings["label_draws"], seed)
        scored = {}
        for point in sorted(chosen):
            neighbours = settings["knn"] if point == best else None
            found = students.score(point, data, "test", drawn, settings, device, neighbours)
            if found is None:
                raise UserError(
                    f"probe: a student diverged at the point that was chosen, rate {students.first_rates[point[0]]:g} after "
                    f"{students.steps[point[1]]} steps: choose anew with snakemake --forcerun select."
                )
            scored[point] = found
        if finetune_rate is not None:
            scored[best] += _finetuned(students, best, data, "test", finetune_rate, settings, seed, device)
        rows += [row | chosen[point] for point in scored for row in scored[point]]
        report(k + 1, _means(scored[best]))
    return rows


def _finetuned(
    students: StudentGrid,
    point: Point,
    data: Downstream,
    split: str,
    rate: float,
    settings: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> Rows:
    """Score fine-tuning at one learning rate, from a point at which no student diverged."""
    draws, rows = settings["selection_draws" if split == "validation" else "label_draws"], []
    drawn = all_draws(data, settings["label_fractions"], draws, seed)
    for columns, backbone in students.at(point, data, split):
        assert backbone is not None
        scored = score_finetuned(backbone, data, split, drawn, rate, settings["finetune"], seed, device)
        rows += [columns | row for row in scored]
    return rows


def _means(rows: Rows) -> dict[str, float]:
    """Return the mean accuracy of each evaluation and label fraction, as they are shown."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(f"test_accuracy/{scored_name(row)}", []).append(row)
    return {key: mean_accuracy(group) for key, group in groups.items()}
