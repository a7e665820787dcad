"""Study 5: table and figure of its page, from the scores that the workflow has made so far."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mkdt import report, studies
from mkdt.artifacts import write_text
from mkdt.resources import read

CONFIG = Path("config/studies/architectures.yaml")
PAGE = Path("docs/studies/architectures")


def as_text(summary: pd.DataFrame, best: pd.DataFrame) -> str:
    """One row a student: mean accuracies of all methods, then what the distilled set gains.

    Args:
        summary: of the linear probe, one budget and label fraction.
        best: as from ``report.against_best_subset``, of the same.
    """
    methods = list(summary["method"].unique())
    rows = []
    for student, part in summary.groupby("student", sort=False):
        lines = part.set_index("method")
        cells = [str(student)]
        for method in methods:
            star = "*" if method in lines.index and lines.loc[method, "at_edge"] else ""
            cells.append(f"{lines.loc[method, 'mean']:.1f}{star}" if method in lines.index else "-")
        mkdt = lines.loc["mkdt"].to_dict() if "mkdt" in lines.index else {}
        others = best[(best["student"] == student) & (best["method"] == "mkdt")].to_dict("records")
        cells += [report.spread(mkdt), report.share(mkdt["recovered"])] if mkdt else ["-", "-"]
        cells.append(f"{report.spread(others[0])} ({others[0]['subset']})" if others else "-")
        rows.append(cells)
    header = ["student", *methods, "mkdt vs random", "recovered", "mkdt vs the best subset"]
    return f"{report.markdown(header, rows)}\n\n\\* chosen at the edge of the grid.\n"


def plot(summary: pd.DataFrame, methods: list[str]) -> Figure:
    """Differences to the random subset with their intervals, a band a student."""
    figure = Figure(figsize=(7, 1 + 0.8 * summary["student"].nunique()), layout="constrained")
    axis = figure.subplots()
    report.draw_differences(axis, summary, methods, by=["student"])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def main() -> None:
    """Gather the scores, write what the page shows."""
    config = read([CONFIG])
    scores, accuracy, summary = studies.tables(config)
    best = report.against_best_subset(scores, accuracy)
    report.save_table(PAGE / "accuracy.csv", accuracy)
    report.save_table(PAGE / "summary.csv", summary)
    report.save_table(PAGE / "against_best_subset.csv", best)
    write_text(PAGE / "summary.md", report.as_text(summary, config["pretrain"]["protocol"]))
    order = {student: k for k, student in enumerate(config["students"])}
    linear = summary[summary["evaluation"] == "linear"].sort_values(
        "student", key=lambda s: s.map(order), kind="stable"
    )
    write_text(PAGE / "table.md", as_text(linear, best))
    report.save_figure(PAGE / "transfer.png", plot(linear, config["methods"]))


if __name__ == "__main__":
    main()
