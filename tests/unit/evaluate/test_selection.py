"""Evaluation of a method: one choice on validation before one look at the test split."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from labelled_images import PROBE, labelled
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mkdt.errors import UserError
from mkdt.evaluate.labels import Downstream, draw_labels
from mkdt.evaluate.linear_probe import Classifiers, fit_linear
from mkdt.evaluate.probing import chosen_points, probe
from mkdt.evaluate.selection import select
from mkdt.evaluate.student_grid import StudentGrid

CPU = torch.device("cpu")


class Watched:
    """A labelled set that records which split is used."""

    def __init__(self, data: Downstream, seen: list[str]) -> None:
        self.name, self.train, self._data, self._seen = data.name, data.train, data, seen

    def split(self, name: str) -> tuple[Any, Tensor]:
        """Record the name of a held-out split, and return it."""
        self._seen.append(name)
        return self._data.split(name)


@dataclass
class Quality:
    """Backbones whose features are pixels with more or less noise."""

    noise: list[list[float | None]]  # [rate][step]; None: diverged

    def __call__(self, rate: int, step: int) -> nn.Module | None:
        """Return the backbone of a point of the grid."""
        size = self.noise[rate][step]
        if size is None:
            return None

        class Noisy(nn.Module):
            """Adds a noise to the pixels that is a function of them."""

            def forward(self, images: Tensor) -> Tensor:
                """Return features [n,16]."""
                pixels = images.flatten(1)
                return pixels + size * torch.sin(1e4 * pixels.roll(1, 1))

        return Noisy()


RATES, STEPS = [0.01, 0.1], [0, 5, 10]
NOISE: list[list[float | None]] = [[20.0, 3.0, 8.0], [20.0, None, 0.0]]
STUDENTS = {(0, 0): Quality(NOISE), (0, 1): Quality(NOISE)}


def run(
    selection: Any, downstream: list[Any], students: Any = None, rates: Any = None, steps: Any = STEPS, **changes: Any
) -> list[dict[str, Any]]:
    """Choose on the grid of these backbones, then probe what was chosen; the rows of both."""
    students = students or STUDENTS
    grid, settings = StudentGrid(students, rates or dict.fromkeys(students, RATES), steps), PROBE | changes
    selected = select(grid, selection, settings, seed=0, device=CPU)
    chosen = chosen_points(selected, grid)
    return selected + probe(grid, chosen, downstream, settings, selection=selection, seed=0, device=CPU)


def flags(rows: list[dict[str, Any]]) -> dict[tuple[float, int], tuple[bool, bool]]:
    """Whether each rate and number of steps was chosen, and chosen at its steps, on validation."""
    return {
        (row["rate"], row["steps"]): (row["chosen"], row["chosen_at_steps"])
        for row in rows
        if row["split"] == "validation"
    }


def test_one_point_is_chosen_for_all_downstream_sets() -> None:
    """The public code has this fault: it chose another encoder for every downstream set, so a table row mixed several."""
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
        # every student, fraction and draw has one row a point
        keys = [tuple(row[k] for k in ("rate", "steps", "seed", "label_fraction", "label_draw")) for row in ours]
        assert len(set(keys)) == len(keys) == len(at_steps) * 2 * 2 * 2


def test_each_student_has_its_own_rate_under_the_published_protocol() -> None:
    """The rate is the set's learned step size: rows have the one that the student was trained at, in one point of the grid."""
    students = {(seed, 0): Quality([[3.0]]) for seed in (0, 1)}
    rates = {(0, 0): [0.5], (1, 0): [0.6]}
    rows = run(labelled(), [labelled()], students, rates, [5])
    assert {(row["split"], row["distill_seed"], row["rate"]) for row in rows} == {
        (split, seed, rate) for split in ("validation", "test") for seed, rate in ((0, 0.5), (1, 0.6))
    }
    assert all(row["chosen"] and row["chosen_at_steps"] and not row["at_edge"] for row in rows)


def test_the_best_validation_mean_is_chosen() -> None:
    """The choice is by the mean over students, fractions and draws; the rows themselves show it."""
    rows = run(labelled(noise=1.0), [labelled(noise=1.0)])
    means: dict[tuple[float, int], list[float]] = {}
    for row in rows:
        if row["split"] == "validation":
            means.setdefault((row["rate"], row["steps"]), []).append(row["accuracy"])
    best = max(means, key=lambda point: float(np.mean(means[point])))
    assert [point for point, (chosen, _) in flags(rows).items() if chosen] == [best]
    assert all(0 <= row["accuracy"] <= 100 and row["gradient"] < 1e-3 for row in rows)


