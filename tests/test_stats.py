import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layerwise import stats
from scipy import stats as reference
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


def test_one_more_value_lies_where_it_is_said_to_lie():
    value, low, high = stats.another([1.0, 2.0, 3.0, 6.0])
    reach = t.ppf(0.975, 3) * np.sqrt(14 / 3 * (1 + 1 / 4))
    assert value == 3 and low == pytest.approx(3 - reach) and high == pytest.approx(3 + reach)
    samples = np.random.default_rng(0).normal(2, 3, size=(2000, 4))
    inside = [e.low <= new <= e.high for e, new in zip(map(stats.another, samples[:, :3]), samples[:, 3], strict=True)]
    assert 0.93 < np.mean(inside) < 0.97
    assert np.isnan(stats.another([0.5])[1:]).all()


DRAWS, WINDOWS = np.array([1.0, 2, 6]), np.array([-4.0, -1, 0, 1, 3, 7])


def reach(estimate):
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)
    return estimate.high - estimate.value


def test_draws_alone_and_windows_alone_give_the_t_interval_of_a_mean():
    by_draw = np.tile(DRAWS[:, None], 6)
    assert stats.crossed_mean(by_draw) == pytest.approx(stats.mean(DRAWS))
    assert stats.crossed_mean(by_draw.T) == pytest.approx(stats.mean(DRAWS))
    assert stats.crossed_mean(np.tile(WINDOWS, (3, 1))) == pytest.approx(stats.mean(WINDOWS))


def test_draws_and_windows_add_the_squares_of_their_reaches():
    crossed = stats.crossed_mean(DRAWS[:, None] + WINDOWS)
    assert crossed.value == 4
    assert reach(crossed) ** 2 == pytest.approx(reach(stats.mean(DRAWS)) ** 2 + reach(stats.mean(WINDOWS)) ** 2)


def test_noise_counts_once():
    # Deviations of +1 and -1 that cancel in rows and columns, but for what both have: 2 draws, 4 windows, by hand.
    noise = np.array([[1.0, -1, 1, -1], [-1, 1, -1, 1]])
    assert reach(stats.crossed_mean(noise)) == 0  # no means differ: below what noise allows for, and never negative
    effects = np.array([[0.0], [2]]) + np.array([0.0, 0, 8, 8]) + noise
    # Windows: means 1 1 9 9 have variance 64 / 3, so 16 / 3 per mean of 4; noise: 8 / (1 * 3) / 8 = 1 / 3 of it.
    expected = np.hypot(t.ppf(0.975, 1) * 1, t.ppf(0.975, 3) * np.sqrt(16 / 3 - 1 / 3))
    assert reach(stats.crossed_mean(effects)) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2, 40), (3, 40), (5, 12), (12, 5), (3, 3)])
@pytest.mark.parametrize("shares", [(1, 1, 0.1), (2, 1, 1), (1, 2, 0.5), (0, 1, 1), (1, 0, 0.1), (0, 0, 1)])
def test_crossed_intervals_cover_the_truth_at_least_as_often_as_they_say(shape, shares):
    rng = np.random.default_rng(0)
    runs, (n, m) = 400, shape
    draw, window, noise = shares  # standard errors of the mean that each part gives
    values = draw * n**0.5 * rng.normal(size=(runs, n, 1)) + window * m**0.5 * rng.normal(size=(runs, 1, m))
    values = values + noise * (n * m) ** 0.5 * rng.normal(size=(runs, n, m))
    covered = np.mean([e.low <= 0 <= e.high for e in map(stats.crossed_mean, values)])
    assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / runs)


def test_crossed_intervals_are_not_wider_than_they_need_be():
    values = np.random.default_rng(0).normal(size=(300, 3, 1)) + np.zeros((300, 3, 20))
    covered = np.mean([e.low <= 0 <= e.high for e in map(stats.crossed_mean, values)])
    assert 0.91 < covered < 0.98


@pytest.mark.parametrize("mean", [-3, -0.1, 0, 0.5, 30])
def test_the_p_value_is_the_risk_of_the_interval_that_touches_zero(mean):
    rng = np.random.default_rng(0)
    for _ in range(5):
        values = mean + rng.normal(size=(3, 1)) + rng.normal(size=(3, 8))
        estimate = stats.crossed_mean(values, confidence=1 - stats.crossed_p_value(values))
        assert min(abs(estimate.low), abs(estimate.high)) == pytest.approx(0, abs=1e-6 * reach(estimate))


