"""Study 6: make the table of its page from the scores that exist so far under both protocols."""

from itertools import product
from pathlib import Path

import pandas as pd
import shared as studies

from mkdt.artifacts import write_text
from mkdt.config.loading import read
from mkdt.report import tables as report

FAIR = Path("config/studies/protocols.yaml")
PAGE = Path("docs/studies/protocols")
CONFIGS = {"fair": [FAIR], "paper": [FAIR, FAIR.with_stem("protocols_paper")]}


def as_text(summary: pd.DataFrame) -> str:
    """Format mean accuracies and differences to random in two tables, a row a method, a column a protocol and evaluation.

    Args:
        summary: rows of ``tables.summarise`` of one student, budget and label fraction, with the column ``protocol``.
    """
    names = summary["protocol"] + ", " + summary["evaluation"].map(report.EVALUATIONS)
    pairs = product(summary["protocol"].unique(), report.EVALUATIONS.values())
    columns = {name: name for name in map(", ".join, pairs)}
    cells = (lambda row: f"{row['mean']:.1f}"), report.difference
    return "\n".join(studies.crossed(summary.assign(at=names), "method", "at", columns, cell) for cell in cells)


def main() -> None:
    """Write the tables."""
    parts = []
    for protocol, files in CONFIGS.items():
        _, accuracy, summary = studies.tables(read(files))
        report.save_table(PAGE / f"{protocol}_accuracy.csv", accuracy)
        parts.append(summary.assign(protocol=protocol))
    both = pd.concat(parts, ignore_index=True)
    report.save_table(PAGE / "summary.csv", both)
    write_text(PAGE / "table.md", as_text(both))


if __name__ == "__main__":
    main()