def test_rows_are_those_of_a_straightforward_computation() -> None:
    """Classifiers fitted by hand at every point, for every student, fraction and draw, give the same choice and accuracies."""
    data, noise = labelled(noise=1.0), NOISE

    def accuracies(split: str, r: int, s: int) -> dict[tuple[float, int], float]:
        backbone = Quality(noise)(r, s)
        assert backbone is not None
        train, (images, truth) = backbone(data.train[0]).double(), data.split(split)
        held_out = (backbone(images).double() - train.mean(0)) / train.std(0, correction=0)
        train = (train - train.mean(0)) / train.std(0, correction=0)
        found = {}
        for fraction in PROBE["label_fractions"]:
            for draw in range(PROBE["label_draws"]):
                known = draw_labels(data.train[1], fraction, 0, data.name, draw)
                weight = 1 / (2 * PROBE["l2"] * len(known))
                fitted = LogisticRegression(C=weight, tol=1e-6, max_iter=5000)
                fitted.fit(train[known].numpy(), data.train[1][known].numpy())
                found[fraction, draw] = 100 * float((fitted.predict(held_out.numpy()) == truth.numpy()).mean())
        return found

    points = [(r, s) for s in range(3) for r in range(2) if noise[r][s] is not None]
    validation = {(RATES[r], STEPS[s]): accuracies("validation", r, s) for r, s in points}
    means = {point: np.mean(list(values.values())) for point, values in validation.items()}
    best = max(means, key=lambda point: means[point])
    at_steps = {max((p for p in means if p[1] == steps), key=lambda point: means[point]) for steps in STEPS}
    rows = run(data, [data])
    assert {point for point, (chosen, _) in flags(rows).items() if chosen} == {best}
    assert {point for point, (_, chosen) in flags(rows).items() if chosen} == at_steps
    expected = {("validation", *point): values for point, values in validation.items()}
    expected |= {
        ("test", rate, steps): accuracies("test", RATES.index(rate), STEPS.index(steps)) for rate, steps in at_steps
    }
    assert len(rows) == len(expected) * len(STUDENTS) * 4
    for row in rows:
        where = row["split"], row["rate"], row["steps"]
        assert row["accuracy"] == pytest.approx(expected[where][row["label_fraction"], row["label_draw"]])
        assert row["chosen"] == (where[1:] == best)


def test_what_is_measured_on_test_does_not_touch_the_choice() -> None:
    """Other downstream sets, neighbours, draws and recipes leave the rows of validation as they are."""
    recipe: dict[str, Any] = {"rates": [0.1], "steps": 2, "batch": 8, "weight_decay": 0.0}
    plain = run(labelled(), [labelled()])
    more = run(labelled(), [labelled(), labelled("other", 3, seed=5)], knn=1, label_draws=3, finetune=recipe)
    chosen = [
        [row for row in rows if row["split"] == "validation" and row["evaluation"] == "linear"]
        for rows in (plain, more)
    ]
    assert [{**row, "finetune_rate": None} for row in chosen[0]] == [
        {**row, "finetune_rate": None} for row in chosen[1]
    ]
    first = [
        [
            row["accuracy"]
            for row in rows
            if row["split"] == "test"
            and row["downstream"] == "toy"
            and row["evaluation"] == "linear"
            and row["label_draw"] < 2
        ]
        for rows in (plain, more)
    ]
    assert first[0] == first[1]


def test_the_last_value_that_is_shown_is_that_of_the_chosen_point() -> None:
    """MLflow shows the last value of a metric; the probe shows the mean of each downstream set, evaluation and fraction."""
    shown: list[tuple[int, dict[str, float]]] = []
    grid = StudentGrid(STUDENTS, dict.fromkeys(STUDENTS, RATES), STEPS)
    report = lambda step, values, pictures=None: shown.append((step, dict(values)))  # noqa: E731
    selected = select(grid, labelled(), PROBE, seed=0, device=CPU, report=report)
    assert [step for step, _ in shown] == [1, 2, 3, 5, 6, 7]  # the fourth point diverged
    chosen = [row for row in selected if row["chosen"]]
    mean = float(np.mean([row["accuracy"] for row in chosen]))
    assert shown[-1][1] == {"validation_accuracy": mean, "rate": chosen[0]["rate"], "steps": chosen[0]["steps"]}
    shown.clear()
    points = chosen_points(selected, grid)
    rows = probe(grid, points, [labelled()], PROBE | {"knn": 1}, seed=0, device=CPU, report=report)
    (_, values) = shown[-1]
    assert values.keys() == {f"test_accuracy/toy/{part}{name}" for name in ("", "/knn") for part in (0.1, 0.5)}
    mine = [
        row["accuracy"] for row in rows if row["chosen"] and row["evaluation"] == "knn" and row["label_fraction"] == 0.1
    ]
    assert values["test_accuracy/toy/0.1/knn"] == pytest.approx(np.mean(mine))


