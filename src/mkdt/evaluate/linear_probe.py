"""Linear probe and k-NN on frozen features, fitted with few labels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, LabelDraws

TOLERANCE = 1e-6  # the fit stops when no entry of the gradient of the mean loss is larger
MOST_STEPS = 50  # of Newton's method; about 10 reach the tolerance
MOST_PRODUCTS = 500  # of the Hessian with a vector in a step; about 10 reach the accuracy below
ACCURACY = 0.2  # of Newton's equation: the norm of its residual over that of its right-hand side
SEARCHED = 0.1  # the line search stops at so much of the slope that it began with
NUMBERS = 1 << 24  # float64 in the features, or in the products of features, of draws that are fitted at once: 128 MB


@dataclass(frozen=True)
class Classifiers:
    """Linear classifiers of B label draws.

    Attributes:
        weights: float64 [B,D,K].
        bias: float64 [B,K]; -infinity for a class without a label in the draw.
        classes: int64 [K], the labels that occur in some draw.
        gradient: float64 [B], the largest absolute entry of the objective's gradient.
    """

    weights: Tensor
    bias: Tensor
    classes: Tensor
    gradient: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Return the labels int64 [B,n] of features float64 [n,D]; the scores of one draw are in memory at a time."""
        draws = zip(self.weights, self.bias, strict=True)
        return torch.stack([self.classes[torch.addmm(bias, features, weights).argmax(1)] for weights, bias in draws])


def fit_linear(features: Tensor, labels: Tensor, l2: float) -> Classifiers:
    """Fit multinomial logistic regression on B label draws at once, each to convergence, by Newton's method.

    The objective is the mean cross-entropy + l2 * ||W||^2; the bias has no penalty. A draw's classifier has the classes that
    occur in the draw.

    Args:
        features: float64 [B,n,D].
        labels: int64 [B,n], on the same device.
        l2: weight of the penalty, above 0.
    """
    classes, places = labels.unique(return_inverse=True)
    wanted = torch.nn.functional.one_hot(places, len(classes)).double()
    objective = _Objective(features, wanted, l2)
    dual = objective.minimise()
    weights, bias = objective.classifier(dual)
    residual = (features @ weights + bias[:, None]).softmax(2) - wanted
    slope = features.mT @ residual / features.shape[1] + 2 * l2 * weights
    gradient = torch.maximum(slope.abs().amax((1, 2)), residual.mean(1).abs().amax(1))
    return Classifiers(weights, bias, classes, gradient)


