"""Statistics: pairing, and intervals that cover with few levels."""

import re
from math import erfc
from pathlib import Path

import coverages
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_tables import runs

from mkdt.report.statistics import RUN, bootstrap, expanded_tail, interval, p_value, paired

SHAPES = [(5, 1, 1), (1, 5, 1), (1, 1, 5)]  # effects of subset, student seed and label draw


def test_differences_are_paired_run_by_run() -> None:
    """What all methods share, such as a hard label draw, cancels: a constant gain has no variance."""
    base = np.random.default_rng(0).normal(70, 5, (3, 4, 2))
    table = paired(runs("mkdt", [0, 1, 2], base + 2), runs("random", [0, 1, 2], base))
    assert len(table) == 24
    assert np.allclose(table["difference"], 2)


@pytest.mark.parametrize("seeds", [[0, 1, 2], [5], [1]])
def test_a_method_with_one_set_is_paired_with_all_subsets(seeds: list[int]) -> None:
    """`full` and `high_loss` have one training set, of seed 0, for any distill seeds."""
    base = np.random.default_rng(1).normal(70, 5, (len(seeds), 4, 2))
    single = np.full((1, 4, 2), 80.0)
    table = paired(runs("full", [0], single), runs("random", seeds, base))
    assert len(table) == len(seeds) * 8
    assert table["difference"].mean() == pytest.approx(80 - base.mean())
    assert sorted(table["distill_seed"].unique()) == sorted(seeds if len(seeds) > 1 else [0])
    back = paired(runs("random", seeds, base), runs("full", [0], single))
    assert back["difference"].mean() == pytest.approx(base.mean() - 80)


def test_the_teacher_is_paired_with_all_students() -> None:
    """The teacher has no distill and no student seeds; equal label draws are paired."""
    base = np.random.default_rng(1).normal(70, 5, (3, 4, 2))
    teacher = np.array([90.0, 80.0]).reshape(1, 1, 2)
    table = paired(runs("teacher", [0], teacher), runs("random", [0, 1, 2], base))
    assert len(table) == 24
    assert not table.duplicated(RUN).any()
    by_draw = table.groupby("label_draw")["difference"].mean()
    np.testing.assert_allclose(by_draw, [90 - base[..., 0].mean(), 80 - base[..., 1].mean()])


def test_different_seeds_cannot_be_paired() -> None:
    """Runs without a partner are not dropped silently."""
    base = np.zeros((2, 1, 1))
    with pytest.raises(ValueError, match="cannot pair distill seeds"):
        paired(runs("a", [0, 1], base), runs("b", [1, 2], base))
    with pytest.raises(ValueError, match="cannot pair seeds"):
        paired(runs("a", [0], np.zeros((1, 2, 1))), runs("b", [0], np.zeros((1, 3, 1))))


def differences(values: list[list[float]]) -> pd.DataFrame:
    """Paired differences [student seed, label draw]."""
    return runs("m", [0], np.array(values)[None]).rename(columns={"accuracy": "difference"})


@pytest.mark.parametrize("values", [[[-9.0, 11], [11, -9]], [[1.67, 5], [5, 1.67]]])
def test_scatter_within_the_levels_counts_where_the_level_means_are_equal(values: list[list[float]]) -> None:
    """Of two by two runs only the interaction is left, with one degree of freedom; p agrees with the interval."""
    table = differences(values)
    mean, low, high = interval(table, "difference")
    half = 12.706205 * np.std(values)  # Student's t times the standard error: the sum of squares is on one degree
    assert (low, high) == pytest.approx((mean - half, mean + half))
    assert p_value(table) > 0.05


def test_level_means_that_cancel_in_three_factors_have_an_interval() -> None:
    """The sign of the product of all factors is an interaction of three: every mean of two factors is 0."""
    signs = np.array([1.0, -1])
    table = runs("m", [0, 1], 3 * signs[:, None, None] * signs[:, None] * signs)
    mean, low, high = interval(table, "accuracy")
    assert mean == 0
    assert high - low > 70


@pytest.mark.parametrize("equal", [0.0, 5.0, 100 / 3])
def test_runs_that_are_all_equal_have_no_interval(equal: float) -> None:
    """Nothing says how much another run would differ. Differences of accuracies are equal up to rounding."""
    table = differences([[equal, equal + 1e-13], [equal - 1e-13, equal]])
    mean, *ends = interval(table, "difference")
    assert mean == pytest.approx(equal)
    assert np.isnan([*ends, p_value(table)]).all()


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_p_is_below_five_per_cent_where_the_interval_excludes_zero(values: list[int]) -> None:
    """So do the two readings of one table never contradict each other; unequal values always have a width."""
    table = differences([[float(value) for value in values[:3]], [float(value) for value in values[3:]]])
    _, low, high = interval(table, "difference")
    assert np.isnan(low) == (len(set(values)) == 1)
    if not np.isnan(low):
        assert high > low
        assert (p_value(table) < 0.05) == (low > 0 or high < 0)


