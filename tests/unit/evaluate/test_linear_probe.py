"""The linear probe and k-NN: the fit reaches its optimum, the scores are those of the definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from labelled_images import labelled
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mkdt.evaluate.features import Features
from mkdt.evaluate.labels import Downstream, all_draws, draw_labels
from mkdt.evaluate.linear_probe import TOLERANCE, Classifiers, fit_linear, score
from mkdt.networks.students import build_student

CPU = torch.device("cpu")


def objective(labels: np.ndarray, features: np.ndarray, classes: int, l2: float) -> Callable[[np.ndarray], float]:
    """Mean cross-entropy + l2 * ||W||^2, no penalty on the bias; of weights [D,K] and bias [K] in one vector."""

    def value(flat: np.ndarray) -> float:
        weights, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        scores = features @ weights + bias
        loss = (logsumexp(scores, 1) - scores[np.arange(len(labels)), labels]).mean()
        return float(loss + l2 * (weights**2).sum())

    return value


def clouds(classes: int, count: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make ``count`` overlapping features in one cloud a class, and labels; the clouds do not depend on the seed."""
    stream = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dimension))
    labels = np.arange(count) % classes
    return stream.normal(size=(count, dimension)) + centres[labels], labels


def flat(fitted: Classifiers, draw: int) -> np.ndarray:
    """Return weights and bias of a draw in one vector."""
    return np.concatenate([fitted.weights[draw].numpy().ravel(), fitted.bias[draw].numpy()])


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_fit_linear_reaches_the_optimum_of_its_objective(classes: int, l2: float) -> None:
    """Compare with scipy on the documented objective: another scaling of L2 would move the optimum."""
    features, labels = clouds(classes, 60, 4, seed=classes)
    fitted = fit_linear(torch.tensor(features)[None], torch.tensor(labels)[None], l2)
    value = objective(labels, features, classes, l2)
    best = minimize(value, np.zeros(classes * 5), method="BFGS", options={"gtol": 1e-7})
    assert value(flat(fitted, 0)) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(flat(fitted, 0)[: classes * 4], best.x[: classes * 4], atol=1e-3)


def test_the_reported_gradient_is_that_of_a_fit_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public code has this fault: its probe diverged unnoticed. One step must leave a visible gradient."""
    monkeypatch.setattr("mkdt.evaluate.linear_probe.MOST_STEPS", 1)
    draws = [clouds(3, 60, 4, seed) for seed in range(2)]
    features, labels = (torch.tensor(np.stack(part)) for part in zip(*draws, strict=True))
    fitted = fit_linear(features + 10, labels, 1e-3)
    for draw, slope in enumerate(fitted.gradient.tolist()):
        value, here = objective(labels[draw].numpy(), features[draw].numpy() + 10, 3, 1e-3), flat(fitted, draw)
        numeric = [(value(here + step) - value(here - step)) / 2e-6 for step in 1e-6 * np.eye(len(here))]
        assert slope == pytest.approx(np.abs(numeric).max(), abs=1e-6)
        assert slope > 1e-3


# name: classes, images, features
SIZES = {
    "two classes": (2, 40, 10),
    "one image a class": (10, 10, 30),
    "many classes": (200, 300, 5),
    "fewer images than features": (5, 40, 300),
    "more images than features": (5, 300, 10),
    "dead features": (4, 60, 8),
    "only dead features": (3, 31, 2),
    "equal images": (3, 40, 100),
    "large features": (4, 60, 20),
    "small features": (4, 60, 20),
    "unequal features": (4, 60, 20),
    "a class is missing in a draw": (4, 60, 8),
}


@pytest.mark.filterwarnings("ignore:The number of unique classes")
@pytest.mark.parametrize("name", SIZES)
def test_fit_linear_agrees_with_scikit_learn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw of a batch converges, and closer to the optimum it predicts what another solver does, fitted alone."""
    classes, count, dimension = SIZES[name]
    draws = [clouds(classes, count, dimension, seed) for seed in range(3)]
    features, labels = (np.stack(part) for part in zip(*draws, strict=True))
    held_out = clouds(classes, 500, dimension, seed=3)[0]
    scale = np.ones(dimension)
    if name == "unequal features":
        scale = np.logspace(-2, 2, dimension)
    elif name in {"large features", "small features"}:
        scale *= 1e3 if name == "large features" else 1e-3
    features, held_out = scale * features, scale * held_out
    if "dead" in name:
        dead = slice(2 if name == "dead features" else 0, dimension)
        features[:, :, dead] = held_out[:, dead] = 5.0
    if name == "equal images":
        features[:, 1:20] = features[:, :1]
    if name == "a class is missing in a draw":
        labels[1][labels[1] == 2] = 1
    assert fit_linear(torch.tensor(features), torch.tensor(labels), 1e-3).gradient.max() <= TOLERANCE
    monkeypatch.setattr("mkdt.evaluate.linear_probe.TOLERANCE", 1e-9)
    fitted = fit_linear(torch.tensor(features), torch.tensor(labels), 1e-3)
    for draw, predicted in enumerate(fitted.predict(torch.tensor(held_out))):
        # It has one row w for two classes, which stands for w/2 and -w/2.
        penalty = 1e-3 / 2 if classes == 2 else 1e-3
        # Its L-BFGS stops early at other scales; its Newton's method is slow with many weights.
        solver = "lbfgs" if (scale == 1).all() else "newton-cholesky"
        theirs = LogisticRegression(C=1 / (2 * penalty * count), tol=1e-9, solver=solver, max_iter=10_000)
        theirs.fit(features[draw], labels[draw])
        assert (predicted.numpy() == theirs.predict(held_out)).all()
        assert set(predicted.tolist()) <= set(labels[draw].tolist())


def test_scores_do_not_depend_on_how_many_draws_are_fitted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of memory changes no accuracy; each row has the accuracy of its draw's classifier."""
    data = labelled(noise=1.5)
    drawn = all_draws(data, [0.1, 0.5], 3, 0)
    features = Features(nn.Flatten(), data, CPU, torch.arange(80), standardise=True)
    rows = score(features, data, "test", drawn, 1e-3)
    assert [(row["label_fraction"], row["label_draw"]) for row in rows] == list(drawn)
    monkeypatch.setattr("mkdt.evaluate.linear_probe.NUMBERS", 1)
    alone = score(features, data, "test", drawn, 1e-3)
    held_out = torch.from_numpy(features.held_out("test"))
    for row, other, known in zip(rows, alone, drawn.values(), strict=True):
        fitted = fit_linear(torch.from_numpy(features.train(known))[None], data.train[1][known][None], 1e-3)
        accuracy = 100 * float((fitted.predict(held_out)[0] == data.test[1]).double().mean())
        assert row["accuracy"] == other["accuracy"] == pytest.approx(accuracy)
        assert max(row["gradient"], other["gradient"]) <= TOLERANCE
    assert len({row["accuracy"] for row in rows}) > 2


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
