"""The report: tables with numbers and intervals, and the figures that go with them."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from mkdt.artifacts import by_rule, write_atomically, write_text
from mkdt.config.methods import METHODS
from mkdt.errors import UserError

KEYS = ["source", "budget", "method", "student", "downstream", "evaluation", "label_fraction"]
RUN = ["distill_seed", "seed", "label_draw"]
COMPARISON = ["difference", "low", "high", "bootstrap_low", "bootstrap_high"]
LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 5  # levels that can be resampled: tests/unit/report/test_tables.py has the coverage
EVALUATIONS = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuning"}

# The palette of Okabe and Ito, some of Tol's, told apart by colour-blind readers; a marker and a kind of line each for print without colour.
Style = tuple[str, str, str]
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
AGAINST = {
    "steps": "pre-training steps",
    "label_fraction": "share of the labels",
    "share": "budget, share of the images",
}
LEGEND_COLUMNS = 3  # what stays within the width of one panel
UNTRAINED = {"none": "none (no pre-training)"}
SPARE_STYLES: list[Style] = [
    ("#56B4E9", "P", "-."),
    ("#AA4499", "h", ":"),
    ("#999999", "p", "-."),
]


def read_table(path: str | Path, rule: str | None) -> pd.DataFrame:
    """A CSV or a file of JSON lines that a rule wrote.

    Raises:
        UserError: it is not there, cannot be read, or its last line is cut; a changed figure in it is not noticed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise ValueError("the last line is cut")
        buffer = StringIO(text)
        table = pd.read_json(buffer, lines=True) if Path(path).suffix == ".jsonl" else pd.read_csv(buffer)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: snakemake makes it{by_rule(rule)}.") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and snakemake makes it again{by_rule(rule)}."
        ) from error
    return table


def interval(table: pd.DataFrame, value: str, factors: Sequence[str] = RUN) -> tuple[float, float, float]:
    """Mean of ``value`` with a 95 % interval that holds for a new initial subset, student seed and label draw.

    Runs that share a level of a factor are not independent, and there are few levels. So each factor is taken as a
    sample of its levels: its contribution to the variance of the mean is the variance of its level means over their
    number; the contributions are added, and Student's t has Satterthwaite's degrees of freedom. Noise within levels
    is counted once for each factor, which errs to the wide side (multiway clustering without the intersection term,
    Cameron, Gelbach and Miller, 2011).

    Args:
        table: one row a combination of ``factors``; rows that differ in other columns are averaged.
        value: column to average.
        factors: what varies; a factor with a single level says nothing of its own variance and is left out.

    Returns:
        mean, low, high; low and high are NaN where no factor has two levels.
    """
    mean = float(table[value].mean())
    variance, freedom = _spread_of_the_mean(table, value, factors)
    if variance == 0:
        return mean, mean, mean
    half = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5
    return mean, mean - half, mean + half