def test_p_values_without_spread_and_without_an_effect():
    assert stats.crossed_p_value(np.full((3, 4), 0.5)) == 0
    assert stats.crossed_p_value(np.zeros((3, 4))) == 1
    assert stats.crossed_p_value(DRAWS[:, None] - DRAWS.mean() + np.zeros(4)) == 1


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_one_draw_or_one_window_gives_no_interval(shape):
    estimate = stats.crossed_mean(np.ones(shape))
    assert estimate.value == 1 and np.isnan([estimate.low, estimate.high, stats.crossed_p_value(np.ones(shape))]).all()


@pytest.mark.parametrize("values", [np.ones(4), np.ones((2, 0)), np.ones((2, 2, 2))])
def test_crossed_values_of_another_shape_are_an_error(values):
    with pytest.raises(ValueError, match=r"\[draws, windows\]"):
        stats.crossed_mean(values)


def test_a_draw_that_lacks_a_window_is_an_error():
    with pytest.raises(ValueError, match="every draw needs a finite value for every window"):
        stats.crossed_mean([[1, 2], [3, np.nan]])


def test_holm_is_what_it_is_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert stats.holm([]).shape == (0,)


def test_holm_rejects_anything_falsely_in_at_most_one_of_twenty_studies():
    p_values = np.random.default_rng(0).uniform(size=(2000, 20))
    assert np.mean([(stats.holm(p) < 0.05).any() for p in p_values]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert (p_values < 0.05).any(axis=1).mean() > 0.5  # which is what it guards against


@pytest.mark.parametrize("p_values", [[0.1, np.nan], [1.5], [[0.1]]])
def test_what_is_no_p_value_is_an_error(p_values):
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        stats.holm(p_values)


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


def test_a_bootstrap_interval_is_that_of_student_where_the_bootstrap_is_normal():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=6)
    resampled = sample.mean() + sample.std() / np.sqrt(6) * rng.normal(size=1_000_000)
    expected = stats.mean(sample)
    found = stats.bootstrap_interval(sample.mean(), resampled, 6)
    assert found == pytest.approx(expected, rel=0.02)
    narrow = stats.bootstrap_interval(sample.mean(), resampled, 10**6)
    assert narrow[1:] == pytest.approx(np.quantile(resampled, (0.025, 0.975)), rel=1e-3)


def test_a_bootstrap_of_one_unit_has_no_interval():
    assert np.isnan(stats.bootstrap_interval(0.5, np.full(10, 0.5), 1)[1:]).all()


