"""Evaluation of one method: validation chooses a point of the pre-training grid, then the test split is opened once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mkdt.errors import UserError
from mkdt.evaluate.features import Features
from mkdt.evaluate.fine_tuning import score_finetuned
from mkdt.evaluate.labels import Downstream, LabelDraws, all_draws
from mkdt.evaluate.linear_probe import score
from mkdt.progress import Report, no_report

Point = tuple[int, int]  # of the grid: indices of the learning rate and of the number of steps
StudentKey = tuple[int, int]  # distill seed, student seed
Rows = list[dict[str, Any]]


def probe(
    students: Mapping[StudentKey, Callable[[int, int], nn.Module | None]],
    rates: Mapping[StudentKey, Sequence[float]],
    steps: Sequence[int],
    selection: Downstream,
    downstream: Sequence[Downstream],
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    report: Report = no_report,
) -> Rows:
    """Evaluate one method: every point of its pre-training grid on validation, the chosen points on test.

    The linear probe chooses the point with the highest mean validation accuracy (over seeds, label fractions and draws of
    the selection set), once for all downstream sets. For the accuracy-against-steps curve it also chooses the best rate at
    each number of steps. Then the test split is opened once, for these points. At the chosen point k-NN and fine-tuning
    are scored too; validation chooses the learning rate of fine-tuning before.

    Args:
        students: for each (distill_seed, seed) a function (rate index, step index) to the frozen backbone, or to
            None where pre-training diverged.
        rates: of each student. All have the same, except under the protocol ``paper``, where each set has its own.
        steps: of all students.
        selection: the labelled set whose validation split chooses.
        downstream: the sets whose test split is reported.
        settings: ``label_fractions``; ``label_draws``, of which the first ``selection_draws`` choose; ``l2``;
            ``standardise``; ``knn`` (neighbours, or None); ``finetune`` (its section, or None).
        seed: of the label draws.
        device: where to encode and fine-tune.
        report: called for each point of the grid that is scored.

    Returns:
        one row an accuracy in per cent: split, downstream, rate, steps, distill_seed, seed, evaluation (linear, knn or
        finetune), label_fraction, label_draw, accuracy, gradient, finetune_rate, chosen (the method's point),
        chosen_at_steps (best rate at these steps), at_edge (the chosen point has the smallest or largest rate, or the
        most steps, of a grid with several).

    Raises:
        UserError: at every point of the grid some student diverged, or one fails on a downstream set.
    """
    evaluator = _Evaluator(students, rates, steps, settings, seed, device)
    validation = evaluator.validate(selection, report)
    choice = _choose(validation, len(evaluator.first_rates), len(steps))
    rows = [row | choice.flags(point) for point, scored in validation.items() for row in scored]
    finetune_rate = None
    if settings["finetune"] is not None:
        tried = {
            rate: evaluator.finetuned(selection, "validation", choice.best, rate)
            for rate in settings["finetune"]["rates"]
        }
        finetune_rate = max(tried, key=lambda rate: _mean_accuracy(tried[rate]))
        unchosen = {"chosen_at_steps": False, "at_edge": False}
        rows += [row | {"chosen": rate == finetune_rate} | unchosen for rate in tried for row in tried[rate]]
    for data in downstream:
        for point in choice.points():
            neighbours = settings["knn"] if point == choice.best else None
            rows += [row | choice.flags(point) for row in evaluator.linear(data, "test", point, neighbours) or []]
        if finetune_rate is not None:
            scored = evaluator.finetuned(data, "test", choice.best, finetune_rate)
            rows += [row | choice.flags(choice.best) for row in scored]
    return rows


@dataclass(frozen=True)
class _Evaluator:
    """Scores the students of one method at a point of the grid; the attributes are arguments of ``probe``."""

    students: Mapping[StudentKey, Callable[[int, int], nn.Module | None]]
    rates: Mapping[StudentKey, Sequence[float]]
    steps: Sequence[int]
    settings: Mapping[str, Any]
    seed: int
    device: torch.device

    @property
    def first_rates(self) -> Sequence[float]:
        """Learning rates of the first student, which stand for all in messages."""
        return next(iter(self.rates.values()))

    def validate(self, selection: Downstream, report: Report) -> dict[Point, Rows]:
        """Score every point of the grid on validation, without those at which a student diverged.

        Raises:
            UserError: there is no other point.
        """
        points = [(r, s) for s in range(len(self.steps)) for r in range(len(self.first_rates))]
        validation = {}
        for k, point in enumerate(points):
            scored = self.linear(selection, "validation", point)
            if scored is not None:
                validation[point] = scored
                where = {"rate": self.first_rates[point[0]], "steps": self.steps[point[1]]}
                report(k + 1, {"validation_accuracy": _mean_accuracy(scored), **where})
        if not validation:
            rates = ", ".join(f"{rate:g}" for rate in self.first_rates)
            raise UserError(
                f"probe: training diverged at every point of the grid (learning rates {rates}) for at least one student: "
                "lower pretrain.rates, or with the paper's protocol distill.step_size."
            )
        return validation

    def linear(self, data: Downstream, split: str, point: Point, neighbours: int | None = None) -> Rows | None:
        """Score the linear probe, with ``neighbours`` also k-NN; None where a student diverged.

        Raises:
            UserError: features on the test split are not finite.
        """
        drawn = self._drawn(data, split)
        rows: Rows = []
        for columns, backbone in self._backbones(data, split, point):
            if backbone is None:
                return None
            try:
                labelled = torch.cat(list(drawn.values()))
                features = Features(backbone, data, self.device, labelled, self.settings["standardise"])
                scored = score(features, data, split, drawn, self.settings["l2"], neighbours)
            except FloatingPointError as error:  # finite weights can still overflow
                if split == "validation":
                    return None
                raise UserError(
                    f"probe: features of {data.name} are not finite ({error}): lower pretrain.rates."
                ) from error
            rows += [columns | row for row in scored]
        return rows

    def finetuned(self, data: Downstream, split: str, point: Point, rate: float) -> Rows:
        """Score fine-tuning from a point at which no student diverged."""
        drawn = self._drawn(data, split)
        rows: Rows = []
        for columns, backbone in self._backbones(data, split, point):
            assert backbone is not None
            settings = self.settings["finetune"]
            scored = score_finetuned(backbone, data, split, drawn, rate, settings, self.seed, self.device)
            rows += [columns | row for row in scored]
        return rows

    def _drawn(self, data: Downstream, split: str) -> LabelDraws:
        draws = self.settings["selection_draws" if split == "validation" else "label_draws"]
        return all_draws(data, self.settings["label_fractions"], draws, self.seed)

    def _backbones(
        self, data: Downstream, split: str, point: Point
    ) -> Iterator[tuple[dict[str, Any], nn.Module | None]]:
        """Yield the columns that identify a student's rows, and its backbone; each is restored when it is asked for."""
        for student, restore in self.students.items():
            columns = {
                "split": split,
                "downstream": data.name,
                "rate": self.rates[student][point[0]],
                "steps": self.steps[point[1]],
                "distill_seed": student[0],
                "seed": student[1],
            }
            yield columns, restore(*point)


@dataclass(frozen=True)
class _Choice:
    """The points of the grid that validation chose.

    Attributes:
        best: the method's point.
        best_at_steps: the best point at each number of steps, by its index.
        at_edge: whether a larger grid might have a better point.
    """

    best: Point
    best_at_steps: Mapping[int, Point]
    at_edge: bool

    def points(self) -> list[Point]:
        """Return all chosen points, in order."""
        return sorted({self.best, *self.best_at_steps.values()})

    def flags(self, point: Point) -> dict[str, bool]:
        """Return the columns that say what a point was chosen for."""
        at_steps = point == self.best_at_steps[point[1]]
        return {"chosen": point == self.best, "chosen_at_steps": at_steps, "at_edge": self.at_edge}


def _choose(validation: Mapping[Point, Rows], rates: int, steps: int) -> _Choice:
    """Choose by mean validation accuracy; of equal points the first.

    Args:
        validation: rows of each point, fewest steps first.
        rates, steps: how many the grid has.
    """
    accuracy = {point: _mean_accuracy(rows) for point, rows in validation.items()}
    best = max(accuracy, key=lambda point: accuracy[point])
    best_at_steps = {
        s: max((point for point in accuracy if point[1] == s), key=lambda point: accuracy[point])
        for s in {point[1] for point in accuracy}
    }
    at_edge = (rates > 1 and best[0] in {0, rates - 1}) or (steps > 1 and best[1] == steps - 1)
    return _Choice(best, best_at_steps, at_edge)


def _mean_accuracy(rows: Rows) -> float:
    return float(np.mean([row["accuracy"] for row in rows]))
