import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from ofq.report.measures import LOSS, OSCILLATION_MID, TOP1
from ofq.report.pooling import Variance
from ofq.report.statistics import detectable, holm, summarize, verdict

numbers = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_paired_difference_agrees_with_scipys_paired_t_test(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = np.array(pairs).T
    found = summarize(a - b)
    assert found.mean == pytest.approx(np.sum(a - b) / len(a), abs=1e-9)
    if math.isnan(found.low):
        assert np.ptp(a - b) < 1e-6
        return
    known = stats.ttest_rel(a, b)
    interval = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-6, abs=1e-9
    )


def test_summary_agrees_with_hand_computed_numbers() -> None:
    found = summarize([1.0, 2.0, 6.0])
    assert (found.mean, found.std) == (3.0, pytest.approx(math.sqrt(7)))
    half = 4.302652729911275 * math.sqrt(7) / math.sqrt(3)
    assert found.high - found.mean == pytest.approx(half)


def test_one_seed_has_no_interval() -> None:
    found = summarize([88.0])
    assert found.n == 1
    assert found.mean == 88.0
    assert math.isnan(found.std)
    assert math.isnan(found.low)
    assert verdict(found, math.nan) == "no interval"
    assert math.isnan(detectable(found.error, found.df))


def test_equal_differences_are_a_coincidence_and_show_nothing() -> None:
    assert verdict(summarize([0.1 + 0.2, 0.3, 0.3]), math.nan) == "no interval"
    assert verdict(summarize([0.0, 0.0, 0.0]), math.nan) == "identical"


@pytest.mark.parametrize("value", [1.1111111111111, 88.9])
def test_difference_without_an_interval_has_nothing_that_is_detectable(value: float) -> None:
    found = summarize([value, value + 1e-13])
    assert (found.std, math.isnan(found.low)) == (0.0, True)
    assert math.isnan(detectable(found.error, found.df))


def test_interval_ends_where_no_value_is_possible() -> None:
    found = TOP1.over_seeds([99.0, 100.0])
    assert (found.low, found.high) == (pytest.approx(99.5 - 12.706204736174698 * 0.5), 100.0)
    assert math.isnan(TOP1.over_seeds([99.0]).high)
    assert OSCILLATION_MID.over_seeds([0.0, 1.0]).low == 0.0
    assert LOSS.over_seeds([0.0, 100.0]).high > 100


def test_no_difference_or_power_is_beyond_what_is_possible() -> None:
    wild = summarize([-90.0, 90.0])
    assert (TOP1.possible(wild).low, TOP1.possible(wild).high) == (-100, 100)
    assert LOSS.possible(wild).high == wild.high > 100
    assert math.isnan(TOP1.detectable(wild, 0.05))
    assert LOSS.detectable(wild, 0.05) > 100
    assert TOP1.detectable(summarize([1.0, 1.1]), 0.05) < 100


def test_variance_from_elsewhere_gives_one_seed_an_interval() -> None:
    found = summarize([1.0], Variance(4.0, 9.0))
    assert (found.df, found.error) == (9.0, 2.0)
    assert found.high - 1 == pytest.approx(2 * 2.2621571627409915)
    assert found.p == pytest.approx(2 * stats.t.sf(0.5, 9))


def test_seeds_that_split_one_set_of_images_have_a_wider_interval() -> None:
    """Nadeau and Bengio's corrected resampled t test, by its formula."""
    plain, corrected = (summarize([1.0, 2.0, 6.0], resplit=ratio) for ratio in (0.0, 900 / 897))
    assert corrected.error == pytest.approx(math.sqrt(7 * (1 / 3 + 900 / 897)))
    assert corrected.error / plain.error == pytest.approx(math.sqrt(1 + 3 * 900 / 897))
    assert TOP1.over_seeds([90.0, 91.0, 92.0], 900 / 897).low < 90.0 - 1.5