def _spread_of_the_mean(table: pd.DataFrame, value: str, factors: Sequence[str]) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom; NaN where no factor has two levels."""
    parts = []
    for factor in factors:
        levels = table.groupby(factor)[value].mean()
        if len(levels) > 1:
            parts.append((float(levels.var(ddof=1)) / len(levels), len(levels) - 1))
    variance = sum(part for part, _ in parts)
    if not parts or variance == 0:
        return (0.0 if parts else float("nan")), float("nan")
    return variance, variance**2 / sum(part**2 / degrees for part, degrees in parts)


def bootstrap(table: pd.DataFrame, value: str) -> tuple[float, float]:
    """A 95 % interval beside ``interval``'s, by resampling: the levels of every factor are drawn anew with replacement.

    The pigeonhole bootstrap (Owen, 2007) of crossed factors. Plain percentiles of few levels are too narrow, so these
    are expanded as Hesterberg has it ("What Teachers Should Know About the Bootstrap", 2015), for the degrees of
    freedom of ``interval``. Below five levels it is no help: the few draws that there can be do not fill the tails.

    Args:
        table: one row a combination of all levels of ``RUN``; rows that differ in other columns are averaged.
        value: column to average.

    Returns:
        low, high; NaN where a factor that varies has fewer than five levels, or nothing varies. The draws are the same
        for the same table.

    Raises:
        ValueError: a combination is missing.
    """
    shape = [table[factor].nunique() for factor in RUN]
    variance, freedom = _spread_of_the_mean(table, value, RUN)
    if min(levels if levels > 1 else FEWEST for levels in shape) < FEWEST or np.isnan(variance):
        return float("nan"), float("nan")
    cells = table.groupby(RUN)[value].mean()
    if len(cells) < np.prod(shape):
        raise ValueError(f"{np.prod(shape) - len(cells)} combinations of {', '.join(RUN)} are missing")
    rng = np.random.default_rng(0)
    drawn = (rng.multinomial(levels, np.full(levels, 1 / levels), RESAMPLES) / levels for levels in shape)
    means = np.einsum("bi,bj,bk,ijk->b", *drawn, cells.to_numpy().reshape(shape), optimize=True)
    tail = expanded_tail(freedom) if variance else 0.5
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(freedom: float) -> float:
    """What a percentile interval leaves out on each side: Phi(-sqrt(n / (n - 1)) t), n levels being ``freedom`` + 1."""
    return float(norm.cdf(-(((freedom + 1) / freedom) ** 0.5) * student_t.ppf((1 + LEVEL) / 2, freedom)))


def compare(method: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    """Paired difference of two methods in points: ``COMPARISON``, the mean with both intervals."""
    differences = paired(method, baseline)
    found = *interval(differences, "difference"), *bootstrap(differences, "difference")
    return dict(zip(COMPARISON, found, strict=True))


def p_value(differences: pd.DataFrame) -> float:
    """Two-sided p of no difference (rows as from ``paired``), from the same t as ``interval``: below 0.05 where that excludes zero."""
    variance, freedom = _spread_of_the_mean(differences, "difference", RUN)
    mean = abs(float(differences["difference"].mean()))
    if variance == 0:
        return float(mean == 0)
    return float(2 * student_t.sf(mean / variance**0.5, freedom))


def read_scores(files: Iterable[str | Path], source: str, students: Sequence[str]) -> pd.DataFrame:
    """The rows of all files of rule probe, with the column ``source`` before them.

    The teacher is scored once, under the name of the first of the ``students``; its rows stand beside each of them.
    """
    scores = pd.concat([read_table(file, "probe") for file in files], ignore_index=True)
    teacher = scores["method"] == "teacher"
    once = scores[teacher & (scores["student"] == students[0])]
    parts = [once.assign(student=student) for student in students]
    scores = pd.concat([scores[~teacher], *parts], ignore_index=True)
    scores.insert(0, "source", source)
    return scores


def accuracies(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """The test accuracies of the chosen points; a method without a budget stands beside every budget."""
    chosen = scores[(scores["split"] == "test") & scores["chosen"]]
    columns = [*KEYS, *RUN, "rate", "steps", "finetune_rate", "at_edge", "accuracy", "gradient"]
    return _beside_every_budget(chosen, budgets)[columns]


def _beside_every_budget(table: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    without = table[table["budget"] == "all"]
    parts = [table[table["budget"] != "all"], *(without.assign(budget=budget) for budget in budgets)]
    return pd.concat(parts, ignore_index=True).sort_values([*KEYS, *RUN], kind="stable").reset_index(drop=True)


def paired(method: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Differences of two methods' accuracies run by run: same subset seed, student seed and label draw.

    A method that has one training set for all distill seeds, or one network for all student seeds (the teacher), is paired
    with every one of the other's.
    """
    on = list(RUN)
    for factor in ("distill_seed", "seed"):
        mine, others = set(method[factor]), set(baseline[factor])
        if mine == others:
            continue
        if min(len(mine), len(others)) > 1:
            raise ValueError(f"cannot pair {factor.replace('_', ' ')}s {sorted(mine)} with {sorted(others)}")
        on.remove(factor)
    both = method.merge(baseline, on=on, suffixes=("", "_other"))
    for factor in set(RUN) - set(on):
        if baseline[factor].nunique() > 1:
            both[factor] = both[f"{factor}_other"]
    return both[RUN].assign(difference=both["accuracy"] - both["accuracy_other"])


