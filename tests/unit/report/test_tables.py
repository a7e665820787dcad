"""Tables: scores from files, the summary, and its text."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from score_tables import runs

from mkdt.errors import UserError
from mkdt.report import figures
from mkdt.report import tables as report


def test_summary_and_text() -> None:
    """Means, recovered shares, a star at the edge of the grid, and no difference of `random` to itself."""
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
    assert "chance" not in text
    with_chance = report.summarise(report.accuracies(scores, ["1pct"]), methods, {"d": 12.5})
    text = report.as_text(with_chance, "fair", ["Nothing means anything."])
    assert text.startswith("**Nothing means anything.**\n")
    assert "(chance 12.5)" in text
    sizes = {("random", "1pct"): (13, 7488), ("mkdt", "1pct"): (13, 7488), ("full", "all"): (1300, 748_800)}
    with_sizes = report.summarise(report.accuracies(scores, ["1pct"]), methods, sizes=sizes)
    assert with_sizes["bytes"].fillna(0).to_list() == [0, 7488, 7488, 748_800]
    assert "| full | 1,300 | 748,800 |" in report.as_text(with_sizes, "fair")
    # k-NN has a table of its own, after the linear probe's; the curve has the linear probe only.
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


def test_a_missing_table_and_a_damaged_one_have_different_errors(tmp_path: Path) -> None:
    """Both errors name the file and the rule that makes it."""
    path = tmp_path / "scores.csv"
    with pytest.raises(UserError, match=r"scores\.csv does not exist.*'probe'"):
        report.read_table(path, "probe")
    path.write_text("a,b\n1,2")
    with pytest.raises(UserError, match=r"scores\.csv is damaged.*'probe'"):
        report.read_table(path, "probe")


def test_different_rates_of_a_methods_sets_are_averaged() -> None:
    """This is so under the protocol ``paper``; a single rate is not changed in the last digit."""
    values = np.full((2, 1, 1), 80.0)
    rates = {seed: runs("mkdt", [seed], values[:1], rate=rate) for seed, rate in ((0, 0.5), (1, 0.6))}
    both = pd.concat([*rates.values(), runs("random", [0, 1], values)])
    shown = report.summarise(both, ["random", "mkdt"]).set_index("method")["rate"]
    assert shown["mkdt"] == pytest.approx(0.55)
    assert shown["random"] == 0.1


def test_the_teachers_rows_are_repeated_for_every_student(tmp_path: Path) -> None:
    """They come from the first student's file; a file of another student, from an earlier run, is not used."""
    values = np.full((1, 1, 1), 80.0)
    files = []
    for student, method, rows in (
        ("a", "none", runs("none", [0], values)),
        ("b", "none", runs("none", [0], values + 1)),
        ("a", "teacher", runs("teacher", [0], values + 5)),
        ("b", "teacher", runs("teacher", [0], values + 6)),
    ):
        files.append(tmp_path / f"{student}_{method}.csv")
        written = rows.drop(columns="source").assign(student=student, split="test", chosen=True)
        report.save_table(files[-1], written)
    for given in (files, [*files[:2], files[3]]):
        scores = report.read_scores([], given, "s", ["b", "a"]).sort_values(["method", "student"])
        assert scores[["student", "method", "accuracy"]].to_numpy().tolist() == [
            ["a", "none", 80.0], ["b", "none", 81.0], ["a", "teacher", 86.0], ["b", "teacher", 86.0],
        ]  # fmt: skip
    alone = report.read_scores([], files[3:], "s", ["b", "a"])
    assert alone[["student", "accuracy"]].to_numpy().tolist() == [["b", 86.0], ["a", 86.0]]


def test_a_score_file_that_lacks_a_run_is_named(tmp_path: Path) -> None:
    """Otherwise its interval would end in a traceback, or be of other runs than it says."""
    written = (
        runs("mkdt", [0, 1], np.arange(12.0).reshape(2, 3, 2)).drop(columns="source").assign(split="test", chosen=True)
    )
    for row in (0, 7, 11):
        report.save_table(tmp_path / "mkdt.csv", written.drop(index=row))
        with pytest.raises(UserError, match=r"mkdt\.csv lacks a run.*'probe'"):
            report.read_scores([], [tmp_path / "mkdt.csv"], "s", ["c"])
    report.save_table(tmp_path / "mkdt.csv", written)
    assert len(report.read_scores([], [tmp_path / "mkdt.csv"], "s", ["c"])) == 12
