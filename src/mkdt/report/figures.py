"""The figures of the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from mkdt.artifacts import write_atomically

Style = tuple[str, str, str]  # colour, marker, kind of line

# Colours of Okabe and Ito and some of Tol, which colour-blind readers can tell apart; markers and lines for print without colour.
STYLES: dict[str, Style] = {
    "none": ("#000000", "x", "--"),
    "random": ("#0072B2", "o", "-"),
    "high_loss": ("#E69F00", "s", "-."),
    "mkdt": ("#D55E00", "D", "-"),
    "mkdt_random": ("#882255", "<", "-"),
    "mkdt_kmeans": ("#999933", "X", "-"),
    "kmeans": ("#CC79A7", "v", "--"),
    "krr_st": ("#332288", ">", "--"),
    "full": ("#009E73", "^", ":"),
    "teacher": ("#666666", "*", ":"),
}
SPARE_STYLES: list[Style] = [("#56B4E9", "P", "-."), ("#AA4499", "h", ":"), ("#999999", "p", "-.")]
UNTRAINED = {"none": "none (no pre-training)"}
LEGEND_COLUMNS = 3  # so many fit into the width of one panel
AGAINST = {
    "steps": "pre-training steps",
    "label_fraction": "share of the labels",
    "share": "budget, share of the images",
}
MATCHING = {
    "loss": "matching loss",
    "step_size": "learned step size",
    "image_gradient": "gradient norm of the images",
}


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return a colour, a marker and a kind of line for each method; names that are not known share ``SPARE_STYLES``."""
    others = [method for method in methods if method not in STYLES]
    spare = {method: SPARE_STYLES[k % len(SPARE_STYLES)] for k, method in enumerate(others)}
    return {method: STYLES.get(method) or spare[method] for method in methods}