def test_no_factor_alone_gives_a_wider_interval() -> None:
    """A factor of two levels that varies most decides the width, however many levels others have."""
    values = np.array([[0.0], [4.0]]) + np.random.default_rng(4).normal(0, 0.5, (2, 5))
    _, low, high = interval(runs("m", [0], values[None]), "accuracy")
    ends = values.mean(axis=1)
    assert high - low >= 12.706205 * abs(ends[1] - ends[0]) * (1 - 1e-6)


def test_an_interval_needs_all_combinations() -> None:
    """A missing run would shift the level means."""
    with pytest.raises(ValueError, match="1 combinations of seed, label_draw are missing"):
        interval(differences([[1.0, 2], [3, 5]]).iloc[1:], "difference")


def test_the_coverage_is_that_of_the_page() -> None:
    """docs/method.md has the coverage of ten thousand experiments each; nowhere is it below 93 %."""
    text = (Path(__file__).parents[3] / "docs/method.md").read_text()
    names = list(coverages.WORLDS)
    for levels in coverages.LEVELS:
        (row,) = re.findall(rf"^\| {'x'.join(map(str, levels))} \| (.*) \| [^|]* \|$", text, re.MULTILINE)
        for name, written in zip(names, row.split(" | "), strict=True):
            measured, _ = coverages.coverage(coverages.WORLDS[name], levels, 200)
            assert float(written) >= 93
            assert measured == pytest.approx(float(written), abs=5), (levels, name)


@pytest.mark.parametrize("deviations", [(1, 0.5, 0), (1, 0.5, 0.5), (1, 1, 1), (1, 0, 0)], ids=str)
def test_the_bootstrap_covers(deviations: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """With five levels of each factor, plain percentiles cover 84 to 90 %, the expanded ones 93 to 95 %."""
    monkeypatch.setattr("mkdt.report.statistics.RESAMPLES", 4000)
    rng = np.random.default_rng(1)
    hits, plain = 0, 0
    for _ in range(200):
        parts = [rng.normal(0, deviation, shape) for deviation, shape in zip(deviations, SHAPES, strict=True)]
        effect = sum(parts) + rng.normal(0, 0.3, (5, 5, 5))
        table = runs("m", list(range(5)), effect)
        low, high = bootstrap(table, "accuracy")
        hits += low <= 0 <= high
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mkdt.report.statistics.expanded_tail", lambda freedom: 0.025)
            low, high = bootstrap(table, "accuracy")
        plain += low <= 0 <= high
    assert hits >= 0.91 * 200
    assert plain < hits


def test_the_bootstrap_resamples_levels() -> None:
    """Compare with a loop. A factor of one level is not resampled; the same table gives the same interval."""
    rng = np.random.default_rng(2)
    effect = rng.normal(0, 1, (5, 1, 1)) + rng.normal(0, 1, (1, 1, 6)) + rng.normal(0, 0.3, (5, 1, 6))
    table = runs("m", list(range(5)), effect)
    resampled = bootstrap(table, "accuracy")
    assert bootstrap(table.sample(frac=1, random_state=0), "accuracy") == pytest.approx(resampled)
    means = []
    for _ in range(20000):
        first, last = (rng.integers(0, count, count) for count in (5, 6))
        means.append(effect[first][:, :, last].mean())
    variances = [effect.mean(axis).var(ddof=1) / count for axis, count in (((1, 2), 5), ((0, 1), 6))]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 5)
    tail = expanded_tail(freedom)
    width = resampled[1] - resampled[0]
    assert resampled == pytest.approx(np.quantile(means, [tail, 1 - tail]), abs=0.03 * width)
    with pytest.raises(ValueError, match="1 combinations of distill_seed, label_draw are missing"):
        bootstrap(table.iloc[1:], "accuracy")


def test_the_tails_are_hesterbergs() -> None:
    """For ten and five levels: the normal tail beyond sqrt(n / (n - 1)) times the quantile of Student's t."""
    for levels, quantile in ((10, 2.262157), (5, 2.776445)):
        expected = 0.5 * erfc(quantile * (levels / (levels - 1)) ** 0.5 / 2**0.5)
        assert expanded_tail(levels - 1) == pytest.approx(expected, rel=1e-4)


def test_fewer_than_five_levels_are_not_resampled() -> None:
    """Three subsets give 27 resamples, too few for an interval."""
    effect = np.random.default_rng(3).normal(0, 1, (3, 5, 5))
    assert np.isnan(bootstrap(runs("m", [0, 1, 2], effect), "accuracy")).all()


def test_the_interval_of_one_factor_is_that_of_students_t() -> None:
    """With one factor it is the textbook t interval of the level means."""
    values = np.array([1.0, 2.0, 4.0, 7.0]).reshape(1, 4, 1)
    mean, low, high = interval(runs("m", [0], values), "accuracy")
    half = 3.182446 * values.std(ddof=1) / 2
    assert (mean, low, high) == pytest.approx((3.5, 3.5 - half, 3.5 + half))


def test_a_single_run_has_no_interval() -> None:
    """The variance of one run is not known, so the interval is NaN."""
    mean, low, high = interval(runs("m", [0], np.ones((1, 1, 1))), "accuracy")
    assert mean == 1
    assert np.isnan([low, high, *bootstrap(runs("m", [0], np.ones((1, 1, 1))), "accuracy")]).all()
