"""The students of one method at every point of their pre-training grid, scored on frozen features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import numpy as np
import torch
from torch import nn

from mkdt.artifacts import Artifact
from mkdt.errors import UserError
from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, LabelDraws, View
from mkdt.evaluate.linear_probe import score
from mkdt.evaluate.pretraining import snapshots
from mkdt.teacher.encoding import load_teacher

Point = tuple[int, int]  # of the grid: indices of the learning rate and of the number of steps
StudentKey = tuple[int, int]  # distill seed, student seed
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class StudentGrid:
    """The students of one method.

    Attributes:
        restore: for each student a function (rate index, step index) to the frozen backbone, or to None where pre-training
            diverged.
        rates: of each student. All have the same, except under the protocol ``paper``, where each set has its own.
        steps: of all students.
    """

    restore: Mapping[StudentKey, Callable[[int, int], nn.Module | None]]
    rates: Mapping[StudentKey, Sequence[float]]
    steps: Sequence[int]

    @classmethod
    def of_files(cls, files: Mapping[StudentKey, Artifact]) -> "StudentGrid":
        """Read what ``pretrain_grid`` returned for each student."""
        rates = {student: file.tensor("rates").tolist() for student, file in files.items()}
        steps: list[int] = next(iter(files.values())).tensor("steps").tolist()
        return cls({student: snapshots(file) for student, file in files.items()}, rates, steps)

    @classmethod
    def of_teacher(cls, file: Artifact, view: View) -> tuple["StudentGrid", View]:
        """Let a teacher stand for all students, in a grid of one point; return also the normalisation that it takes."""
        backbone, mean, std = load_teacher(file, view.channels, view.size, view.mean, view.std)
        return cls({(0, 0): lambda rate, step: backbone}, {(0, 0): [0.0]}, [0]), replace(view, mean=mean, std=std)

    @property
    def first_rates(self) -> Sequence[float]:
        """Learning rates of the first student, which stand for all in messages."""
        return next(iter(self.rates.values()))

    @property
    def points(self) -> list[Point]:
        """All points of the grid, by steps and then by rate."""
        return [(r, s) for s in range(len(self.steps)) for r in range(len(self.first_rates))]

    def point_of(self, row: Mapping[str, Any]) -> Point:
        """Return the point at which a row was scored, from its columns.

        Raises:
            ValueError, LookupError: the grid has no such point, or no such student.
        """
        rates = self.rates[row["distill_seed"], row["seed"]]
        nearest = min(range(len(rates)), key=lambda k: abs(rates[k] - row["rate"]))
        if not isclose(rates[nearest], row["rate"], rel_tol=1e-9):  # a table of text may round the last digit
            raise ValueError(f"no rate {row['rate']:g}")
        return nearest, self.steps.index(row["steps"])

    def at(self, point: Point, data: Downstream, split: str) -> Iterator[tuple[dict[str, Any], nn.Module | None]]:
        """Yield the columns that identify a student's rows, and its backbone; each is restored when it is asked for."""
        for student, restore in self.restore.items():
            columns = {
                "split": split,
                "downstream": data.name,
                "rate": self.rates[student][point[0]],
                "steps": self.steps[point[1]],
                "distill_seed": student[0],
                "seed": student[1],
            }
            yield columns, restore(*point)

    def score(
        self,
        point: Point,
        data: Downstream,
        split: str,
        drawn: LabelDraws,
        settings: Mapping[str, Any],
        device: torch.device,
        neighbours: int | None = None,
    ) -> Rows | None:
        """Score the linear probe at a point, with ``neighbours`` also k-NN.

        Args:
            point: of the grid.
            data, split, drawn: the labelled set, ``validation`` or ``test``, and the training rows whose labels are known.
            settings: ``l2`` and ``standardise``.
            device: where to encode.
            neighbours: as for ``linear_probe.score``.

        Returns:
            the rows of ``linear_probe.score`` for every student, with the columns that identify it; None where a student
            diverged, which for validation includes features that are not finite.

        Raises:
            UserError: features of the test split are not finite.
        """
        labelled, rows = torch.cat(list(drawn.values())), []
        for columns, backbone in self.at(point, data, split):
            if backbone is None:
                return None
            try:
                features = Features(backbone, data, device, labelled, settings["standardise"])
                scored = score(features, data, split, drawn, settings["l2"], neighbours)
            except FloatingPointError as error:  # finite weights can still overflow
                if split == "validation":
                    return None
                raise UserError(
                    f"probe: features of {data.name} are not finite ({error}): lower pretrain.rates."
                ) from error
            rows += [columns | row for row in scored]
        return rows


def mean_accuracy(rows: Rows) -> float:
    """Return the mean accuracy of rows, in per cent."""
    return float(np.mean([row["accuracy"] for row in rows]))