def test_rank_luck_counts_the_permutations_that_agree_as_well():
    # Of the 24 orders of 4 blocks the damage agrees best with one, and 1 + 3 reach a correlation of 0.8.
    assert stats.rank_luck([1, 2, 3, 4], [1, 10, 20, 90], times=40_000).p == pytest.approx(1 / 24, abs=0.005)
    assert stats.rank_luck([1, 2, 4, 3], [1, 2, 3, 4], times=40_000).p == pytest.approx(4 / 24, abs=0.008)
    assert stats.rank_luck([4, 3, 2, 1], [1, 2, 3, 4]).p == 1 and 0 < stats.rank_luck(range(20), range(20)).p < 0.001
    with pytest.raises(ValueError, match="no order of its own"):
        stats.rank_luck([1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="follows from what is given"):
        stats.rank_luck([1, 2, 3, 5], [1, 2, 4, 3], given=[1, 2, 3, 4])


def test_luck_is_told_with_its_exact_upper_limit():
    assert stats.luck(0.5, [0.4, 0.5, 0.6]) == stats.Luck(2, 3, 2) and stats.Luck(2, 3).p == 3 / 4
    assert stats.luck(0.3, [0.1 + 0.2]) == (1, 1, 1)  # equal but for rounding
    assert stats.Luck(2, 30, 28).opposite == (28, 30, 2)
    none = stats.luck(1, np.zeros(199))
    assert none == (0, 199, 199) and none.p == 1 / 200 and none.most == pytest.approx(1 - 0.05 ** (1 / 199))
    assert reference.binom.cdf(7, 199, stats.Luck(7, 199).most) == pytest.approx(0.05)
    assert stats.Luck(5, 5).most == 1


def test_a_partial_correlation_is_that_of_what_depth_leaves():
    rng = np.random.default_rng(0)
    depth = np.arange(20)
    x, y = (depth + 4 * rng.normal(size=20) for _ in "xy")
    assert stats.rank_correlation(x, y).value > 0.5  # because both go with depth
    found = stats.rank_correlation(x, y, given=depth)
    ranks = np.array([reference.rankdata(v) for v in (x, y, depth)])
    plain = np.corrcoef(ranks)
    known = (plain[0, 1] - plain[0, 2] * plain[1, 2]) / np.sqrt((1 - plain[0, 2] ** 2) * (1 - plain[1, 2] ** 2))
    assert found.value == pytest.approx(known) and found.low < found.value < found.high
    assert np.isnan(stats.rank_correlation(depth, y, given=depth).value)
    two = stats.rank_correlation(x, y, given=[depth, np.abs(depth - 9.5)])
    design = np.column_stack([np.ones(20), ranks[2], reference.rankdata(np.abs(depth - 9.5))])
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    assert two.value == pytest.approx(np.corrcoef(left)[0, 1])
    with pytest.raises(ValueError, match=r"given must be finite numbers \[20\] or \[k, 20\]"):
        stats.rank_correlation(x, y, given=depth[1:])
    with pytest.raises(ValueError, match="of 3 blocks beside 1 given says nothing: at least 4"):
        stats.rank_correlation(x[:3], y[:3], given=depth[:3])


@pytest.mark.parametrize("L", [8, 12, 24])
def test_partial_luck_is_right_where_only_position_agrees(L):
    rng = np.random.default_rng(4)
    depth = np.arange(L)
    place = [depth, np.abs(2 * depth - L + 1)]
    p = []
    for _ in range(400):
        x, y = (depth + L / 4 * rng.normal(size=L) for _ in "xy")
        p.append(stats.rank_luck(x, y, place, times=300).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085


def test_perfect_agreement_of_few_blocks_is_no_proof():
    found = stats.rank_correlation(np.arange(6), np.arange(6))
    assert found.value == found.high == 1 and 0 < found.low < 0.95
    turned = stats.rank_correlation(np.arange(6), -np.arange(6))
    assert turned.value == turned.low == -1 and turned.high == -found.low


def test_the_interval_over_models_covers_models_and_the_text_that_they_share():
    assert stats.over_models([3.0], [1.0], [4.0]) == (3, 1, 4)
    exact = stats.over_models([1.0, 2.0, 6.0], [1.0, 2.0, 6.0], [1.0, 2.0, 6.0])
    assert exact == pytest.approx(stats.mean([1.0, 2.0, 6.0]))
    alike = stats.over_models([2.0, 2.0], [1.0, 1.5], [2.0, 4.0])
    assert alike == pytest.approx((2, 1.25, 3))
    beside = stats.over_models([2.0, 2.0], [1.0, 1.0], [1.5, 3.0])  # a value that its own interval doesn't hold
    assert beside == pytest.approx((2, 1, 2.5)) and stats.over_models([2.0], [1.0], [1.5]) == (2, 1, 1.5)
    assert np.isnan(stats.over_models([1.0, 2.0], [0.0, np.nan], [2.0, 3.0]).low)
    assert stats.over_models([58.0, 67.0], [57.0, 66.0], [59.0, 68.0], (0, 100))[1:] == (
        pytest.approx(5.3, abs=0.1),
        100,
    )
    assert stats.over_models([90.0], [80.0], [110.0], (0, 100)) == (90, 80, 100)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):  # each of 3 models is 5 and its own; the error of the text is all models' and their own
        error = rng.normal(0, 0.7) + rng.normal(0, 0.7, 3)
        values = 5 + rng.normal(0, 1, 3) + error
        found = stats.over_models(values, values - 1.96 * 0.99, values + 1.96 * 0.99)
        covered += found.low <= 5 <= found.high
    assert covered / 1000 > 0.94


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_models_have_one_value_each(values):
    with pytest.raises(ValueError, match="one value per"):
        stats.over_models(values, values, values)
