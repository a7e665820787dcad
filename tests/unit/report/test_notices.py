"""Notices above the results: smoke scale, and labels that neither pixels nor targets predict."""

from pathlib import Path

import pytest

from mkdt.artifacts import write_jsonl
from mkdt.errors import UserError
from mkdt.report.notices import notices

CHANCE = {"label_fraction": 0.1, "labels": 60, "chance": 12.5, "scored": 100}


def of(folder: Path, scale: str, *rows: dict[str, float]) -> list[str]:
    """The notices on a source `photos`."""
    file = folder / "targets_probe.jsonl"
    write_jsonl(file, list(rows))
    return notices(scale, "photos", file)


def test_a_smoke_report_says_that_its_numbers_mean_nothing(tmp_path: Path) -> None:
    """At full size, or where the source has no labels, there is nothing to say."""
    assert of(tmp_path, "full") == []
    (notice,) = of(tmp_path, "smoke")
    assert "smoke" in notice
    assert "mean nothing" in notice


def test_labels_that_nothing_predicts_are_named(tmp_path: Path) -> None:
    """One accuracy clearly above chance is enough: 19 % of 100 images is not, 20 % is."""
    (notice,) = of(tmp_path, "full", CHANCE | {"targets": 11.0, "pixels": 19.0}, CHANCE | {"targets": 9, "pixels": 14})
    assert "photos" in notice
    assert "12.5 %" in notice
    for better in ("targets", "pixels"):
        row = CHANCE | {"targets": 11.0, "pixels": 11.0}
        assert of(tmp_path, "full", row, row | {better: 20.0}) == []


def test_a_missing_table_of_the_targets_probe_is_named(tmp_path: Path) -> None:
    """So is the rule that makes it."""
    with pytest.raises(UserError, match=r"none\.jsonl does not exist.*'targets_probe'"):
        notices("full", "photos", tmp_path / "none.jsonl")