def test_a_table_of_other_students_chooses_nothing() -> None:
    """Of another seed or another grid, or without a chosen point."""
    grid = StudentGrid(STUDENTS, dict.fromkeys(STUDENTS, RATES), STEPS)
    rows = select(grid, labelled(), PROBE, seed=0, device=CPU)
    assert len(chosen_points(rows, grid)) == len(STEPS)
    for wrong in ({"seed": 7}, {"rate": 0.2}, {"steps": 6}, {"chosen": False}):
        with pytest.raises((ValueError, LookupError)):
            chosen_points([row | wrong for row in rows], grid)


def test_the_test_split_is_opened_only_after_the_choice() -> None:
    """All uses of validation come first, also before the selection set's own test split."""
    seen: list[str] = []
    selection, other = Watched(labelled(), seen), Watched(labelled("other", 3, seed=5), seen)
    run(selection, [selection, other])
    first = seen.index("test")
    assert "validation" in seen[:first]
    assert "validation" not in seen[first:]


def test_test_labels_cannot_influence_the_choice() -> None:
    """Wrong test labels change the test accuracy and no choice."""
    data = labelled(noise=1.0)
    spoilt = replace(data, test=(data.test[0], (data.test[1] + 1) % 4))
    right, wrong = run(data, [data]), run(spoilt, [spoilt])
    assert flags(right) == flags(wrong)
    identity = ("split", "rate", "steps", "seed", "label_fraction", "label_draw", "chosen", "chosen_at_steps")
    assert [[row[k] for k in identity] for row in right] == [[row[k] for k in identity] for row in wrong]
    accuracy = [[row["accuracy"] for row in rows if row["split"] == "test"] for rows in (right, wrong)]
    assert np.mean(accuracy[0]) > np.mean(accuracy[1]) + 20


def test_knn_and_finetuning_are_scored_at_the_chosen_point() -> None:
    """All three have the same draws. The linear probe chooses the point; fine-tuning's rate is chosen before test is opened."""
    seen: list[str] = []
    recipe: dict[str, Any] = {"rates": [1.0, 0.1], "steps": 20, "batch": 8, "weight_decay": 0.0}
    rows = run(
        Watched(labelled(noise=1.5), seen), [Watched(labelled("other", 3, seed=5), seen)], knn=1, finetune=recipe
    )
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


def test_diverged_points_are_skipped() -> None:
    """A point that diverged for any seed is not chosen; if all did, the error says what to lower."""
    rows = run(labelled(), [labelled()])
    assert (0.1, 5) not in flags(rows)
    best_diverged_once: list[list[float | None]] = [[20.0, 3.0, 8.0], [20.0, 3.0, None]]
    rows = run(labelled(), [labelled()], {(0, 0): Quality(NOISE), (0, 1): Quality(best_diverged_once)})
    assert (0.1, 10) not in {(row["rate"], row["steps"]) for row in rows}
    assert sum(chosen for chosen, _ in flags(rows).values()) == 1
    with pytest.raises(UserError, match=r"every point of the grid.*pretrain\.rates"):
        run(labelled(), [labelled()], {(0, 0): Quality([[None] * 3] * 2)})


def test_all_methods_are_scored_with_the_same_labels() -> None:
    """With other backbones and grids the classifier is fitted on equal labels."""
    seen: list[list[bytes]] = []
    for students in ({(0, 0): Quality(NOISE)}, {(3, 0): Quality([[1.0] * 3] * 2)}):
        fitted: list[bytes] = []

        def spy(features: Tensor, labels: Tensor, l2: float, fitted: list[bytes] = fitted) -> Classifiers:
            fitted.append(labels.numpy().tobytes())
            return fit_linear(features, labels, l2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mkdt.evaluate.linear_probe.fit_linear", spy)
            run(labelled(), [], students)
        seen.append(fitted)
    per_point = len(PROBE["label_fractions"])  # all draws of a fraction are fitted at once
    assert len({tuple(fitted[k : k + per_point]) for fitted in seen for k in range(0, len(fitted), per_point)}) == 1


def test_points_whose_features_overflow_count_as_diverged() -> None:
    """Finite weights can give features that are not finite: the probe skips the point."""

    class Overflow(nn.Module):
        """Gives features beyond float32."""

        def forward(self, images: Tensor) -> Tensor:
            """Return infinity where a pixel is positive."""
            return images.flatten(1) * 3e38 * 10

    good = Quality(NOISE)
    rows = run(labelled(), [labelled()], {(0, 0): lambda r, s: Overflow() if (r, s) == (0, 1) else good(r, s)})
    assert (0.01, 5) not in flags(rows)
    assert (0.1, 10) in flags(rows)
