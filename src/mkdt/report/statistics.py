"""Paired differences with confidence intervals and p-values."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

RUN = ["distill_seed", "seed", "label_draw"]  # the factors that vary between runs
COMPARISON = ["difference", "low", "high", "bootstrap_low", "bootstrap_high"]
LEVEL = 0.95
ROUNDING = 1e-9  # percentage points; values that differ by less are equal
RESAMPLES = 10_000
FEWEST = 5  # levels that can be resampled; tests/unit/report/test_statistics.py measures the coverage

FloatArray = npt.NDArray[np.float64]


def interval(table: pd.DataFrame, value: str, factors: Sequence[str] = RUN) -> tuple[float, float, float]:
    """Average ``value``, with a 95 % interval that generalises to new levels of every factor.

    Runs that share a level of a factor are not independent, and there are few levels. The interval is the widest of
    several t intervals, one for each estimate of ``_variances``: no effect of a factor and no interaction alone would give
    a wider one. docs/method.md explains why, and has its coverage in simulated experiments.

    Args:
        table: one row a combination of ``factors``; rows that differ in other columns are averaged.
        value: column to average.
        factors: columns that vary between runs. A factor with a single level is left out: its variance is not known.

    Returns:
        mean, low, high; low and high are NaN where no factor has two levels, or all values are equal: nothing then says how
        much another run would differ.

    Raises:
        ValueError: a combination of the factors' levels is missing.
    """
    mean = float(table[value].mean())
    half = half_width(_cells(table, value, factors))
    return mean, mean - half, mean + half


def half_width(cells: FloatArray) -> float:
    """Return half the width of ``interval``, NaN where it has none.

    Args:
        cells: float64, an axis a factor, each with at least two levels.
    """
    variances, freedoms = _variances(cells)
    widths = student_t.ppf((1 + LEVEL) / 2, freedoms) * np.sqrt(variances)
    return float(widths.max()) if len(widths) else float("nan")


def _cells(table: pd.DataFrame, value: str, factors: Sequence[str]) -> FloatArray:
    """Average ``value`` in each combination of the levels of those ``factors`` that have several: an axis a factor."""
    varying = [factor for factor in factors if table[factor].nunique() > 1]
    if not varying:
        return np.array(table[value].mean())
    cells = table.groupby(varying)[value].mean()
    shape = [table[factor].nunique() for factor in varying]
    if len(cells) < np.prod(shape):
        raise ValueError(f"{np.prod(shape) - len(cells)} combinations of {', '.join(varying)} are missing")
    return cells.to_numpy().reshape(shape)


def _variances(cells: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Estimate the variance of the mean of crossed random factors in several ways, with the degrees of freedom of each.

    Each set of factors has a mean square: the scatter of its level means (one factor), or of what remains in a table of
    means without the effects of fewer factors (an interaction). Divided by the number of values, its expectation is the sum
    of all contributions to the variance of the mean in which these factors take part.

    Args:
        cells: as from ``_cells``.

    Returns:
        first the sum over the single factors, with Satterthwaite's degrees of freedom: its expectation is at least the
        variance of the mean, because an interaction counts once for each of its factors. Then the estimate of each set of
        factors, which is too small on average where others matter too. Both are empty where all values are equal.
    """
    if np.ptp(cells) < ROUNDING:
        return np.empty(0), np.empty(0)
    variances, freedoms = [], []
    for count in range(1, cells.ndim + 1):
        for kept in combinations(range(cells.ndim), count):
            effect = cells.mean(axis=tuple(set(range(cells.ndim)) - set(kept)))
            for axis in range(count):
                effect = effect - effect.mean(axis=axis, keepdims=True)
            freedom = np.prod(np.array(effect.shape) - 1)
            variances.append((effect**2).sum() / freedom / effect.size)
            freedoms.append(freedom)
    alone, degrees = np.array(variances[: cells.ndim]), np.array(freedoms[: cells.ndim])
    total = alone.sum()
    freedom = total**2 / (alone**2 / degrees).sum() if total > 0 else degrees.min()
    return np.array([total, *variances]), np.array([freedom, *freedoms], dtype=float)


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
    cells = _cells(table, value, RUN)
    _, freedoms = _variances(cells)
    if min(cells.shape, default=0) < FEWEST or not len(freedoms):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    shape = [table[factor].nunique() for factor in RUN]
    drawn = (rng.multinomial(levels, np.full(levels, 1 / levels), RESAMPLES) / levels for levels in shape)
    means = np.einsum("bi,bj,bk,ijk->b", *drawn, cells.reshape(shape), optimize=True)
    tail = expanded_tail(freedoms[0])
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
    """Return the two-sided p of no difference: below 0.05 where ``interval`` excludes zero, NaN where there is none.

    Args:
        differences: rows as from ``paired``.
    """
    mean = abs(float(differences["difference"].mean()))
    variances, freedoms = _variances(_cells(differences, "difference", RUN))
    some = variances > 0
    values = 2 * student_t.sf(mean / np.sqrt(variances[some]), freedoms[some])
    return float(values.max()) if len(values) else float("nan")


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
