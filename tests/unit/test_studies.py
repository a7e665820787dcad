"""The scripts of the studies on made scores: their tables, texts and figures."""

import architectures
import pandas as pd
import pytest

from mkdt import report


def scores(
    method: str, student: str, accuracy: float, split: str = "test", seeds: tuple[int, ...] = (0, 1)
) -> pd.DataFrame:
    """Rows of rule probe at one chosen point; a draw moves all methods alike."""
    rows = []
    budget = "all" if method in {"none", "full"} else "1pct"
    for distill_seed in seeds if method in {"random", "kmeans", "mkdt"} else (0,):
        for seed in (0, 1):
            for draw in (0, 1):
                who = {"method": method, "student": student, "budget": budget, "downstream": "digits", "split": split}
                run = {"distill_seed": distill_seed, "seed": seed, "label_draw": draw, "label_fraction": 0.02}
                point = {
                    "rate": 0.1,
                    "steps": 20,
                    "chosen": True,
                    "chosen_at_steps": True,
                    "at_edge": student == "alexnet",
                }
                value = {
                    "evaluation": "linear",
                    "accuracy": accuracy + 3 * draw + seed,
                    "gradient": 0.0,
                    "finetune_rate": None,
                }
                rows.append(who | run | point | value)
    return pd.DataFrame(rows).assign(source="digits")


@pytest.fixture
def two_students() -> pd.DataFrame:
    """k-means is the best subset on test; validation prefers random for the AlexNet, and that decides."""
    level = {"none": 70.0, "random": 74.0, "kmeans": 75.0, "mkdt": 78.0, "full": 80.0}
    parts = []
    for student in ("convnet", "alexnet"):
        for method, accuracy in level.items():
            parts.append(scores(method, student, accuracy))
            shown = 60.0 if (student, method) == ("alexnet", "kmeans") else accuracy
            parts.append(scores(method, student, shown, "validation"))
    return pd.concat(parts, ignore_index=True)


def test_the_best_subset_is_the_one_that_validation_prefers(two_students: pd.DataFrame) -> None:
    """Choosing it on test would favour the subsets."""
    best = report.against_best_subset(two_students, report.accuracies(two_students, ["1pct"]))
    found = best.set_index("student")[["method", "subset", "difference"]]
    assert found.loc["convnet"].tolist() == ["mkdt", "kmeans", 3.0]
    assert found.loc["alexnet"].tolist() == ["mkdt", "random", 4.0]


def test_the_table_of_architectures(two_students: pd.DataFrame) -> None:
    """A row a student, in the order given; a star at the edge of the grid; a method that is not measured yet is a dash."""
    two_students = two_students[(two_students["student"] == "convnet") | (two_students["method"] != "none")]
    accuracy = report.accuracies(two_students, ["1pct"])
    summary = report.summarise(accuracy, ["none", "random", "kmeans", "mkdt", "full"])
    ordered = summary.sort_values("student", ascending=False)
    text = architectures.as_text(ordered, report.against_best_subset(two_students, accuracy)).splitlines()
    assert (
        text[0]
        == "| student | none | random | kmeans | mkdt | full | mkdt vs random | recovered | mkdt vs the best subset |"
    )
    assert text[2].startswith("| convnet | 72.0 | 76.0 | 77.0 | 80.0 | 82.0 | +4.0 [+4.0, +4.0] | 80 % | +3.0 [")
    assert (
        text[3]
        == "| alexnet | - | 76.0* | 77.0* | 80.0* | 82.0* | +4.0 [+4.0, +4.0] | - | +4.0 [+4.0, +4.0] (random) |"
    )
    (axis,) = architectures.plot(ordered, ["none", "random", "kmeans", "mkdt", "full"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["convnet", "alexnet"]
