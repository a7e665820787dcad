"""Tables: pairing, intervals that hold with few levels, and what is said of the grid's edge."""

from math import erfc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from score_tables import runs

from mkdt.config.methods import METHODS
from mkdt.errors import UserError
from mkdt.report import figures, statistics
from mkdt.report import tables as report

SHAPES = [(5, 1, 1), (1, 5, 1), (1, 1, 5)]  # of the effects of subset, student seed and label draw


def test_differences_are_paired_run_by_run() -> None:
    """What all methods share (a hard label draw) must cancel: a constant gain has no spread."""
    base = np.random.default_rng(0).normal(70, 5, (3, 4, 2))
    table = statistics.paired(runs("mkdt", [0, 1, 2], base + 2), runs("random", [0, 1, 2], base))
    assert len(table) == 24
    assert np.allclose(table["difference"], 2)


@pytest.mark.parametrize("seeds", [[0, 1, 2], [5], [1]])
def test_a_method_with_one_set_is_paired_with_every_subset(seeds: list[int]) -> None:
    """`full` and `high_loss` have one training set (seed 0) whatever the distill seeds are, even a single other one."""
    base = np.random.default_rng(1).normal(70, 5, (len(seeds), 4, 2))
    single = np.full((1, 4, 2), 80.0)
    table = statistics.paired(runs("full", [0], single), runs("random", seeds, base))
    assert len(table) == len(seeds) * 8
    assert table["difference"].mean() == pytest.approx(80 - base.mean())
    assert sorted(table["distill_seed"].unique()) == sorted(seeds if len(seeds) > 1 else [0])
    back = statistics.paired(runs("random", seeds, base), runs("full", [0], single))
    assert back["difference"].mean() == pytest.approx(base.mean() - 80)


def test_one_network_is_paired_with_every_student() -> None:
    """The teacher has neither distill seeds nor student seeds; label draws still go together."""
    base = np.random.default_rng(1).normal(70, 5, (3, 4, 2))
    teacher = np.array([90.0, 80.0]).reshape(1, 1, 2)
    table = statistics.paired(runs("teacher", [0], teacher), runs("random", [0, 1, 2], base))
    assert len(table) == 24
    assert not table.duplicated(statistics.RUN).any()
    by_draw = table.groupby("label_draw")["difference"].mean()
    np.testing.assert_allclose(by_draw, [90 - base[..., 0].mean(), 80 - base[..., 1].mean()])


def test_different_seeds_cannot_be_paired() -> None:
    """Silently dropping runs would make a difference of unlike things."""
    base = np.zeros((2, 1, 1))
    with pytest.raises(ValueError, match="cannot pair distill seeds"):
        statistics.paired(runs("a", [0, 1], base), runs("b", [1, 2], base))
    with pytest.raises(ValueError, match="cannot pair seeds"):
        statistics.paired(runs("a", [0], np.zeros((1, 2, 1))), runs("b", [0], np.zeros((1, 3, 1))))