class _Objective:
    """The objective of B draws as a function of dual variables A, float64 [B,n+1,K].

    The penalty keeps each column of W in the span of the images, so that W = X^T A, where X are the centred features. So
    fewer labels than features make a smaller problem, and of W only its products with images are needed: a step of
    conjugate gradients is one product with the Gram matrix X X^T. The bias is the weight of one feature more, which only
    an image more has: the last row. This image has no label; it scales the bias to the weights.

    A gradient or a direction in W is X^T times a dual vector too. Its name is that of the dual vector; ``k_`` before the
    name says that the vector is multiplied by the Gram matrix, so that ``_dot(u, k_v)`` is the inner product of both in W.
    """

    def __init__(self, features: Tensor, wanted: Tensor, l2: float) -> None:
        """Arguments as of ``fit_linear``; ``wanted`` are the labels, one-hot float64 [B,n,K]."""
        draws, count, dimension = features.shape
        self._wanted, self._l2, self._count = wanted, l2, count
        self._absent = torch.where(wanted.sum(1, keepdim=True) > 0, 0.0, -torch.inf)
        self._mean = features.mean(1, keepdim=True)
        self._images = features.new_zeros(draws, count + 1, dimension + 1)
        torch.sub(features, self._mean, out=self._images[:, :count, :dimension])
        # Any scale gives the same result. This one was measured to need the fewest products.
        size = torch.linalg.vector_norm(self._images, dim=(1, 2))
        self._images[:, count, dimension] = (0.03 * size**2 / count + 10 * l2).sqrt()
        self._gram = self._images @ self._images.mT if count < 2 * dimension else None

    def minimise(self) -> Tensor:
        """Return the dual variables of the minimum."""
        dual = self._images.new_zeros(*self._images.shape[:2], self._wanted.shape[2])
        k_dual = dual.clone()
        for _ in range(MOST_STEPS):
            scores = self._scores(k_dual) + self._absent
            predicted = scores.softmax(2)
            gradient = self._transposed(predicted - self._wanted) + self._penalty(dual)
            k_gradient = self._product(gradient)
            unfinished = self._bound(gradient, k_gradient) > TOLERANCE
            if not unfinished.any():
                break
            # A draw that is done stays where it is.
            gradient, k_gradient = (torch.where(unfinished, vector, 0.0) for vector in (gradient, k_gradient))
            direction, k_direction = self._newton(predicted, gradient, k_gradient)
            step = self._line_search(scores, dual, direction, k_direction, _dot(gradient, k_direction).abs())
            dual, k_dual = dual + step * direction, k_dual + step * k_direction
        return dual

    def classifier(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights [B,D,K] and bias [B,K] of features as they are, not centred."""
        joined = self._images.mT @ dual
        weights = joined[:, :-1]
        bias = self._images[:, -1, -1:] * joined[:, -1] - (self._mean @ weights)[:, 0]
        return weights, bias + self._absent[:, 0]

    def _newton(self, predicted: Tensor, gradient: Tensor, k_gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Solve Newton's equation by conjugate gradients: return the direction and ``k_direction``."""
        direction, k_direction = torch.zeros_like(gradient), torch.zeros_like(gradient)
        residual = -gradient
        search, k_search = residual, -k_gradient
        square = _dot(residual, k_search)
        goal = ACCURACY**2 * square
        for _ in range(MOST_PRODUCTS):
            unfinished = square > goal
            if not unfinished.any():
                break
            moved = predicted * self._scores(k_search)
            moved = self._transposed(moved - predicted * moved.sum(2, keepdim=True)) + self._penalty(search)
            step = torch.where(unfinished, square / _dot(moved, k_search), 0.0)
            direction, k_direction = direction + step * search, k_direction + step * k_search
            residual = residual - step * moved
            k_residual = self._product(residual)
            before, square = square, _dot(residual, k_residual)
            ratio = torch.where(unfinished, square / before, 0.0)
            search, k_search = residual + ratio * search, k_residual + ratio * k_search
        return direction, k_direction

    def _line_search(
        self, scores: Tensor, dual: Tensor, direction: Tensor, k_direction: Tensor, slope_at_0: Tensor
    ) -> Tensor:
        """Return how far to go, [B,1,1]: a root of the slope along the direction, which increases, by Newton's method.

        Bisection takes over where a step leaves the interval that has the root. No product with features is needed.
        """
        along = self._scores(k_direction)
        at_0, curvature = (_dot(self._penalty(vector), k_direction) for vector in (dual, direction))
        at_0 = at_0 - _dot(self._wanted, along) / self._count
        step = torch.ones_like(slope_at_0)
        low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
        for _ in range(50):
            moved = (scores + step * along).softmax(2) * along
            means = moved.sum(2, keepdim=True)
            slope = at_0 + step * curvature + means.sum(1, keepdim=True) / self._count
            unfinished = slope.abs() > SEARCHED * slope_at_0
            if not unfinished.any():
                break
            low, high = torch.where(slope > 0, low, step), torch.where(slope > 0, step, high)
            newton = step - slope / (curvature + (_dot(moved, along) - _dot(means, means)) / self._count)
            middle = torch.where(high.isinf(), 2 * step, (low + high) / 2)
            step = torch.where(unfinished, torch.where((low < newton) & (newton < high), newton, middle), step)
        return step

    def _product(self, vector: Tensor) -> Tensor:
        """Multiply a dual vector by the Gram matrix, which is only stored where that saves time."""
        return self._images @ (self._images.mT @ vector) if self._gram is None else self._gram @ vector

    def _scores(self, k_vector: Tensor) -> Tensor:
        return k_vector[:, :-1] + k_vector[:, -1:]

    def _transposed(self, values: Tensor) -> Tensor:
        """Return the dual vector of the gradient of the mean of scores weighted by ``values`` [B,n,K]."""
        return torch.cat([values, values.sum(1, keepdim=True)], 1) / self._count

    def _penalty(self, vector: Tensor) -> Tensor:
        """Return the dual vector of the gradient of the penalty, which does not count the bias."""
        penalty = 2 * self._l2 * vector
        penalty[:, -1] = 0
        return penalty

    def _bound(self, gradient: Tensor, k_gradient: Tensor) -> Tensor:
        """Return a bound, [B,1,1], of the entries of the gradient for features that are not centred.

        No entry of X^T A is larger than the norm of its column, which costs no product with the images.
        """
        norm = (gradient * k_gradient).sum(1, keepdim=True).clamp(min=0).sqrt()
        offset = 1 + self._mean.abs().amax(2, keepdim=True)
        return (norm + offset * gradient[:, -1:].abs()).amax(2, keepdim=True)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product [B,1,1] of each draw."""
    return (left * right).sum((1, 2), keepdim=True)


def score(
    features: Features, data: Downstream, split: str, drawn: LabelDraws, l2: float, neighbours: int | None = None
) -> list[dict[str, Any]]:
    """Score frozen features on a split, for every label fraction and draw.

    Args:
        features: of ``data``. The linear probe is fitted on their device.
        data: the labelled data set.
        split: ``validation`` or ``test``.
        drawn: the training rows whose labels are known.
        l2: penalty of the linear probe.
        neighbours: also score k-NN, the majority of so many nearest labelled images by cosine.

    Returns:
        one row an evaluation (linear, knn), label fraction and draw: ``accuracy`` in per cent, and ``gradient``, the
        largest entry that the linear fit left over.
    """
    from sklearn.neighbors import KNeighborsClassifier

    held_out, truth, labels = features.held_out(split), data.split(split)[1], data.train[1]
    images = torch.from_numpy(held_out).to(features.device)
    linear: dict[tuple[float, int], tuple[Tensor, float]] = {}
    for keys in _fitted_at_once(drawn, held_out.shape[1]):
        known = torch.stack([torch.from_numpy(features.train(drawn[key])) for key in keys]).to(features.device)
        classifiers = fit_linear(known, torch.stack([labels[drawn[key]] for key in keys]).to(features.device), l2)
        for key, predicted, slope in zip(keys, classifiers.predict(images).cpu(), classifiers.gradient, strict=True):
            linear[key] = predicted, float(slope)
    rows = []
    for (fraction, draw), labelled in drawn.items():
        results = {"linear": linear[fraction, draw]}
        if neighbours is not None:
            knn = KNeighborsClassifier(min(neighbours, len(labelled)), metric="cosine")
            knn.fit(features.train(labelled), labels[labelled].numpy())
            results["knn"] = torch.from_numpy(knn.predict(held_out)), math.nan
        for name, (predicted, slope) in results.items():
            accuracy = 100 * float((predicted == truth).double().mean())
            row = {"label_fraction": fraction, "label_draw": draw, "accuracy": accuracy, "gradient": slope}
            rows.append({"evaluation": name, **row, "finetune_rate": math.nan})
    return rows


def _fitted_at_once(drawn: LabelDraws, dimension: int) -> Iterator[Sequence[tuple[float, int]]]:
    """Divide the draws into groups with equally many labels that keep to ``NUMBERS``."""
    same: dict[int, list[tuple[float, int]]] = {}
    for key, labelled in drawn.items():
        same.setdefault(len(labelled), []).append(key)
    for count, keys in same.items():
        size = max(1, NUMBERS // (count * max(count, dimension)))
        yield from (keys[start : start + size] for start in range(0, len(keys), size))
