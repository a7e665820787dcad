"""Statistics: pairing, and intervals that cover with few levels."""

from math import erfc

import numpy as np
import pytest
from score_tables import runs

from mkdt.report.statistics import RUN, bootstrap, expanded_tail, interval, paired

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


def test_the_interval_covers_with_three_subsets() -> None:
    """With three subsets a percentile bootstrap covers 75 %; this interval covers 95 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        effect = rng.normal(0, 1, (3, 1, 1)) + rng.normal(0, 0.5, (1, 5, 1)) + rng.normal(0, 0.3, (3, 5, 3))
        _, low, high = interval(runs("m", [0, 1, 2], effect), "accuracy")
        hits += low <= 0 <= high
    assert hits >= 0.93 * 300


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
    with pytest.raises(ValueError, match="1 combinations of distill_seed, seed, label_draw are missing"):
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