def test_the_interval_covers_with_three_subsets() -> None:
    """With few subsets that differ, a percentile bootstrap covers 75 %; this one must hold its 95 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        effect = rng.normal(0, 1, (3, 1, 1)) + rng.normal(0, 0.5, (1, 5, 1)) + rng.normal(0, 0.3, (3, 5, 3))
        _, low, high = statistics.interval(runs("m", [0, 1, 2], effect), "accuracy")
        hits += low <= 0 <= high
    assert hits >= 0.93 * 300


@pytest.mark.parametrize("deviations", [(1, 0.5, 0), (1, 0.5, 0.5), (1, 1, 1), (1, 0, 0)], ids=str)
def test_the_bootstrap_covers(deviations: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """With five levels of each factor, whatever moves most: plain percentiles hold the truth in 84 to 90 %, these in 93 to 95 %."""
    monkeypatch.setattr(report, "RESAMPLES", 4000)
    rng = np.random.default_rng(1)
    hits, plain = 0, 0
    for _ in range(200):
        parts = [rng.normal(0, deviation, shape) for deviation, shape in zip(deviations, SHAPES, strict=True)]
        effect = sum(parts) + rng.normal(0, 0.3, (5, 5, 5))
        table = runs("m", list(range(5)), effect)
        low, high = statistics.bootstrap(table, "accuracy")
        hits += low <= 0 <= high
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report, "expanded_tail", lambda freedom: 0.025)
            low, high = statistics.bootstrap(table, "accuracy")
        plain += low <= 0 <= high
    assert hits >= 0.91 * 200
    assert plain < hits


def test_the_bootstrap_resamples_levels() -> None:
    """As a transcription with loops does it; a factor of one level stays as it is; the same table gives the same interval."""
    rng = np.random.default_rng(2)
    effect = rng.normal(0, 1, (5, 1, 1)) + rng.normal(0, 1, (1, 1, 6)) + rng.normal(0, 0.3, (5, 1, 6))
    table = runs("m", list(range(5)), effect)
    found = statistics.bootstrap(table, "accuracy")
    assert statistics.bootstrap(table.sample(frac=1, random_state=0), "accuracy") == pytest.approx(found)
    means = []
    for _ in range(20000):
        first, last = (rng.integers(0, count, count) for count in (5, 6))
        means.append(effect[first][:, :, last].mean())
    variances = [effect.mean(axis).var(ddof=1) / count for axis, count in (((1, 2), 5), ((0, 1), 6))]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 5)
    tail = statistics.expanded_tail(freedom)
    spread = found[1] - found[0]
    assert found == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=0.03 * spread)
    with pytest.raises(ValueError, match="1 combinations of distill_seed, seed, label_draw are missing"):
        statistics.bootstrap(table.iloc[1:], "accuracy")


def test_the_tails_are_hesterbergs() -> None:
    """Of ten and five levels: sqrt(n / (n - 1)) times the quantile of Student's t, as one of the normal distribution."""
    for levels, quantile in ((10, 2.262157), (5, 2.776445)):
        expected = 0.5 * erfc(quantile * (levels / (levels - 1)) ** 0.5 / 2**0.5)
        assert statistics.expanded_tail(levels - 1) == pytest.approx(expected, rel=1e-4)


def test_few_levels_are_not_resampled() -> None:
    """Of three subsets a bootstrap sees 27 draws: no interval, rather than the range of what was measured."""
    effect = np.random.default_rng(3).normal(0, 1, (3, 5, 5))
    assert np.isnan(statistics.bootstrap(runs("m", [0, 1, 2], effect), "accuracy")).all()


def test_the_interval_of_one_factor_is_students() -> None:
    """One factor alone: the textbook t interval of its means."""
    values = np.array([1.0, 2.0, 4.0, 7.0]).reshape(1, 4, 1)
    mean, low, high = statistics.interval(runs("m", [0], values), "accuracy")
    half = 3.182446 * values.std(ddof=1) / 2
    assert (mean, low, high) == pytest.approx((3.5, 3.5 - half, 3.5 + half))


def test_a_single_run_has_no_interval() -> None:
    """One run says nothing of the spread: no interval, rather than one of no width."""
    mean, low, high = statistics.interval(runs("m", [0], np.ones((1, 1, 1))), "accuracy")
    assert mean == 1
    assert np.isnan([low, high, *statistics.bootstrap(runs("m", [0], np.ones((1, 1, 1))), "accuracy")]).all()


