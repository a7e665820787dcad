"""Study 2: tables and figures of its page, from the scores that the workflow has made so far."""

import shutil
from pathlib import Path

import pandas as pd

from mkdt import report, studies
from mkdt.artifacts import write_text
from mkdt.config import RESULTS, budget_label
from mkdt.resources import read

CONFIG = Path("config/studies/fashion.yaml")
PAGE = Path("docs/studies/fashion")
PAIRS = [("mkdt", "random"), ("mkdt", "kmeans"), ("mkdt", "full"), ("mkdt_kmeans", "kmeans"), ("krr_st", "kmeans")]


def as_text(points: pd.DataFrame) -> str:
    """Mean accuracies by pre-training steps, a row a method that has steps.

    Args:
        points: as from ``report.curve``, of one downstream set and label fraction.
    """
    trained = points[points["steps"] > 0]
    steps = {step: f"{step:,}" for step in sorted(trained["steps"].unique())}
    return studies.crossed(trained, "method", "steps", steps, lambda row: f"{row['mean']:.1f}")


def main() -> None:
    """Gather the scores, write what the page shows."""
    config = read([CONFIG])
    made = studies.save(PAGE, config)
    points, runs = (made[name][made[name]["downstream"] == config["source"]] for name in ("curve", "runs_by_steps"))
    fractions, budgets = config["probe"]["label_fractions"], [budget_label(budget) for budget in config["budgets"]]
    parts = [points[points["label_fraction"] == fraction] for fraction in fractions]
    write_text(PAGE / "steps.md", "\n".join(as_text(part) for part in parts))
    equal = [
        studies.at_equal_steps(
            runs[runs["label_fraction"] == fraction], PAIRS, budgets, config["pretrain"]["steps"]
        ).assign(label_fraction=fraction)
        for fraction in fractions
    ]
    report.save_table(PAGE / "equal_steps.csv", pd.concat(equal))
    write_text(PAGE / "equal_steps.md", "\n".join(studies.differences_as_text(part, "steps") for part in equal))
    report.save_figure(PAGE / "curve.png", report.plot_curve(points, config["methods"]))
    shutil.copyfile(RESULTS / config["experiment"] / "report/sets.png", PAGE / "sets.png")


if __name__ == "__main__":
    main()
