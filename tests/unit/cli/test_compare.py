"""`mkdt compare`: what differs between two experiments, and what it says where they cannot be compared."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_reports import make_report

from mkdt.cli.compare import find
from mkdt.cli.main import main
from mkdt.report.comparison import differences, differing


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty results folder of the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_differences_are_paired_over_seeds_and_draws(results: Path) -> None:
    """What a seed and a draw do to both cancels: the interval is far narrower than the runs' scatter, and holds the truth."""
    old = make_report(results, "old", {"random": 0, "mkdt": 2})
    new = make_report(results, "new", {"random": 0, "mkdt": 5}, noise=1)
    table = differences(find("old"), find("results/new")).set_index("method")
    row = table.loc["mkdt"]
    assert row["difference"] == pytest.approx((new["mkdt"] - old["mkdt"]).mean())
    assert (row["A"], row["B"]) == pytest.approx((old["mkdt"].mean(), new["mkdt"].mean()))
    assert row["low"] < 3 < row["high"]
    assert row["high"] - row["low"] < old["mkdt"].std() / 2
    assert row["pairs"] == "36"
    assert table.loc["random", "low"] < 0 < table.loc["random", "high"]


def test_only_runs_of_both_are_pairs(results: Path) -> None:
    """Seeds that one has not are left out of the difference, and the table says how many runs are left."""
    a = make_report(results, "a", {"mkdt": 2}, seeds=(0, 1, 2))
    b = make_report(results, "b", {"mkdt": 3}, seeds=(1, 2, 3, 4))
    make_report(results, "c", {"mkdt": 3}, seeds=(7, 8))
    (row,) = differences(find("a"), find("b")).to_dict("records")
    assert row["difference"] == pytest.approx((b["mkdt"][:, :2] - a["mkdt"][:, 1:]).mean())
    assert row["pairs"] == "24 of 36 and 48"
    (row,) = differences(find("a"), find("c")).to_dict("records")
    assert pd.isna(row["difference"])
    assert row["pairs"] == "none: no seed in both"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test": "other"}, "other test images"),
        ({"train": "other"}, "other label draws"),
        ({"seed": 1}, "other label draws"),
    ],
)
def test_scores_on_other_images_or_labels_are_not_compared_silently(
    results: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], reason: str
) -> None:
    """Both means are shown, no difference, and a sentence says why."""
    make_report(results, "a", {"mkdt": 2})
    make_report(results, "b", {"mkdt": 3}, **change)
    (row,) = differences(find("a"), find("b")).to_dict("records")
    assert pd.isna(row["difference"])
    assert pd.notna(row["A"])
    assert reason in row["pairs"]
    assert main(["compare", "a", "b"]) == 0
    assert f"d: A and B were scored with {reason}" in capsys.readouterr().out


def test_settings_that_differ(results: Path) -> None:
    """By dotted key; what neither experiment uses, and its name, are left out."""
    make_report(results, "a", {"mkdt": 2})
    make_report(results, "b", {"mkdt": 3}, distill={"iterations": 7}, views=["identity", "hflip"])
    found = {key: values for key, *values in differing(find("a"), find("b"))}
    assert found.keys() == {"distill.iterations", "views"}
    assert found["distill.iterations"][1] == "7"


def test_one_table_printed_and_written(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of methods that one alone has, and of the costs as far as they are known."""
    make_report(results, "a", {"random": 0, "mkdt": 2})
    make_report(results, "b", {"random": 0, "bptt": 2})
    for name, seconds in (("a", 65), ("b", 4)):
        benchmark = results / f"benchmarks/{name}/report.tsv"
        benchmark.parent.mkdir(parents=True)
        benchmark.write_text(f"s\tmax_rss\n{seconds}\t3\n")
    assert main(["compare", "a", "b", "--to", "notes/ab.md"]) == 0
    text = capsys.readouterr().out
    assert Path("notes/ab.md").read_text() == text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    by_name = {row[0]: row for row in cells}
    assert by_name["mkdt"][-3:] == ["-", "-", "none: not in B"]
    assert by_name["bptt"][1] == "-"
    assert by_name["report"][:5] == ["report", "1", "1", "1 min 5 s", "4.0 s"]
    moved = shutil.copytree(results / "b", results.parent / "elsewhere/b")
    assert main(["compare", "a", str(moved)]) == 0
    assert "costs of B are not known" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a refusal."""
    assert main(["compare", *words]) == 1
    output = capsys.readouterr()
    assert not output.out
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.counts("bad inputs refused")
def test_bad_input_is_one_sentence(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such experiment, no report yet, the same twice, a damaged table, a report of an earlier version."""
    assert "no experiment with a report" in refused(capsys, "a", "b")
    make_report(results, "a", {"mkdt": 2})
    make_report(results, "b", {"mkdt": 2})
    (results / "digits").mkdir()
    sentence = refused(capsys, "a", "typo")
    assert "'typo'" in sentence
    assert "a, b" in sentence
    assert "results/digits/report/summary.csv" in refused(capsys, "a", "digits")
    assert "the same experiment" in refused(capsys, "a", "results/a")
    table = results / "b/report/accuracy.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    assert "lacks runs" in refused(capsys, "a", "b")
    table.write_text(table.read_text()[:-5])
    assert "b/report/accuracy.csv is damaged" in refused(capsys, "a", "b")
    origin = results / "b/report/origin.json"
    origin.write_text(json.dumps({"config": {}}))
    assert "origin.json is damaged" in refused(capsys, "a", "b")
    origin.unlink()
    assert "origin.json does not exist" in refused(capsys, "a", "b")
    (results / "b/report/summary.csv").unlink()
    assert "b has no report" in refused(capsys, "a", "b")
