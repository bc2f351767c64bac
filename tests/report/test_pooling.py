import math

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from ofq.report.pooling import PRIOR_DF, Pool, Variance, pooled, prior_of
from ofq.report.statistics import holm, summarize
from ofq.report.verdicts import Reported, Spread, distance, judge

KIND = ("micro", "W2A2")


def table(*columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({f"m{i}": column for i, column in enumerate(columns)})


def test_blocks_of_two_methods_are_the_paired_t_test() -> None:
    one, other = [70.0, 72.0, 75.0], [71.0, 72.5, 77.0]
    pool = Pool.of_blocks({KIND: table(one, other)})
    own = Variance.of(np.subtract(one, other), 2)
    found = pool.variance(KIND, own)
    assert (found.value, found.df) == (pytest.approx(own.value), 2)
    t = np.mean(np.subtract(one, other)) / math.sqrt(2 * found.value / 3)
    assert 2 * stats.t.sf(abs(t), found.df) == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_block_residuals_agree_with_the_two_way_analysis_of_variance() -> None:
    y = np.random.default_rng(0).normal(size=(4, 5)) + np.arange(4)[:, None] + 10 * np.arange(5)
    left = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
    found = Pool.of_blocks({KIND: table(*y.T.tolist())}).kinds[KIND]
    assert (found.value, found.df) == (pytest.approx((left**2).sum() / 12), 12)


def test_seeds_that_one_method_lacks_still_count_for_others() -> None:
    y = np.random.default_rng(1).normal(size=(4, 3))
    y[3, 0] = np.nan
    found = Pool.of_blocks({KIND: table(*y.T.tolist())}).kinds[KIND]
    assert found.df == 11 - (4 + 3 - 1)
    alone = y.copy()
    alone[2:, :2] = np.nan  # seeds of one method alone say nothing about residuals
    assert Pool.of_blocks({KIND: table(*alone.T.tolist())}).kinds[KIND].df == 2


def test_cells_of_a_kind_pool_their_variances_about_their_own_means() -> None:
    found = Pool.of_cells({KIND: table([1.0, 2.0, 6.0], [4.0, 4.0, 5.5])}).kinds[KIND]
    assert (found.value, found.df) == (pytest.approx((7 + 0.75) / 2), 4)
    assert pooled([Variance(7.0, 2), Variance(), Variance(1.0, 1)]).value == 5.0


def test_prior_degrees_of_freedom_are_limmas_within_their_bounds() -> None:
    """With variances of a known scatter: d0 solves ψ'(d0/2) = scatter − ψ'(d/2)."""
    scatter = special.polygamma(1, 2.25) + special.polygamma(1, 4.0)  # d0 = 4.5, d = 8
    step = math.sqrt(scatter / 2)  # of two values, ± step has the variance 2·step²
    assert prior_of([[Variance(math.exp(s * step), 8) for s in (-1, 1)]]) == pytest.approx(4.5)
    assert prior_of([[Variance(1.0, 8)] * 5]) == PRIOR_DF[1]
    assert prior_of([[Variance(10.0**i, 8) for i in range(5)]]) == PRIOR_DF[0]
    assert prior_of([[Variance(), Variance(1.0, 3)], []]) == PRIOR_DF[1]


def test_moderated_variance_lies_between_its_own_and_its_kinds() -> None:
    y = np.random.default_rng(2).normal(0, [[0.1, 1, 1, 1]], (5, 4))
    pool = Pool.of_cells({KIND: table(*y.T.tolist())})
    own, kind = Variance.of(y[:, 0]), pool.kinds[KIND]
    found = pool.variance(KIND, own)
    assert own.value < found.value < kind.value
    weights = (pool.within * kind.value + 4 * own.value) / (pool.within + 4)
    assert (found.value, found.df) == (pytest.approx(weights), pool.within + 4)


def test_one_seed_takes_the_variance_of_other_cells() -> None:
    y = [[70.0, 70.4, 70.1], [math.nan, 80.0, math.nan]]
    pool = Pool.of_cells({KIND: table(*y)})
    found = pool.variance(KIND, Variance.of([80.0]))
    assert (found.value, found.df) == (pool.kinds[KIND].value, 2)
    elsewhere = {("micro", f"W{bits}A{bits}"): table([1.0, 1.5, 0.8 * bits]) for bits in (3, 4)}
    pool = Pool.of_cells({KIND: table([70.0]), **elsewhere})
    assert pool.variance(KIND, Variance()).df == 4


def test_without_any_spread_nothing_is_known() -> None:
    pool = Pool.of_cells({KIND: table([0.0, 0.0], [1.0, 1.0])})
    assert not pool.variance(KIND, Variance.of([0.0, 0.0])).known
    assert not Pool.of_blocks({KIND: table([1.0])}).variance(KIND, Variance()).known
    assert not Pool.of_blocks({KIND: pd.DataFrame()}).variance(KIND, Variance()).known


EQUAL, UNEQUAL = [0.2] * 10, [0.2] + [0.1, 0.2, 0.3] * 3
SEEDS = [1, 2, 3, 5, 10]


def studies(seeds: int, deviations: list[float], of_one_kind: bool) -> tuple[float, float]:
    """The power to call the first of ten numbers off by 3 points, and how often others are."""
    rng, count, shown, false = np.random.default_rng(100 + seeds), 200, 0, 0
    for _ in range(count):
        truth = rng.uniform(60, 80, 10)
        reported = rng.normal(truth, deviations)
        ours = rng.normal(truth + 3 * np.eye(1, 10)[0], deviations, (seeds, 10))
        kinds = [("micro", str(0 if of_one_kind else i)) for i in range(10)]
        tables = {kind: pd.DataFrame(ours[:, [i]]) for i, kind in enumerate(kinds)}
        pool = Pool.of_cells({kinds[0]: pd.DataFrame(ours)} if of_one_kind else tables)
        found = [
            distance(
                own,
                Reported(theirs),
                Spread(pool.variance(kind, Variance.of(own)), images=50_000),
                family=10,
            )
            for kind, own, theirs in zip(kinds, ours.T, reported, strict=True)
        ]
        adjusted = holm([d.p for d in found])
        verdicts = [judge(d, p) for d, p in zip(found, adjusted, strict=True)]
        shown += verdicts[0] == "off"
        false += "off" in verdicts[1:]
    return shown / count, false / count


@pytest.mark.parametrize("of_one_kind", [False, True])
@pytest.mark.parametrize(("deviations", "most"), [(EQUAL, 0.05), (UNEQUAL, 0.08)])
def test_more_seeds_never_weaken_a_verdict(
    deviations: list[float], most: float, of_one_kind: bool
) -> None:
    found = [studies(seeds, deviations, of_one_kind) for seeds in SEEDS]
    power, false = zip(*found, strict=True)
    assert list(power) == sorted(power)
    assert power[0] == 1.0
    assert max(false) <= most


@pytest.mark.parametrize(
    ("deviations", "least"), [((0.3, 0.3, 0.3, 0.3), 0.95), ((0.1, 0.2, 0.3, 0.3), 0.90)]
)
def test_paired_differences_are_covered_and_get_narrower_with_seeds(
    deviations: tuple[float, ...], least: float
) -> None:
    """Of the two methods that vary most, so that others' variances are too small for them."""
    widths, count = [], 200
    for seeds in [2, 3, 5, 10]:
        rng, covered, width = np.random.default_rng(seeds), 0, 0.0
        for _ in range(count):
            y = rng.normal(0, 1.0, (seeds, 1)) + rng.normal(0, deviations, (seeds, 4))
            values = y[:, 3] - y[:, 2]
            variance = Pool.of_blocks({KIND: pd.DataFrame(y)}).variance(
                KIND, Variance.of(values, 2)
            )
            found = summarize(values, Variance(2 * variance.value, variance.df))
            covered += found.low < 0 < found.high
            width += found.high - found.low
        widths.append(width)
        assert covered / count >= least - 2.5 * math.sqrt(least * (1 - least) / count)
    assert widths == sorted(widths, reverse=True)
