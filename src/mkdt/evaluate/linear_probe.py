"""The evaluation with few labels: a linear classifier on frozen features chooses on validation; one look at test.

At the chosen point k-NN on the same features and fine-tuning may stand beside it, with the same label draws.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mkdt import seeding
from mkdt.data.pixels import Images, evenly_spaced_rows, in_batches
from mkdt.errors import UserError
from mkdt.evaluate.fine_tuning import finetune

ENCODE_BATCH = 1024
STATISTICS_IMAGES = 5000  # features are standardised with the statistics of at most so many training images
TOLERANCE = 1e-6  # L-BFGS stops when no entry of the gradient of the mean loss is larger
MOST_ITERATIONS = 5000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Downstream:
    """A labelled data set in the source's shape and normalisation.

    Attributes:
        name: of the data set.
        train, validation, test: images float32 [n,C,H,W] and labels int64 [n].
    """

    name: str
    train: tuple[Images, Tensor]
    validation: tuple[Images, Tensor]
    test: tuple[Images, Tensor]


def draw_labels(labels: Tensor, fraction: float, seed: int, dataset: str, draw: int) -> Tensor:
    """Rows whose labels are revealed: stratified by class, the same for every method.

    Args:
        labels: int64 [n] of the training split.
        fraction: share of the rows, in (0, 1].
        seed, dataset, draw: the identity of the draw.

    Returns:
        int64, ascending, round(fraction * n) of them. The classes share them in proportion to their size (largest
        remainders, of equal ones those of the first classes, in every draw), at least one a class: what this gives small
        classes the others have less. Where that is fewer rows than classes, as with 1 % of the paper's fine-grained
        sets, the classes that get one are drawn.
    """
    classes, counts = labels.unique(return_counts=True)
    share = counts.double() * fraction
    total = round(fraction * len(labels))
    stream = seeding.generator(seed, "label draw", dataset, f"{fraction:g}", draw)
    if total < len(classes):
        quota = torch.zeros_like(counts)
        quota[torch.randperm(len(classes), generator=stream)[:total]] = 1
    else:
        small = share < 1
        while small.any():  # their one row each; the rest is shared anew, until it makes no other class small
            share = torch.where(small, 1.0, counts * ((total - small.sum()) / counts[~small].sum()))
            if not (share < 1).any():
                break
            small |= share < 1
        quota = share.floor().long()
        missing = total - int(quota.sum())
        quota[(share - quota).argsort(descending=True, stable=True)[:missing]] += 1
    rows = []
    for label, wanted in zip(classes, quota.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        rows.append(members[torch.randperm(len(members), generator=stream)[:wanted]])
    return torch.cat(rows).sort().values


def fit_linear(features: Array, labels: NDArray[np.int64], l2: float) -> tuple[Any, float]:
    """Multinomial logistic regression to convergence: mean cross-entropy + l2 * ||W||^2, bias free of the penalty.

    Args:
        features: float64 [n,D].
        labels: int64 [n].
        l2: weight of the penalty.

    Returns:
        the fitted scikit-learn classifier and the largest absolute entry of the objective's gradient.
    """
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises C * sum of losses + ||W||^2 / 2; divided by C * n that is ours. With two classes it has
    # one row w for the softmax's two, w/2 and -w/2, so that ||W||^2 is ||w||^2 / 2.
    if len(np.unique(labels)) == 2:
        l2 = l2 / 2
    classifier = LogisticRegression(C=1 / (2 * l2 * len(labels)), tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    classifier.fit(features, labels)
    scores = features @ classifier.coef_.T + classifier.intercept_
    if scores.shape[1] == 1:  # two classes share one row of weights: the gradient is that of the logistic loss
        residual = 1 / (1 + np.exp(-scores)) - (labels == classifier.classes_[1])[:, None]
    else:
        scores -= scores.max(1, keepdims=True)
        residual = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        residual[np.arange(len(labels)), np.searchsorted(classifier.classes_, labels)] -= 1
    slope = residual.T @ features / len(labels) + 2 * l2 * classifier.coef_
    return classifier, float(max(np.abs(slope).max(), np.abs(residual.mean(0)).max()))


class Features:
    """What one frozen backbone says of one data set: encoded in eval mode, each image at most once."""

    def __init__(
        self, backbone: nn.Module, data: Downstream, device: torch.device, rows: Tensor, standardise: bool
    ) -> None:
        """Encode the training images that are needed: ``rows`` (drawn labels) and those that give the statistics."""
        self._backbone, self._data, self._device = backbone.to(device).eval(), data, device
        total = len(data.train[1])
        sample = evenly_spaced_rows(torch.arange(total), STATISTICS_IMAGES)
        needed = torch.cat([rows, sample]).unique() if standardise else rows.unique()
        features = self._encode(data.train[0][part] for part in needed.split(ENCODE_BATCH))
        if standardise:
            known = features[torch.searchsorted(needed, sample).numpy()]
            self._mean, self._scale = known.mean(0), known.std(0)
            self._scale[self._scale < 1e-8] = 1.0  # a dead feature stays at zero instead of dividing by it
        else:
            self._mean, self._scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
        self._needed, self._train = needed, (features - self._mean) / self._scale

    def train(self, rows: Tensor) -> Array:
        """Features float64 [len(rows),D] of training images."""
        return self._train[torch.searchsorted(self._needed, rows).numpy()]

    def held_out(self, split: str) -> Array:
        """Features float64 [n,D] of the ``validation`` or ``test`` split."""
        images = self._data.validation[0] if split == "validation" else self._data.test[0]
        return (self._encode(images.split(ENCODE_BATCH)) - self._mean) / self._scale

    def _encode(self, batches: Iterable[Tensor]) -> Array:
        encoded = in_batches(lambda batch: self._backbone(batch.to(self._device)), batches)
        features: Array = encoded.double().numpy()
        if not np.isfinite(features).all():
            raise FloatingPointError("features are not finite")
        return features


def score(
    features: Features,
    data: Downstream,
    split: str,
    fractions: Sequence[float],
    draws: int,
    l2: float,
    seed: int,
    neighbours: int | None = None,
) -> list[dict[str, Any]]:
    """Accuracy (per cent) on a split for every label fraction and draw; one row each, with the gradient left over.

    With ``neighbours`` another row for the majority of so many nearest labelled images by cosine (evaluation ``knn``).
    """
    from sklearn.neighbors import KNeighborsClassifier

    held_out = features.held_out(split)
    truth = (data.validation if split == "validation" else data.test)[1].numpy()
    labels = data.train[1]
    rows = []
    for fraction in fractions:
        for draw in range(draws):
            drawn = draw_labels(labels, fraction, seed, data.name, draw)
            known, answers = features.train(drawn), labels[drawn].numpy()
            linear, slope = fit_linear(known, answers, l2)
            fitted = {"linear": (linear, slope)}
            if neighbours is not None:
                knn = KNeighborsClassifier(min(neighbours, len(drawn)), metric="cosine").fit(known, answers)
                fitted["knn"] = knn, math.nan
            for name, (classifier, slope) in fitted.items():
                accuracy = 100 * float((classifier.predict(held_out) == truth).mean())
                row = {"label_fraction": fraction, "label_draw": draw, "accuracy": accuracy, "gradient": slope}
                rows.append({"evaluation": name, **row, "finetune_rate": math.nan})
    return rows


def score_finetuned(
    backbone: nn.Module,
    data: Downstream,
    split: str,
    rate: float,
    settings: Mapping[str, Any],
    draws: int,
    seed: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """The same rows for fine-tuning at one learning rate; what a network that diverged says of an image counts as wrong."""
    images, truth = data.validation if split == "validation" else data.test
    classes = int(data.train[1].max()) + 1
    rows = []
    for fraction in settings["label_fractions"]:
        for draw in range(draws):
            drawn = draw_labels(data.train[1], fraction, seed, data.name, draw)
            stream = seeding.derive(seed, "finetune", data.name, f"{fraction:g}", draw)
            known, answers = data.train[0][drawn].to(device), data.train[1][drawn].to(device)
            network = finetune(backbone.to(device), known, answers, classes, rate, settings["finetune"], stream)
            batches = (batch.to(device) for batch in images.split(ENCODE_BATCH))
            logits = in_batches(network, batches)
            right = (logits.argmax(1) == truth) & logits.isfinite().all(1)
            accuracy = 100 * float(right.double().mean())
            row = {"label_fraction": fraction, "label_draw": draw, "accuracy": accuracy, "gradient": math.nan}
            rows.append({"evaluation": "finetune", **row, "finetune_rate": rate})
    return rows


def probe(
    students: Mapping[tuple[int, int], Callable[[int, int], nn.Module | None]],
    rates: Mapping[tuple[int, int], Sequence[float]],
    steps: Sequence[int],
    selection: Downstream,
    downstream: Sequence[Downstream],
    settings: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    report: Callable[..., None] = lambda step, values: None,
) -> list[dict[str, Any]]:
    """Evaluate one method: every point of its pre-training grid on validation, the chosen ones on test.

    The point with the highest mean validation accuracy (over seeds, label fractions and draws of the selection
    set) is chosen once for all downstream sets; so is, for the accuracy-against-steps curve, the best rate at
    each number of steps. Then the test split is opened once, for these points. At the chosen one k-NN and fine-tuning are
    scored too; the latter's learning rate is chosen on the validation split before.

    Args:
        students: for each (distill_seed, seed) a function (rate index, step index) to the frozen backbone, or to
            None where pre-training diverged.
        rates: those of each student; they are the same for all but under the protocol ``paper``, where each set has its own.
        steps: of all students.
        selection: the labelled set whose validation split chooses.
        downstream: the sets whose test split is reported.
        settings: ``label_fractions``, ``label_draws``, of which the first ``selection_draws`` choose, ``l2``, ``standardise``,
            ``knn`` (neighbours, or None), ``finetune`` (its section, or None).
        seed: of the label draws.
        report: called as students are scored.

    Returns:
        rows of accuracies in per cent: split, downstream, rate, steps, distill_seed, seed, label_fraction,
        evaluation (linear, knn or finetune), label_draw, accuracy, gradient, finetune_rate, chosen (the method's point), chosen_at_steps (best rate at these steps),
        at_edge (the chosen point has the smallest or largest rate or the most steps of a larger grid).

    Raises:
        UserError: at every point of the grid some student diverged, or one fails on a downstream set.
    """
    fractions, l2 = settings["label_fractions"], settings["l2"]
    shown = next(iter(rates.values()))

    def who(data: Downstream, split: str, point: tuple[int, int], student: tuple[int, int]) -> dict[str, Any]:
        return {
            "split": split,
            "downstream": data.name,
            "rate": rates[student][point[0]],
            "steps": steps[point[1]],
            "distill_seed": student[0],
            "seed": student[1],
        }

    def evaluate(
        data: Downstream, split: str, point: tuple[int, int], neighbours: int | None = None
    ) -> list[dict[str, Any]] | None:
        """Rows of one grid point over all students; None where one of them diverged."""
        draws = settings["selection_draws" if split == "validation" else "label_draws"]
        drawn = [draw_labels(data.train[1], f, seed, data.name, d) for f in fractions for d in range(draws)]
        rows = []
        for student, restore in students.items():
            backbone = restore(*point)
            if backbone is None:
                return None
            try:
                features = Features(backbone, data, device, torch.cat(drawn), settings["standardise"])
                scored = score(features, data, split, fractions, draws, l2, seed, neighbours)
            except FloatingPointError as error:  # finite weights can still overflow
                if split == "validation":
                    return None
                raise UserError(
                    f"probe: features of {data.name} are not finite ({error}): lower pretrain.rates."
                ) from error
            rows += [who(data, split, point, student) | row for row in scored]
        return rows

    def finetuned(data: Downstream, split: str, point: tuple[int, int], rate: float) -> list[dict[str, Any]]:
        draws = settings["selection_draws" if split == "validation" else "label_draws"]
        rows = []
        for student, restore in students.items():
            backbone = restore(*point)
            assert backbone is not None  # the chosen point diverged for nobody
            scored = score_finetuned(backbone, data, split, rate, settings, draws, seed, device)
            rows += [who(data, split, point, student) | row for row in scored]
        return rows

    points = [(r, s) for s in range(len(steps)) for r in range(len(shown))]
    validation: dict[tuple[int, int], float] = {}
    rows_at: dict[tuple[int, int], list[dict[str, Any]]] = {}  # of the validation split
    for k, point in enumerate(points):
        scored = evaluate(selection, "validation", point)
        if scored is not None:
            validation[point] = float(np.mean([row["accuracy"] for row in scored]))
            rows_at[point] = scored
            report(k + 1, {"validation_accuracy": validation[point], "rate": shown[point[0]], "steps": steps[point[1]]})
    if not validation:
        raise UserError(
            f"probe: training diverged at every point of the grid (learning rates {', '.join(f'{r:g}' for r in shown)}) "
            "for at least one student: lower pretrain.rates, or with the paper's protocol distill.step_size."
        )
    best = max(validation, key=lambda point: validation[point])
    best_at = {
        s: max((p for p in validation if p[1] == s), key=lambda point: validation[point])
        for s in {point[1] for point in validation}
    }
    at_edge = (len(shown) > 1 and best[0] in {0, len(shown) - 1}) or (len(steps) > 1 and best[1] == len(steps) - 1)

    def flags(point: tuple[int, int]) -> dict[str, bool]:
        return {"chosen": point == best, "chosen_at_steps": point == best_at[point[1]], "at_edge": at_edge}

    rows = [row | flags(point) for point, scored in rows_at.items() for row in scored]
    finetune_rate = 0.0
    if settings["finetune"] is not None:
        tried = {rate: finetuned(selection, "validation", best, rate) for rate in settings["finetune"]["rates"]}
        finetune_rate = max(tried, key=lambda rate: float(np.mean([row["accuracy"] for row in tried[rate]])))
        aside = {"chosen_at_steps": False, "at_edge": False}
        rows += [row | {"chosen": rate == finetune_rate} | aside for rate in tried for row in tried[rate]]
    for data in downstream:
        for point in sorted({best, *best_at.values()}):
            neighbours = settings["knn"] if point == best else None
            rows += [row | flags(point) for row in evaluate(data, "test", point, neighbours) or []]
        if settings["finetune"] is not None:
            rows += [row | flags(best) for row in finetuned(data, "test", best, finetune_rate)]
    return rows
