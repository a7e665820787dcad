"""Study 5: make the tables and the figure of its page from the scores that exist so far."""

from pathlib import Path

import pandas as pd
import shared as studies
from matplotlib.figure import Figure

from mkdt.artifacts import write_text
from mkdt.config.loading import read
from mkdt.config.methods import METHODS
from mkdt.report import figures
from mkdt.report import tables as report

CONFIG = Path("config/studies/architectures.yaml")
PAGE = Path("docs/studies/architectures")


def as_text(summary: pd.DataFrame, best: pd.DataFrame) -> str:
    """Format two tables, one row a student: mean accuracies; differences of distilled sets to the best subset.

    Args:
        summary: as from ``tables.summarise``, of the linear probe, one budget and label fraction.
        best: as from ``tables.against_best_subset``, of the same.
    """
    methods = list(summary["method"].unique())
    distilled = [method for method in methods if method in set(best["method"])]
    means, gains = [], []
    for student, part in summary.groupby("student", sort=False):
        measured = {row["method"]: row for row in part.to_dict("records")}
        stars = {method: "*" * row["at_edge"] for method, row in measured.items()}
        cells = [f"{measured[m]['mean']:.1f}{stars[m]}" if m in measured else "-" for m in methods]
        means.append([str(student), *cells])
        others = {row["method"]: row for row in best[best["student"] == student].to_dict("records")}
        cells = [report.difference(others[method]) if method in others else "-" for method in distilled]
        subset = next((row["subset"] for row in others.values()), "-")
        shares = [report.share(measured[method]["recovered"]) if method in measured else "-" for method in distilled]
        gains.append([str(student), str(subset), *(cell for pair in zip(cells, shares, strict=True) for cell in pair)])
    first = report.markdown(["student", *methods], means)
    pairs = [cell for method in distilled for cell in (method, "recovered")]
    second = report.markdown(["student", "best subset", *pairs], gains)
    return f"{first}\n\n\\* chosen at the edge of the grid.\n\n{second}\n"


def plot(summary: pd.DataFrame, methods: list[str]) -> Figure:
    """Plot differences to the random subset with their intervals, a band a student."""
    figure = Figure(figsize=(7, 1 + 0.8 * summary["student"].nunique()), layout="constrained")
    axis = figure.subplots()
    figures.draw_differences(axis, summary, methods, by=["student"])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def main() -> None:
    """Write the tables and the figure."""
    config = read([CONFIG])
    made = studies.save(PAGE, config)
    order = {student: k for k, student in enumerate(config["students"])}
    linear = made["summary"][made["summary"]["evaluation"] == "linear"]
    linear = linear.sort_values("student", key=lambda s: s.map(order), kind="stable")
    write_text(PAGE / "table.md", as_text(linear, made["against_best_subset"]))
    distilled = [method for method in config["methods"] if method in METHODS and METHODS[method].distilled]
    report.save_table(PAGE / "holm.csv", studies.corrected(made["accuracy"], made["against_best_subset"], distilled))
    figures.save_figure(PAGE / "transfer.png", plot(linear, config["methods"]))


if __name__ == "__main__":
    main()
