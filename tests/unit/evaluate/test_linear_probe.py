"""The linear probe and k-NN: the fit reaches its optimum, the scores are those of the definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from labelled_images import labelled
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws, draw_labels
from mkdt.evaluate.linear_probe import fit_linear, score
from mkdt.networks.students import build_student

CPU = torch.device("cpu")


def objective(labels: np.ndarray, features: np.ndarray, classes: int, l2: float) -> Callable[[np.ndarray], float]:
    """Mean cross-entropy + l2 * ||W||^2, no penalty on the bias; with two classes one row w stands for w/2 and -w/2."""
    penalty = l2 / 2 if classes == 2 else l2
    rows = 1 if classes == 2 else classes

    def value(flat: np.ndarray) -> float:
        weights, bias = flat[:-rows].reshape(rows, -1), flat[-rows:]
        scores = features @ weights.T + bias
        if rows == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], 1)
        loss = (logsumexp(scores, 1) - scores[np.arange(len(labels)), labels]).mean()
        return float(loss + penalty * (weights**2).sum())

    return value


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_fit_linear_reaches_the_optimum_of_its_objective(classes: int, l2: float) -> None:
    """Compare with scipy on the documented objective: another scaling of L2 would move the optimum."""
    stream = np.random.default_rng(classes)
    labels = np.arange(60) % classes
    features = stream.normal(size=(60, 4)) + stream.normal(size=(classes, 4))[labels]
    classifier, slope = fit_linear(features, labels.astype(np.int64), l2)
    assert slope < 1e-4
    value = objective(labels, features, classes, l2)
    rows = classifier.coef_.shape[0]
    fitted = np.concatenate([classifier.coef_.ravel(), classifier.intercept_])
    best = minimize(value, np.zeros(rows * 5), method="BFGS", options={"gtol": 1e-7})
    assert value(fitted) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(fitted[: rows * 4], best.x[: rows * 4], atol=1e-3)
    if classes == 2:
        # The reported gradient is that of the objective at the result.
        step = 1e-6 * np.eye(rows * 5)
        numeric = [(value(fitted + d) - value(fitted - d)) / 2e-6 for d in step]
        assert slope == pytest.approx(np.abs(numeric).max(), abs=1e-6)


def test_the_reported_gradient_shows_a_fit_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public code has this fault: its probe diverged unnoticed. One iteration must leave a visible gradient."""
    stream = np.random.default_rng(0)
    features, labels = stream.normal(size=(60, 4)), np.arange(60) % 3
    monkeypatch.setattr("mkdt.evaluate.linear_probe.MOST_ITERATIONS", 1)
    with pytest.warns(UserWarning, match="converge"):
        _, slope = fit_linear(features + 3.0 * labels[:, None], labels.astype(np.int64), 1e-3)
    assert slope > 1e-3


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_no_pretraining_is_a_real_baseline_on_badly_scaled_features() -> None:
    """The public code has this fault: 10.00 % +- 0 for no pre-training, because its probe diverged."""
    from mkdt.data.pixels import normalise
    from mkdt.data.preparation import prepare

    digits, _ = prepare("digits", ".", train=600, validation=100, test=300, image_size=None, seed=0)
    splits = [
        (normalise(digits[f"{split}_images"], digits["mean"], digits["std"]), digits[f"{split}_labels"])
        for split in ("train", "validation", "test")
    ]
    student = build_student({"architecture": "convnet", "depth": 2, "width": 8, "norm": "none"}, 1, 8, 3, 0, "x")

    class BadlyScaled(nn.Module):
        """An untrained student's features, 1e-4 to 1e4 in size, far from zero."""

        def forward(self, images: Tensor) -> Tensor:
            """Return scaled features."""
            values = student.backbone(images)
            return (values + 0.1) * torch.logspace(-4, 4, values.shape[1])

    data = Downstream("digits", *splits)
    for standardise, least in ((True, 60.0), (False, 30.0)):
        features = Features(BadlyScaled(), data, CPU, torch.arange(600), standardise)
        rows = score(features, data, "test", all_draws(data, [0.2], 3, 0), 1e-3)
        assert min(row["accuracy"] for row in rows) > least
        assert len({row["accuracy"] for row in rows}) > 1


def test_knn_is_the_majority_of_the_nearest_by_cosine() -> None:
    """Compare with the definition. The length of a feature vector must not matter."""
    data = labelled(noise=1.0)
    features = Features(nn.Flatten(), data, CPU, torch.arange(80), standardise=True)
    scored = score(features, data, "test", all_draws(data, [0.5], 1, 0), 1e-3, neighbours=3)
    rows = [row for row in scored if row["evaluation"] == "knn"]
    drawn = draw_labels(data.train[1], 0.5, 0, "toy", 0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.held_out("test"), features.train(drawn))]
    nearest = np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :3]
    votes = np.stack([np.bincount(data.train[1][drawn].numpy()[row], minlength=4) for row in nearest])
    assert [row["accuracy"] for row in rows] == [pytest.approx(100 * (votes.argmax(1) == data.test[1].numpy()).mean())]