def summarise(accuracy: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """One row a source, budget, method, student, downstream set, evaluation and label fraction.

    Columns: ``mean`` and ``std`` (over all runs and label draws) and ``n``, ``rate`` and ``steps`` of the chosen
    point (under the protocol ``paper``, where each set has its own rate, their mean), ``at_edge`` where a larger grid
    might have served the method better; the difference to ``random`` as ``compare`` has it; ``recovered``, the share
    (method - none) / (full - none) of what pre-training on all images gains, where it gains. Per cent, but the last.
    """
    setting = [key for key in KEYS if key != "method"]
    rows = []
    for values, group in accuracy.groupby(setting, sort=True):
        parts = dict(iter(group.groupby("method")))
        means = {method: part["accuracy"].mean() for method, part in parts.items()}
        for method in [method for method in methods if method in parts]:
            part = parts[method]
            row: dict[str, Any] = dict(zip(setting, values, strict=True)) | {
                "method": method,
                "mean": means[method],
                "std": part["accuracy"].std(),
                "n": len(part),
                "rate": _rate(part),
                "steps": part["steps"].iloc[0],
                "at_edge": part["at_edge"].iloc[0],
            }
            if "random" in parts and method != "random":
                row |= compare(part, parts["random"])
            if "none" in means and "full" in means and means["full"] > means["none"]:  # else there is no gain to share
                row["recovered"] = (means[method] - means["none"]) / (means["full"] - means["none"])
            rows.append(row)
    columns = [*KEYS, "mean", "std", "n", "rate", "steps", "at_edge", *COMPARISON, "recovered"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _rate(rows: pd.DataFrame) -> float:
    """Of rows at one point of the grid."""
    first = float(rows["rate"].iloc[0])
    return first if (rows["rate"] == first).all() else float(rows["rate"].mean())


def against_best_subset(scores: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Distilled sets against the real subset of their budget that the validation split prefers, by the linear probe.

    Args:
        scores: as from ``read_scores``.
        accuracy: what ``accuracies`` made of them.

    Returns:
        one row a setting and distilled method: ``KEYS`` but the evaluation, ``subset`` (the one preferred), and the paired
        difference to it, as ``compare`` has it.
    """
    setting = [key for key in KEYS if key not in {"method", "evaluation"}]
    subsets = [name for name, method in METHODS.items() if method.rule == "subset"]
    validation = scores[(scores["split"] == "validation") & (scores["evaluation"] == "linear") & scores["chosen"]]
    validation = validation[validation["method"].isin(subsets)]
    places = dict(iter(validation.groupby(["student", "budget"])))
    rows = []
    for values, group in accuracy[accuracy["evaluation"] == "linear"].groupby(setting, sort=True):
        where = dict(zip(setting, values, strict=True))
        parts = {str(method): part for method, part in group.groupby("method")}
        distilled = [method for method in parts if method in METHODS and METHODS[method].distilled]
        place = where["student"], where["budget"]
        if not distilled or place not in places:
            continue
        subset = str(places[place].groupby("method")["accuracy"].mean().idxmax())
        for method in distilled:
            rows.append(where | {"method": method, "subset": subset} | compare(parts[method], parts[subset]))
    return pd.DataFrame(rows, columns=[*setting, "method", "subset", *COMPARISON])


def curve(scores: pd.DataFrame, budgets: Sequence[str]) -> pd.DataFrame:
    """Test accuracy of the linear probe against the number of pre-training steps, each at the rate that validation preferred there.

    The intervals are over initial subsets and student seeds, for the label draws that all methods share: a draw moves
    all curves together, and its spread would hide what tells them apart.
    """
    points = scores[(scores["split"] == "test") & (scores["evaluation"] == "linear") & scores["chosen_at_steps"]]
    points = _beside_every_budget(points, budgets)
    rows = []
    for values, group in points.groupby([*KEYS, "steps"], sort=True):
        mean, low, high = interval(group, "accuracy", ["distill_seed", "seed"])
        rows.append(
            dict(zip([*KEYS, "steps"], values, strict=True))
            | {"rate": _rate(group), "mean": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def by_fraction(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy against the share of the labels, at the chosen points, with the intervals of ``curve``."""
    rows = []
    for values, group in accuracy.groupby(KEYS, sort=True):
        mean, low, high = interval(group, "accuracy", ["distill_seed", "seed"])
        rows.append(dict(zip(KEYS, values, strict=True)) | {"mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in [header, *rows])
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def spread(row: Mapping[Any, Any], names: Sequence[str] = ("difference", "low", "high")) -> str:
    """A difference with its interval: ``+1.5 [+0.2, +2.8]``; ``-`` where there is none."""
    difference, low, high = (row[name] for name in names)
    if pd.isna(difference):
        return "-"
    return f"{difference:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if pd.notna(low) else "")


def share(recovered: float) -> str:
    """A recovered share in whole per cent; ``-`` where there is no gain to share."""
    return f"{100 * recovered:.0f} %" if pd.notna(recovered) else "-"


def as_text(summary: pd.DataFrame, protocol: str) -> str:
    """The summary as a Markdown table for a terminal: one row a method, one pair of columns a label fraction."""
    lines = []
    order = summary["evaluation"].map(list(EVALUATIONS).index)
    setting = [order, "evaluation", "source", "budget", "student", "downstream"]
    for (_, evaluation, source, budget, student, downstream), group in summary.groupby(setting):
        fractions = sorted(group["label_fraction"].unique())
        lines += [
            f"{source} at {budget}, {student}, {EVALUATIONS[str(evaluation)]} on {downstream}, protocol {protocol}; "
            "accuracy in per cent: mean ± deviation, difference to random [95 % interval], recovered",
            "",
        ]
        header = ["method", "lr, steps"]
        for fraction in fractions:
            header += [f"{fraction:.4g} of labels", "vs random", "recovered"]
        rows = []
        for method in group["method"].unique():
            part = group[group["method"] == method].set_index("label_fraction")
            first = part.iloc[0]
            edge = "*" if first["at_edge"] else ""
            cells = [method, f"{first['rate']:.3g}, {first['steps']}{edge}" if first["steps"] else "-"]
            for fraction in fractions:
                row = part.loc[fraction]
                cells += [f"{row['mean']:.1f} ± {row['std']:.1f}", spread(row), share(row["recovered"])]
            rows.append(cells)
        lines += [
            markdown(header, rows),
            "",
            *(
                ["\\* chosen at the edge of the grid (its rates, or the most steps): a wider one might give more."]
                * bool(group["at_edge"].any())
            ),
            "",
        ]
    return "\n".join(lines)


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A colour, a marker and a kind of line for each method."""
    others = [method for method in methods if method not in STYLES]
    spare = {method: SPARE_STYLES[k % len(SPARE_STYLES)] for k, method in enumerate(others)}
    return {method: STYLES.get(method) or spare[method] for method in methods}


def plot_curve(points: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Accuracy against pre-training steps with 95 % intervals: faster and better are different claims."""
    settings = (
        points[["budget", "student", "downstream"]].drop_duplicates().sort_values(["budget", "student", "downstream"])
    )
    fractions = sorted(points["label_fraction"].unique())
    figure = Figure(figsize=(1 + 4.6 * len(fractions), 0.6 + 3.6 * len(settings)), layout="constrained")
    axes = figure.subplots(len(settings), len(fractions), squeeze=False)
    for i, (budget, student, downstream) in enumerate(settings.itertuples(index=False, name=None)):
        for j, fraction in enumerate(fractions):
            axis = axes[i][j]
            here = points[
                (points["budget"] == budget)
                & (points["student"] == student)
                & (points["downstream"] == downstream)
                & (points["label_fraction"] == fraction)
            ]
            draw_curve(axis, here, methods)
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
        against: the column of the horizontal axis, one of ``AGAINST``, logarithmic. What has it 0 everywhere (no steps) is a level line.
    """
    look = styles(methods)
    # A little sideways for each method, so that intervals do not hide each other.
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
    """Draw differences to the random subset with their intervals: a band a downstream set and label fraction.

    Args:
        axis: where to draw.
        summary: rows of ``summarise`` that differ in ``method`` and ``by`` alone.
        methods: which, in order.
        by: the columns that name a band.
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
    """Labelled rows of images, uint8 [m,C,H,W] each: a set as it forms, or real above distilled."""
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


MATCHING = {
    "loss": "matching loss",
    "step_size": "learned step size",
    "image_gradient": "gradient norm of the images",
}


def plot_matching(runs: Mapping[str, pd.DataFrame], window: int = 20) -> Figure:
    """Matching loss, step size and gradient norm over the iterations, one line a distillation run."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    for axis, column in zip(figure.subplots(1, 3), MATCHING, strict=True):
        draw_matching(axis, runs, column, window)
        axis.set_title(MATCHING[column], fontsize=10)
    if runs:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def draw_matching(axis: Axes, runs: Mapping[str, pd.DataFrame], column: str, window: int = 20) -> None:
    """Draw a column of ``MATCHING``, one line a run, as the mean of the last ``window`` iterations."""
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
    """Write a figure as PNG, atomically, without the version of the plotting library in it."""
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    )


def save_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as CSV with plain numbers, atomically; floats round-trip."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
