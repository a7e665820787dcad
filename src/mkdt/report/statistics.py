"""Paired differences with confidence intervals and p-values."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

RUN = ["distill_seed", "seed", "label_draw"]  # the factors that vary between runs
COMPARISON = ["difference", "low", "high", "bootstrap_low", "bootstrap_high"]
LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 5  # levels that can be resampled; tests/unit/report/test_statistics.py measures the coverage


def interval(table: pd.DataFrame, value: str, factors: Sequence[str] = RUN) -> tuple[float, float, float]:
    """Average ``value``, with a 95 % interval that generalises to new levels of every factor.

    Runs that share a level of a factor are not independent, and there are few levels. So each factor contributes the
    variance of its level means, divided by their number, to the variance of the mean. The contributions are added, and
    Student's t has Satterthwaite's degrees of freedom. Noise within levels counts once for each factor, which makes the
    interval rather too wide (multiway clustering without the intersection term, Cameron, Gelbach and Miller, 2011).

    Args:
        table: one row a combination of ``factors``; rows that differ in other columns are averaged.
        value: column to average.
        factors: columns that vary between runs. A factor with a single level is left out: its variance is not known.

    Returns:
        mean, low, high; low and high are NaN where no factor has two levels.
    """
    mean = float(table[value].mean())
    variance, freedom = _variance_of_the_mean(table, value, factors)
    if variance == 0:
        return mean, mean, mean
    half = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * variance**0.5
    return mean, mean - half, mean + half


def _variance_of_the_mean(table: pd.DataFrame, value: str, factors: Sequence[str]) -> tuple[float, float]:
    """Return the variance of the mean and its degrees of freedom; NaN where no factor has two levels."""
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
    """Return a 95 % interval of the mean by resampling the levels of every factor with replacement.

    This is the pigeonhole bootstrap (Owen, 2007) of crossed factors. Plain percentiles of few levels are too narrow, so
    they are expanded as in Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, with the degrees of freedom
    of ``interval``. Fewer than five levels give too few different resamples to fill the tails.

    Args:
        table: one row a combination of all levels of ``RUN``; rows that differ in other columns are averaged.
        value: column to average.

    Returns:
        low, high; NaN where a factor that varies has fewer than five levels, or nothing varies. The same table gives the
        same interval.

    Raises:
        ValueError: a combination is missing.
    """
    shape = [table[factor].nunique() for factor in RUN]
    variance, freedom = _variance_of_the_mean(table, value, RUN)
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
    """Return the share that an expanded percentile interval leaves out on each side.

    It is Phi(-sqrt(n / (n - 1)) t) with n = ``freedom`` + 1 levels and Student's t.
    """
    return float(norm.cdf(-(((freedom + 1) / freedom) ** 0.5) * student_t.ppf((1 + LEVEL) / 2, freedom)))


def compare(method: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    """Return the mean paired difference of two methods in percentage points with both intervals, keyed by ``COMPARISON``."""
    differences = paired(method, baseline)
    values = *interval(differences, "difference"), *bootstrap(differences, "difference")
    return dict(zip(COMPARISON, values, strict=True))


def p_value(differences: pd.DataFrame) -> float:
    """Return the two-sided p of no difference, by the t of ``interval``: below 0.05 where that interval excludes zero.

    Args:
        differences: rows as from ``paired``.
    """
    variance, freedom = _variance_of_the_mean(differences, "difference", RUN)
    mean = abs(float(differences["difference"].mean()))
    if variance == 0:
        return float(mean == 0)
    return float(2 * student_t.sf(mean / variance**0.5, freedom))


def paired(method: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Subtract two methods' accuracies run by run: same distill seed, student seed and label draw.

    A method with one training set for all distill seeds, or one network for all student seeds (the teacher), is paired with
    all of the other's.

    Returns:
        a table with the columns ``RUN`` and ``difference``.

    Raises:
        ValueError: both methods have several seeds, and not the same.
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
