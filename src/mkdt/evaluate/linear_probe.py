"""Linear probe and k-NN on frozen features, fitted with few labels."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkdt.evaluate.features import Array, Features
from mkdt.evaluate.labels import Downstream, LabelDraws

TOLERANCE = 1e-6  # L-BFGS stops when no entry of the gradient of the mean loss is larger
MOST_ITERATIONS = 5000


def fit_linear(features: Array, labels: NDArray[np.int64], l2: float) -> tuple[Any, float]:
    """Fit multinomial logistic regression to convergence.

    The objective is the mean cross-entropy + l2 * ||W||^2; the bias has no penalty.

    Args:
        features: float64 [n,D].
        labels: int64 [n].
        l2: weight of the penalty.

    Returns:
        the fitted scikit-learn classifier, and the largest absolute entry of the objective's gradient there.
    """
    from sklearn.linear_model import LogisticRegression

    # scikit-learn minimises C * sum of losses + ||W||^2 / 2; divided by C * n that is ours. With two classes it has
    # one row w for the softmax's two, w/2 and -w/2, so that ||W||^2 is ||w||^2 / 2.
    if len(np.unique(labels)) == 2:
        l2 = l2 / 2
    classifier = LogisticRegression(C=1 / (2 * l2 * len(labels)), tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    classifier.fit(features, labels)
    residual = _residual(classifier, features, labels)
    slope = residual.T @ features / len(labels) + 2 * l2 * classifier.coef_
    return classifier, float(max(np.abs(slope).max(), np.abs(residual.mean(0)).max()))


def _residual(classifier: Any, features: Array, labels: NDArray[np.int64]) -> Array:
    """Predicted probabilities minus the one-hot labels, float64 [n, classes]; of two classes the second alone."""
    scores = features @ classifier.coef_.T + classifier.intercept_
    if scores.shape[1] == 1:
        return 1 / (1 + np.exp(-scores)) - (labels == classifier.classes_[1])[:, None]
    scores -= scores.max(1, keepdims=True)
    residual: Array = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    residual[np.arange(len(labels)), np.searchsorted(classifier.classes_, labels)] -= 1
    return residual


def score(
    features: Features, data: Downstream, split: str, drawn: LabelDraws, l2: float, neighbours: int | None = None
) -> list[dict[str, Any]]:
    """Score frozen features on a split, for every label fraction and draw.

    Args:
        features: of ``data``.
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

    held_out = features.held_out(split)
    truth = data.split(split)[1].numpy()
    rows = []
    for (fraction, draw), labelled in drawn.items():
        known, answers = features.train(labelled), data.train[1][labelled].numpy()
        classifiers = {"linear": fit_linear(known, answers, l2)}
        if neighbours is not None:
            knn = KNeighborsClassifier(min(neighbours, len(labelled)), metric="cosine").fit(known, answers)
            classifiers["knn"] = knn, math.nan
        for name, (classifier, slope) in classifiers.items():
            accuracy = 100 * float((classifier.predict(held_out) == truth).mean())
            row = {"label_fraction": fraction, "label_draw": draw, "accuracy": accuracy, "gradient": slope}
            rows.append({"evaluation": name, **row, "finetune_rate": math.nan})
    return rows