def plot_curve(points: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Plot accuracy against pre-training steps with 95 % intervals.

    Args:
        points: as from ``tables.curve``; a row of panels for each budget, student and downstream set, a column for each label
            fraction.
        methods: which, in order.
    """
    settings = list(points.groupby(["budget", "student", "downstream"], sort=True))
    fractions = sorted(points["label_fraction"].unique())
    figure = Figure(figsize=(1 + 4.6 * len(fractions), 0.6 + 3.6 * len(settings)), layout="constrained")
    axes = figure.subplots(len(settings), len(fractions), squeeze=False)
    for i, ((budget, student, downstream), row) in enumerate(settings):
        for j, fraction in enumerate(fractions):
            axis = axes[i][j]
            draw_curve(axis, row[row["label_fraction"] == fraction], methods)
            axis.set_title(f"{downstream}, {100 * fraction:g} % of labels ({student}, {budget})", fontsize=10)
            if j == 0:
                axis.set_ylabel("test accuracy (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(len(labels), LEGEND_COLUMNS * len(fractions))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def draw_curve(axis: Axes, points: pd.DataFrame, methods: Sequence[str], against: str = "steps") -> None:
    """Draw accuracies with their intervals, one line a method.

    Args:
        axis: where to draw.
        points: of one setting, with ``method``, ``mean``, ``low``, ``high`` and ``against``.
        methods: which, in order.
        against: the column of the horizontal axis, one of ``AGAINST``, logarithmic. A method that has only zeros there (no
            steps) becomes a horizontal line, its interval a band.
    """
    look = styles(methods)
    # Each method moves a little sideways, so that intervals do not hide each other.
    sideways = 1.015 ** (np.arange(len(methods)) - (len(methods) - 1) / 2)
    for k, method in enumerate(methods):
        line = points[points["method"] == method].sort_values(against)
        if line.empty:
            continue
        colour, marker, dashes = look[method]
        label = UNTRAINED.get(method, method)
        if (line[against] == 0).all():
            axis.axhline(line["mean"].iloc[0], color=colour, linestyle=dashes, label=label)
            axis.axhspan(line["low"].iloc[0], line["high"].iloc[0], color=colour, alpha=0.08, linewidth=0)
            continue
        errors = [line["mean"] - line["low"], line["high"] - line["mean"]]
        axis.errorbar(
            line[against] * sideways[k], line["mean"], yerr=errors, color=colour, marker=marker, linestyle=dashes,
            markersize=5, linewidth=1.5, elinewidth=1, capsize=2, label=label,
        )  # fmt: skip
    axis.set_xscale("log")
    ticks = sorted(value for value in points[against].unique() if value)
    axis.set_xticks(ticks, [str(value) if against == "steps" else f"{100 * value:g} %" for value in ticks])
    axis.minorticks_off()
    axis.set_xlabel(AGAINST[against])
    axis.grid(alpha=0.25)


def draw_differences(
    axis: Axes, summary: pd.DataFrame, methods: Sequence[str], by: Sequence[str] = ("downstream", "label_fraction")
) -> None:
    """Draw differences to the random subset with their intervals, a band for each downstream set and label fraction.

    Args:
        axis: where to draw.
        summary: rows of ``tables.summarise`` that differ only in ``method`` and ``by``.
        methods: which, in order.
        by: the columns that identify a band.
    """
    by = list(by)
    bands = list(summary[by].drop_duplicates().itertuples(index=False, name=None))
    compared = summary[summary["difference"].notna()]
    shown = [method for method in methods if (compared["method"] == method).any()]
    look = styles(methods)
    for k, method in enumerate(shown):
        part = compared[compared["method"] == method]
        height = [bands.index(band) for band in part[by].itertuples(index=False, name=None)]
        colour, marker, _ = look[method]
        axis.errorbar(
            part["difference"], [h + 0.7 * ((k + 0.5) / len(shown) - 0.5) for h in height],
            xerr=[part["difference"] - part["low"], part["high"] - part["difference"]],
            color=colour, marker=marker, linestyle="", markersize=6, elinewidth=1.5, capsize=2.5, label=method,
        )  # fmt: skip
    axis.axvline(0, color="#000000", linewidth=0.8)
    names = [
        "\n".join(f"{100 * part:.4g} %" if isinstance(part, float) else str(part) for part in band) for band in bands
    ]
    axis.set_yticks(range(len(bands)), names)
    axis.set_ylim(len(bands) - 0.5, -0.5)
    for k in range(1, len(bands)):
        axis.axhline(k - 0.5, color="#999999", linewidth=0.5, linestyle=":")
    axis.set_xlabel("difference to the random subset (percentage points)")
    axis.grid(axis="x", alpha=0.25)


def plot_images(rows: Sequence[tuple[str, Tensor]], most: int = 14) -> Figure:
    """Plot labelled rows of images, uint8 [m,C,H,W] each, of which the first ``most`` are shown."""
    count = min(most, len(rows[0][1]))
    figure = Figure(figsize=(0.7 * count + 0.9, 0.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=False):
            picture = image.permute(1, 2, 0).numpy()
            axis.imshow(picture.squeeze(-1) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    return figure


def plot_matching(runs: Mapping[str, pd.DataFrame], window: int = 20) -> Figure:
    """Plot matching loss, step size and gradient norm over the iterations, one line a distillation run.

    Args:
        runs: metrics of each run by iteration, with the columns ``step`` and those of ``MATCHING``.
        window: iterations that loss and gradient are averaged over.
    """
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    for axis, column in zip(figure.subplots(1, 3), MATCHING, strict=True):
        draw_matching(axis, runs, column, window)
        axis.set_title(MATCHING[column], fontsize=10)
    if runs:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def draw_matching(axis: Axes, runs: Mapping[str, pd.DataFrame], column: str, window: int = 20) -> None:
    """Draw a column of ``MATCHING``, one line a run; loss and gradient as the mean of the last ``window`` iterations."""
    looks = [*STYLES.values(), *SPARE_STYLES]
    for k, (name, table) in enumerate(runs.items()):
        values = table[column] if column == "step_size" else table[column].rolling(window, min_periods=1).mean()
        colour, _, dashes = looks[k % len(looks)]
        axis.plot(table["step"], values, label=name, linewidth=1.3, color=colour, linestyle=dashes)
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.25)
    if column == "image_gradient":
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically; the file does not name the version of the plotting library."""
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    )
