import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layerwise import stats
from scipy.stats import spearmanr, t


def test_mean_is_the_t_interval_computed_by_hand():
    value, low, high = stats.mean([1.0, 2.0, 3.0, 6.0])
    reach = t.ppf(0.975, 3) * np.sqrt(14 / 3) / 2  # squared deviations 4 + 1 + 0 + 9, n = 4
    assert value == 3 and low == pytest.approx(3 - reach) and high == pytest.approx(3 + reach)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    samples = np.random.default_rng(0).normal(2, 3, size=(1000, 8))
    covered = np.mean([e.low <= 2 <= e.high for e in map(stats.mean, samples)])
    assert 0.93 < covered < 0.97


def test_one_window_has_a_value_and_no_interval():
    estimate = stats.mean([5.0])
    assert estimate.value == 5 and np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(stats.standard_error(np.ones((3, 1)))).all()


def test_no_window_is_an_error():
    with pytest.raises(ValueError, match="one value per window"):
        stats.mean([])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=20))
def test_rank_correlation_agrees_with_scipy_ties_included(pairs):
    x, y = np.array(pairs, float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(stats.rank_correlation(x, y, draws=5).value)
    else:
        assert stats.rank_correlation(x, y, draws=5).value == pytest.approx(spearmanr(x, y).statistic)


def test_redrawing_windows_alone_shows_how_well_the_text_pins_the_order_down():
    rng = np.random.default_rng(0)
    truth = np.arange(12.0)
    loud, quiet = (truth[:, None] + noise * rng.normal(size=(12, 40)) for noise in (20, 1e-3))
    certain = stats.rank_correlation(truth, quiet, over=("windows",))
    doubtful = stats.rank_correlation(truth, loud, over=("windows",))
    assert certain == (1, 1, 1)
    assert doubtful.low < doubtful.value < 1 and doubtful.high - doubtful.low > 0.05


def test_redrawing_blocks_shows_a_correlation_that_rests_on_one_block():
    x = np.array([9, 1, 2, 3, 4.0])
    y = np.array([9, 4, 3, 2, 1.0])
    estimate = stats.rank_correlation(x, y, over=("blocks",))
    assert estimate.low == pytest.approx(-1) and estimate.high > 0.5


def test_values_without_windows_are_taken_as_they_are():
    x = np.array([1.0, 3, 2, 4])
    value, low, high = stats.rank_correlation(x, x**2, over=("windows",))
    assert (value, low, high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2, 3, 4], "x has 3 blocks and y has 4"),
        ([1, 2], [1, 2], "at least 3"),
        ([1, 2, np.nan], [1, 2, 3], "x holds values that are missing"),
    ],
)
def test_orders_that_cannot_be_compared_say_why(x, y, message):
    with pytest.raises(ValueError, match=message):
        stats.rank_correlation(x, y)


def test_an_unknown_unit_to_draw_is_an_error():
    with pytest.raises(ValueError, match="'blocks', 'windows' or both"):
        stats.rank_correlation([1, 2, 3], [1, 2, 3], over=("tokens",))
