"""Study 2: tables and figures of its page, from the scores that the workflow has made so far."""

import shutil
from pathlib import Path

import pandas as pd

from mkdt import report, studies
from mkdt.artifacts import write_text
from mkdt.config import RESULTS
from mkdt.resources import read

CONFIG = Path("config/studies/fashion.yaml")
PAGE = Path("docs/studies/fashion")


def as_text(points: pd.DataFrame) -> str:
    """Mean accuracies by pre-training steps, a row a method that has steps.

    Args:
        points: as from ``report.curve``, of one downstream set and label fraction.
    """
    trained = points[points["steps"] > 0]
    steps = sorted(trained["steps"].unique())
    rows = []
    for method, part in trained.groupby("method", sort=False):
        means = dict(zip(part["steps"], part["mean"], strict=True))
        rows.append([str(method), *(f"{means[step]:.1f}" if step in means else "-" for step in steps)])
    return report.markdown(["method", *(f"{step:,}" for step in steps)], rows) + "\n"


def main() -> None:
    """Gather the scores, write what the page shows."""
    config = read([CONFIG])
    scores, accuracy, summary = studies.tables(config)
    points = report.curve(scores, sorted(set(scores["budget"]) - {"all"}))
    order = {method: k for k, method in enumerate(config["methods"])}
    points = points.sort_values("method", key=lambda names: names.map(order), kind="stable")
    report.save_table(PAGE / "accuracy.csv", accuracy)
    report.save_table(PAGE / "summary.csv", summary)
    report.save_table(PAGE / "curve.csv", points)
    report.save_table(PAGE / "against_best_subset.csv", report.against_best_subset(scores, accuracy))
    write_text(PAGE / "summary.md", report.as_text(summary, config["pretrain"]["protocol"]))
    here = points["downstream"] == config["source"]
    parts = [points[here & (points["label_fraction"] == fraction)] for fraction in config["probe"]["label_fractions"]]
    write_text(PAGE / "steps.md", "\n".join(as_text(part) for part in parts))
    report.save_figure(PAGE / "curve.png", report.plot_curve(points[here], config["methods"]))
    shutil.copyfile(RESULTS / config["experiment"] / "report/sets.png", PAGE / "sets.png")


if __name__ == "__main__":
    main()