def test_summary_and_text() -> None:
    """Means, recovered shares, the starred edge, and no difference of `random` to itself."""
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, (1, 3, 2))
    parts = [
        runs("none", [0], 60 + base, budget="all", steps=0),
        runs("random", [0, 1], 65 + np.repeat(base, 2, 0), at_edge=True),
        runs("mkdt", [0, 1], 70 + np.repeat(base, 2, 0)),
        runs("full", [0], 80 + base, budget="all"),
    ]
    scores = pd.concat(parts).assign(split="test", chosen=True, chosen_at_steps=True)
    methods = ["none", "random", "mkdt", "full"]
    summary = report.summarise(report.accuracies(scores, ["1pct"]), methods)
    table = summary.set_index("method")
    assert list(summary["method"]) == methods
    assert table["recovered"].to_dict() == pytest.approx({"none": 0, "random": 0.25, "mkdt": 0.5, "full": 1})
    assert table.loc["mkdt", "difference"] == pytest.approx(5)
    assert np.isnan(table.loc["random", "difference"])
    assert table["n"].to_dict() == {"none": 6, "random": 12, "mkdt": 12, "full": 6}
    text = report.as_text(summary, "fair")
    assert "0.1, 10*" in text
    assert "edge of the grid" in text
    assert "+5.0" in text
    # k-NN and fine-tuning are tables of their own, after the probe's; the curve stays the probe's.
    knn = scores.assign(evaluation="knn", accuracy=scores["accuracy"] - 1)
    scores = pd.concat([knn, scores])
    summary = report.summarise(report.accuracies(scores, ["1pct"]), methods)
    assert len(summary) == 8
    text = report.as_text(summary, "fair")
    assert text.index("linear probe on d") < text.index("k-NN on d")
    points = report.curve(scores, ["1pct"])
    assert len(points) == 4
    figure = figures.plot_curve(points, methods)
    assert len(figure.axes) == 1


@pytest.mark.parametrize("fractions", [1, 2])
def test_the_legend_of_all_methods_stays_within_the_figure(fractions: int) -> None:
    """Thirteen methods, the most that can be compared without a file of somebody else's."""
    rows = [
        {"budget": "1pct", "student": "convnet", "downstream": "d", "label_fraction": 0.01 * (k + 1), "method": method}
        | {"steps": 20, "mean": 50.0, "low": 49.0, "high": 51.0}
        for method in METHODS
        for k in range(fractions)
    ]
    figure = figures.plot_curve(pd.DataFrame(rows), list(METHODS))
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1


def test_a_table_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    """Missing and cut are two sentences; both name the file and the rule that makes it."""
    path = tmp_path / "scores.csv"
    with pytest.raises(UserError, match=r"scores\.csv does not exist: snakemake makes it with the rule 'probe'"):
        report.read_table(path, "probe")
    path.write_text("a,b\n1,2")
    with pytest.raises(UserError, match=r"scores\.csv is damaged .*rule 'probe'"):
        report.read_table(path, "probe")


def test_the_rate_of_a_method_whose_sets_have_their_own_is_their_mean() -> None:
    """Under the protocol ``paper``; one rate stays what it is, to the last digit."""
    values = np.full((2, 1, 1), 80.0)
    rates = {seed: runs("mkdt", [seed], values[:1], rate=rate) for seed, rate in ((0, 0.5), (1, 0.6))}
    both = pd.concat([*rates.values(), runs("random", [0, 1], values)])
    shown = report.summarise(both, ["random", "mkdt"]).set_index("method")["rate"]
    assert shown["mkdt"] == pytest.approx(0.55)
    assert shown["random"] == 0.1


def test_the_teacher_is_scored_once_and_stands_beside_every_student(tmp_path: Path) -> None:
    """Its rows are those of one student's file; a file of another one, of an earlier run, is not taken beside it."""
    values = np.full((1, 1, 1), 80.0)
    files = []
    for student, method, rows in (
        ("a", "none", runs("none", [0], values)),
        ("b", "none", runs("none", [0], values + 1)),
        ("a", "teacher", runs("teacher", [0], values + 5)),
        ("b", "teacher", runs("teacher", [0], values + 6)),
    ):
        files.append(tmp_path / f"{student}_{method}.csv")
        report.save_table(files[-1], rows.drop(columns="source").assign(student=student))
    for given in (files, [*files[:2], files[3]]):
        found = report.read_scores(given, "s", ["b", "a"]).sort_values(["method", "student"])
        assert found[["student", "method", "accuracy"]].to_numpy().tolist() == [
            ["a", "none", 80.0], ["b", "none", 81.0], ["a", "teacher", 86.0], ["b", "teacher", 86.0],
        ]  # fmt: skip
    alone = report.read_scores(files[3:], "s", ["b", "a"])
    assert alone[["student", "accuracy"]].to_numpy().tolist() == [["b", 86.0], ["a", 86.0]]