def test_intervals_over_seeds_that_re_split_cover_the_truth_of_fresh_images() -> None:
    """Results of two seeds correlate by n_test/(n_test + n_train), as the correction assumes."""
    rng = np.random.default_rng(5)
    shared = rng.normal(0.0, math.sqrt(0.5), (2000, 1))
    results = shared + rng.normal(0.0, math.sqrt(0.5), (2000, 5))

    def coverage(resplit: float) -> float:
        found = [summarize(x, resplit=resplit) for x in results]
        return float(np.mean([f.low < 0 < f.high for f in found]))

    assert coverage(0.0) < 0.75
    assert coverage(1.0) == pytest.approx(0.95, abs=0.015)


def test_ends_that_round_to_zero_show_on_which_side_they_are() -> None:
    assert TOP1.interval(-1.63, 0.0047).replace("\N{NO-BREAK SPACE}", " ") == "[−1.63, +0.00]"
    assert TOP1.interval(-0.0047, 1.63).replace("\N{NO-BREAK SPACE}", " ") == "[−0.00, +1.63]"
    assert TOP1.signed(0.0047) == TOP1.signed(-0.0047) == "0.00"


def test_holm_agrees_with_a_hand_computed_family() -> None:
    adjusted = holm([0.01, 0.04, 0.03, math.nan, 0.005])
    assert adjusted[[0, 1, 2, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(adjusted[3])


def test_holm_of_nothing_is_nothing() -> None:
    assert len(holm([])) == 0


@pytest.mark.parametrize(
    ("values", "p_holm", "word"),
    [
        ([1.0, 1.1, 1.2], 0.01, "holds"),
        ([-1.0, -1.1, -1.2], 0.2, "suggestive"),
        ([-1.0, 1.1, 0.2], 1.0, "not shown"),
    ],
)
def test_verdict_follows_interval_and_correction(
    values: list[float], p_holm: float, word: str
) -> None:
    assert verdict(summarize(values), p_holm) == word


def test_true_mean_is_covered_by_95_of_100_intervals() -> None:
    rng = np.random.default_rng(1)
    found = [summarize(x) for x in rng.normal(2.0, 1.0, (2000, 3))]
    covered = np.mean([f.low < 2.0 < f.high for f in found])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("seeds", [3, 10])
def test_a_family_without_any_effect_rarely_has_one_that_holds(seeds: int) -> None:
    rng = np.random.default_rng(2)
    false = 0
    for family in rng.normal(0.0, 1.0, (400, 10, seeds)):
        found = [summarize(x) for x in family]
        false += "holds" in map(verdict, found, holm([f.p for f in found]))
    assert false / 400 <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 9, 0.05 / 100])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_detectable_difference_has_the_power_by_the_t_test_s_definition(
    n: int, alpha: float
) -> None:
    """The share of t beyond the critical value, integrated over the sample's variance."""
    delta = detectable(1.0, n - 1, alpha)
    critical = stats.t.isf(alpha / 2, n - 1)

    def shown(variance: float) -> float:
        reach = critical * math.sqrt(variance / (n - 1))
        beyond = stats.norm.sf(reach - delta) + stats.norm.cdf(-reach - delta)
        return float(beyond * stats.chi2.pdf(variance, n - 1))

    # near 0, where a chi-squared variable of one degree of freedom has its pole, t is never small
    power = integrate.quad(lambda root: 2 * root * shown(root**2), 0, 12, limit=500)[0]
    assert power == pytest.approx(0.8, abs=2e-4)


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_detectable_difference_is_shown_four_times_in_five(seeds: int) -> None:
    rng = np.random.default_rng(3)
    true = detectable(1.5 / math.sqrt(seeds), seeds - 1)
    shown = np.mean([summarize(x).low > 0 for x in rng.normal(true, 1.5, (2000, seeds))])
    assert shown == pytest.approx(0.8, abs=0.03)
