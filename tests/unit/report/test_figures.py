"""Figures: what is drawn stays within the figure."""

import pandas as pd
import pytest

from mkdt.config.methods import METHODS
from mkdt.report.figures import plot_curve


@pytest.mark.parametrize("fractions", [1, 2])
def test_the_legend_of_all_methods_stays_within_the_figure(fractions: int) -> None:
    """All methods of mkdt, the most that can be compared without sets from files."""
    rows = [
        {"budget": "1pct", "student": "convnet", "downstream": "d", "label_fraction": 0.01 * (k + 1), "method": method}
        | {"steps": 20, "mean": 50.0, "low": 49.0, "high": 51.0}
        for method in METHODS
        for k in range(fractions)
    ]
    figure = plot_curve(pd.DataFrame(rows), list(METHODS))
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1
