"""The linear probe: fitting, label draws, features, and one choice before one look at the test split."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.evaluate.linear_probe import Downstream, Features, draw_labels, fit_linear, probe, score, score_finetuned
from mkdt.networks.students import build_student

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "label_fractions": [0.1, 0.5],
    "label_draws": 2,
    "selection_draws": 2,
    "l2": 1e-3,
    "standardise": True,
    "knn": None,
    "finetune": None,
}


def objective(labels: np.ndarray, features: np.ndarray, classes: int, l2: float) -> Callable[[np.ndarray], float]:
    """Mean cross-entropy + l2 * ||W||^2, bias free; one row w for two classes stands for w/2 and -w/2."""
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
    """Against scipy on the objective as DESIGN states it: other scalings of L2 would move the optimum."""
    stream = np.random.default_rng(classes)
    labels = np.arange(60) % classes
    features = stream.normal(size=(60, 4)) + stream.normal(size=(classes, 4))[labels]
    classifier, slope = fit_linear(features, labels.astype(np.int64), l2)
    assert slope < 1e-4
    value = objective(labels, features, classes, l2)
    rows = classifier.coef_.shape[0]
    found = np.concatenate([classifier.coef_.ravel(), classifier.intercept_])
    best = minimize(value, np.zeros(rows * 5), method="BFGS", options={"gtol": 1e-7})
    assert value(found) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(found[: rows * 4], best.x[: rows * 4], atol=1e-3)
    if classes == 2:
        # The slope reported is that of the objective at the result.
        step = 1e-6 * np.eye(rows * 5)
        numeric = [(value(found + d) - value(found - d)) / 2e-6 for d in step]
        assert slope == pytest.approx(np.abs(numeric).max(), abs=1e-6)


def test_the_reported_gradient_shows_a_fit_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault of the public code: its probe diverged unseen. One iteration must leave a visible gradient."""
    stream = np.random.default_rng(0)
    features, labels = stream.normal(size=(60, 4)), np.arange(60) % 3
    monkeypatch.setattr("mkdt.evaluate.linear_probe.MOST_ITERATIONS", 1)
    with pytest.warns(UserWarning, match="converge"):
        _, slope = fit_linear(features + 3.0 * labels[:, None], labels.astype(np.int64), 1e-3)
    assert slope > 1e-3


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    fraction=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
def test_label_draws_are_stratified_with_one_a_class(counts: list[int], fraction: float, seed: int) -> None:
    """The total is the rounded fraction; each class has at least one image and its share to within one, but for what
    small classes take from the others; larger classes never have less."""
    labels = torch.cat([torch.full((count,), 3 * k) for k, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    assume(round(fraction * len(labels)) >= len(counts))
    rows = draw_labels(labels, fraction, seed, "x", 0)
    assert torch.equal(rows, rows.unique())  # ascending, distinct
    drawn = [int((labels[rows] == 3 * k).sum()) for k in range(len(counts))]
    assert len(rows) == round(fraction * len(labels))
    small = any(fraction * count < 1 for count in counts)
    for count, got in zip(counts, drawn, strict=True):
        assert 1 <= got <= count
        assert got == 1 or got - fraction * count < 1
        assert small or fraction * count - got < 1
    by_size = [got for _, got in sorted(zip(counts, drawn, strict=True))]
    assert by_size == sorted(by_size)


def test_small_classes_take_their_label_from_the_large_ones() -> None:
    """99 classes of ten images at 5.5 %: one label each, and the large class has what is left of the total."""
    labels = torch.cat([torch.zeros(1000), torch.arange(1, 100).repeat(10)]).long()
    rows = draw_labels(labels, 0.055, 0, "uneven", 0)
    assert len(rows) == 109
    assert labels[rows].bincount().tolist() == [10] + [1] * 99


def test_fewer_labels_than_classes_draw_the_classes_too() -> None:
    """1 % of 2,000 images of 200 classes are 20 labels of 20 classes, other ones in each draw."""
    labels = torch.arange(2000) % 200
    first, second = (draw_labels(labels, 0.01, 0, "birds", draw) for draw in (0, 1))
    for rows in (first, second):
        assert len(labels[rows].unique()) == len(rows) == 20
    assert set(labels[first].tolist()) != set(labels[second].tolist())


def test_label_draws_depend_on_their_identity_only() -> None:
    """The same for every method, whatever ran before; different by seed, data set and draw."""
    labels = torch.arange(300) % 10
    torch.manual_seed(1)
    first = draw_labels(labels, 0.1, 0, "digits", 0)
    torch.manual_seed(2)
    assert torch.equal(first, draw_labels(labels, 0.1, 0, "digits", 0))
    for other in ((1, "digits", 0), (0, "mnist", 0), (0, "digits", 1)):
        assert not torch.equal(first, draw_labels(labels, 0.1, *other))


# --- features ---


class Moody(nn.Module):
    """A backbone that answers differently in train mode, and badly scaled in both."""

    def __init__(self, scale: Tensor | None = None, offset: float = 0.0) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(16) if scale is None else scale)
        self.offset = offset
        self.norm.running_mean.fill_(0.3)  # type: ignore[union-attr]
        self.norm.running_var.fill_(2.0)  # type: ignore[union-attr]
        self.calls: list[tuple[bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        """The 16 pixels, normalised, dropped out and scaled."""
        self.calls.append((self.training, len(images)))
        return self.dropout(self.norm(images.flatten(1))) * self.scale + self.offset


def labelled(name: str = "toy", classes: int = 4, count: int = 80, seed: int = 0, noise: float = 0.5) -> Downstream:
    """Images 1x4x4 in clouds around their class' picture."""
    stream = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, 4, 4, generator=stream)

    def part(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % classes
        return centres[labels] + noise * torch.randn(n, 1, 4, 4, generator=stream), labels

    return Downstream(name, part(count), part(40), part(60))


def test_features_are_taken_in_eval_mode_for_all_splits() -> None:
    """Fault of the public code: train mode for training features, eval mode for test features."""
    data, backbone = labelled(), Moody().train()
    before = backbone.norm.running_mean.clone()  # type: ignore[union-attr]
    rows = torch.arange(0, 80, 3)
    features = Features(backbone, data, CPU, rows, standardise=False)
    got = {
        "train": features.train(rows),
        **{split: features.held_out(split) for split in ("validation", "test")},
    }
    assert {training for training, _ in backbone.calls} == {False}
    assert torch.equal(backbone.norm.running_mean, before)  # type: ignore[arg-type]
    plain = Moody().eval()
    for split, images in (
        ("train", data.train[0][rows]),
        ("validation", data.validation[0]),
        ("test", data.test[0]),
    ):
        np.testing.assert_allclose(got[split], plain(images).detach().numpy(), rtol=1e-5, atol=1e-6)
        assert got[split].dtype == np.float64


def test_features_are_standardised_with_the_training_split() -> None:
    """Statistics of the drawn rows or of the test split would differ between draws, or leak."""
    scale = torch.logspace(-3, 3, 16)
    data = labelled()
    shifted = replace(data, test=(data.test[0] + 5, data.test[1]))
    features = Features(Moody(scale), shifted, CPU, torch.tensor([3, 5]), standardise=True)
    everything = features.train(torch.arange(80))
    np.testing.assert_allclose(everything.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(everything.std(0), 1, rtol=1e-6)
    np.testing.assert_array_equal(features.train(torch.tensor([5, 3])), everything[[5, 3]])
    raw = Moody(scale).eval()(shifted.train[0]).detach().double().numpy()
    test = Moody(scale).eval()(shifted.test[0]).detach().double().numpy()
    np.testing.assert_allclose(features.held_out("test"), (test - raw.mean(0)) / raw.std(0), rtol=1e-4, atol=1e-5)
    assert features.held_out("test").mean() > 1


def test_statistics_of_a_large_split_come_from_evenly_spread_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on encoding must not pick the first rows: sets are often sorted by class."""
    monkeypatch.setattr("mkdt.evaluate.linear_probe.STATISTICS_IMAGES", 20)
    data = labelled(count=200)
    order = data.train[1].argsort(stable=True)
    data = replace(data, train=(data.train[0][order], data.train[1][order]))
    backbone = Moody()
    rows = torch.tensor([0, 1, 7, 198])
    features = Features(backbone, data, CPU, rows, standardise=True)
    assert 20 <= sum(count for _, count in backbone.calls) <= 24  # each needed image once
    raw = Moody().eval()(data.train[0]).detach().double().numpy()
    # The first 20 rows are all of one class: their deviation would be the noise's, several times smaller.
    sizes = np.abs(features.train(rows)).mean() / np.abs((raw[rows] - raw.mean(0)) / raw.std(0)).mean()
    assert 0.8 < sizes < 1.25


def test_a_dead_feature_does_not_become_nan() -> None:
    """An untrained ReLU network has features that never fire."""
    scale = torch.ones(16)
    scale[3] = 0
    features = Features(Moody(scale), labelled(), CPU, torch.arange(5), standardise=True)
    for values in (features.train(torch.arange(5)), features.held_out("test")):
        assert np.isfinite(values).all()
        assert not values[:, 3].any()


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_no_pretraining_is_a_real_baseline_on_badly_scaled_features() -> None:
    """Fault of the public code: 10.00 % +- 0 for no pre-training, as its probe diverged."""
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
            """Scaled features."""
            values = student.backbone(images)
            return (values + 0.1) * torch.logspace(-4, 4, values.shape[1])

    data = Downstream("digits", *splits)
    for standardise, least in ((True, 60.0), (False, 30.0)):
        features = Features(BadlyScaled(), data, CPU, torch.arange(600), standardise)
        rows = score(features, data, "test", [0.2], 3, 1e-3, 0)
        assert min(row["accuracy"] for row in rows) > least
        assert len({row["accuracy"] for row in rows}) > 1


# --- the choice ---


class Log:
    """A labelled set that notes which split is looked at."""

    def __init__(self, data: Downstream, seen: list[str]) -> None:
        self.name, self.train, self._data, self._seen = data.name, data.train, data, seen

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        """The validation split, noted."""
        self._seen.append("validation")
        return self._data.validation

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The test split, noted."""
        self._seen.append("test")
        return self._data.test


@dataclass
class Quality:
    """Backbones whose features are better or worse: noise of a given size drowns the pixels."""

    noise: list[list[float | None]]  # [rate][step]; None has diverged

    def __call__(self, rate: int, step: int) -> nn.Module | None:
        """The backbone of one grid point."""
        size = self.noise[rate][step]
        if size is None:
            return None

        class Noisy(nn.Module):
            """Pixels and a noise that is a function of them."""

            def forward(self, images: Tensor) -> Tensor:
                """Features [n,16]."""
                pixels = images.flatten(1)
                return pixels + size * torch.sin(1e4 * pixels.roll(1, 1))

        return Noisy()


RATES, STEPS = [0.01, 0.1], [0, 5, 10]
NOISE: list[list[float | None]] = [[20.0, 3.0, 8.0], [20.0, None, 0.0]]
STUDENTS = {(0, 0): Quality(NOISE), (0, 1): Quality(NOISE)}


def run(selection: Any, downstream: list[Any], students: Any = None, **changes: Any) -> list[dict[str, Any]]:
    """The probe on the stand-in grid."""
    students = students or STUDENTS
    rates = dict.fromkeys(students, RATES)
    return probe(students, rates, STEPS, selection, downstream, SETTINGS | changes, seed=0, device=CPU)


def flags(rows: list[dict[str, Any]]) -> dict[tuple[float, int], tuple[bool, bool]]:
    """What was chosen, by rate and steps, on validation."""
    return {
        (row["rate"], row["steps"]): (row["chosen"], row["chosen_at_steps"])
        for row in rows
        if row["split"] == "validation"
    }


def test_one_point_is_chosen_for_all_downstream_sets() -> None:
    """Fault of the public code: a new encoder for every downstream set, so one table row mixed several."""
    rows = run(labelled(), [labelled(), labelled("other", 3, seed=5)])
    assert {point for point, (chosen, _) in flags(rows).items() if chosen} == {(0.1, 10)}
    at_steps = {point for point, (_, chosen) in flags(rows).items() if chosen}
    assert (0.01, 5) in at_steps
    assert (0.1, 10) in at_steps
    assert sorted(steps for _, steps in at_steps) == STEPS
    test = [row for row in rows if row["split"] == "test"]
    for name in ("toy", "other"):
        ours = [row for row in test if row["downstream"] == name]
        assert {(row["rate"], row["steps"]) for row in ours if row["chosen"]} == {(0.1, 10)}
        assert {(row["rate"], row["steps"]) for row in ours} == at_steps
        # every student, fraction and draw once a point
        keys = [tuple(row[k] for k in ("rate", "steps", "seed", "label_fraction", "label_draw")) for row in ours]
        assert len(set(keys)) == len(keys) == len(at_steps) * 2 * 2 * 2


def test_a_network_that_diverged_in_fine_tuning_is_right_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """argmax of NaN is class 0: its share of the images must not be its accuracy."""

    class Broken(nn.Module):
        """Logits that are not finite."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2), float("nan"))

    monkeypatch.setattr("mkdt.evaluate.linear_probe.finetune", lambda *args: Broken())
    settings = SETTINGS | {"finetune": {"rates": [1e6]}}
    rows = score_finetuned(nn.Flatten(), labelled(), "test", 1e6, settings, 2, 0, CPU)
    assert [row["accuracy"] for row in rows] == [0.0] * len(rows)


def test_each_student_has_its_own_rate_under_the_published_protocol() -> None:
    """Its learned step size: the rows say the one that a student was trained at, in one point of the grid."""
    students = {(seed, 0): Quality([[3.0]]) for seed in (0, 1)}
    rates = {(0, 0): [0.5], (1, 0): [0.6]}
    rows = probe(students, rates, [5], labelled(), [labelled()], SETTINGS, seed=0, device=CPU)
    assert {(row["split"], row["distill_seed"], row["rate"]) for row in rows} == {
        (split, seed, rate) for split in ("validation", "test") for seed, rate in ((0, 0.5), (1, 0.6))
    }
    assert all(row["chosen"] and row["chosen_at_steps"] and not row["at_edge"] for row in rows)


def test_the_best_validation_mean_is_chosen() -> None:
    """The choice is by the mean over students, fractions and draws, as the rows themselves show."""
    rows = run(labelled(noise=1.0), [labelled(noise=1.0)])
    means: dict[tuple[float, int], list[float]] = {}
    for row in rows:
        if row["split"] == "validation":
            means.setdefault((row["rate"], row["steps"]), []).append(row["accuracy"])
    best = max(means, key=lambda point: float(np.mean(means[point])))
    assert [point for point, (chosen, _) in flags(rows).items() if chosen] == [best]
    assert all(0 <= row["accuracy"] <= 100 and row["gradient"] < 1e-3 for row in rows)


def test_the_test_split_is_opened_only_after_the_choice() -> None:
    """All looks at validation come first, and the selection set's own test split stays shut until then."""
    seen: list[str] = []
    selection, other = Log(labelled(), seen), Log(labelled("other", 3, seed=5), seen)
    run(selection, [selection, other])
    first = seen.index("test")
    assert "validation" in seen[:first]
    assert "validation" not in seen[first:]


def test_test_labels_cannot_influence_the_choice() -> None:
    """Wrong test labels must change the test accuracy and nothing that was chosen."""
    data = labelled(noise=1.0)
    spoilt = replace(data, test=(data.test[0], (data.test[1] + 1) % 4))
    right, wrong = run(data, [data]), run(spoilt, [spoilt])
    assert flags(right) == flags(wrong)
    identity = ("split", "rate", "steps", "seed", "label_fraction", "label_draw", "chosen", "chosen_at_steps")
    assert [[row[k] for k in identity] for row in right] == [[row[k] for k in identity] for row in wrong]
    accuracy = [[row["accuracy"] for row in rows if row["split"] == "test"] for rows in (right, wrong)]
    assert np.mean(accuracy[0]) > np.mean(accuracy[1]) + 20


def test_knn_and_finetuning_stand_at_the_chosen_point() -> None:
    """The same draws for all three; only the probe chooses the point; fine-tuning's rate is chosen before test is opened."""
    seen: list[str] = []
    recipe: dict[str, Any] = {"rates": [1.0, 0.1], "steps": 20, "batch": 8, "weight_decay": 0.0}
    rows = run(Log(labelled(noise=1.5), seen), [Log(labelled("other", 3, seed=5), seen)], knn=1, finetune=recipe)
    assert seen.index("test") > max(i for i, split in enumerate(seen) if split == "validation")
    tests = [row for row in rows if row["split"] == "test" and row["chosen"]]
    draws = {}
    for name in ("linear", "knn", "finetune"):
        mine = [row for row in tests if row["evaluation"] == name]
        draws[name] = {(row["seed"], row["label_fraction"], row["label_draw"]) for row in mine}
        assert len(mine) == len(draws[name]) == 8
        assert {(row["rate"], row["steps"]) for row in mine} == {(0.1, 10)}
    assert draws["linear"] == draws["knn"] == draws["finetune"]
    tried: dict[float, list[float]] = {rate: [] for rate in recipe["rates"]}
    for row in rows:
        if row["split"] == "validation" and row["evaluation"] == "finetune":
            tried[row["finetune_rate"]].append(row["accuracy"])
    best = max(tried, key=lambda rate: float(np.mean(tried[rate])))
    assert {row["finetune_rate"] for row in tests if row["evaluation"] == "finetune"} == {best}
    assert len({tuple(row) for row in rows}) == 1  # one header for the table
    plain = run(labelled(noise=1.5), [labelled("other", 3, seed=5)])
    assert [row["accuracy"] for row in plain] == [row["accuracy"] for row in rows if row["evaluation"] == "linear"]


def test_knn_is_the_majority_of_the_nearest_by_cosine() -> None:
    """Against the definition; length must not matter, or unscaled features would decide by it."""
    data = labelled(noise=1.0)
    features = Features(nn.Flatten(), data, CPU, torch.arange(80), standardise=True)
    rows = [row for row in score(features, data, "test", [0.5], 1, 1e-3, 0, 3) if row["evaluation"] == "knn"]
    drawn = draw_labels(data.train[1], 0.5, 0, "toy", 0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.held_out("test"), features.train(drawn))]
    nearest = np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :3]
    votes = np.stack([np.bincount(data.train[1][drawn].numpy()[row], minlength=4) for row in nearest])
    assert [row["accuracy"] for row in rows] == [pytest.approx(100 * (votes.argmax(1) == data.test[1].numpy()).mean())]


def test_diverged_points_are_skipped() -> None:
    """A rate too high is no candidate if it diverged for any seed; if all are, the method is named as diverged."""
    rows = run(labelled(), [labelled()])
    assert (0.1, 5) not in flags(rows)
    best_diverged_once: list[list[float | None]] = [[20.0, 3.0, 8.0], [20.0, 3.0, None]]
    rows = run(labelled(), [labelled()], {(0, 0): Quality(NOISE), (0, 1): Quality(best_diverged_once)})
    assert (0.1, 10) not in {(row["rate"], row["steps"]) for row in rows}
    assert sum(chosen for chosen, _ in flags(rows).values()) == 1
    with pytest.raises(UserError, match=r"every point of the grid.*pretrain\.rates"):
        run(labelled(), [labelled()], {(0, 0): Quality([[None] * 3] * 2)})


def test_all_methods_are_asked_with_the_same_labels() -> None:
    """Different backbones and grids, equal draws: shown by the labels that the classifier is fitted on."""
    seen: list[list[bytes]] = []
    for students in ({(0, 0): Quality(NOISE)}, {(3, 0): Quality([[1.0] * 3] * 2)}):
        fitted: list[bytes] = []

        def spy(features: Any, labels: Any, l2: float, fitted: list[bytes] = fitted) -> tuple[Any, float]:
            fitted.append(labels.tobytes())
            return fit_linear(features, labels, l2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mkdt.evaluate.linear_probe.fit_linear", spy)
            run(labelled(), [], students)
        seen.append(fitted)
    per_point = len(SETTINGS["label_fractions"]) * SETTINGS["label_draws"]
    assert len({tuple(fitted[k : k + per_point]) for fitted in seen for k in range(0, len(fitted), per_point)}) == 1


def test_points_whose_features_overflow_count_as_diverged() -> None:
    """Weights can be finite and still give features that are not: the probe must skip them, not crash."""

    class Overflow(nn.Module):
        """Features beyond float32."""

        def forward(self, images: Tensor) -> Tensor:
            """Infinite where a pixel is positive."""
            return images.flatten(1) * 3e38 * 10

    good = Quality(NOISE)
    rows = run(labelled(), [labelled()], {(0, 0): lambda r, s: Overflow() if (r, s) == (0, 1) else good(r, s)})
    assert (0.01, 5) not in flags(rows)
    assert (0.1, 10) in flags(rows)
