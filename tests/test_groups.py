"""Plans of bits: groups of blocks by importance, and the sizes that they predict."""

import layerwise as lw
import numpy as np
import pytest
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
from layerwise.plans import Grouped, Layer, Plan, bits, outliers
from test_slices import llama_like

SHAPE = llama_like(4, 64)


def widths(plan):
    return [layer.bits for layer in plan.layers]


def test_the_least_important_are_lowered():
    importance = [0.3, -1.0, 0.5, 0.1]
    assert [widths(bits(SHAPE, importance, low_layers=k)) for k in range(5)] == [
        [8, 8, 8, 8],
        [8, 4, 8, 8],
        [8, 4, 8, 4],
        [4, 4, 8, 4],
        [4, 4, 4, 4],
    ]
    assert widths(bits(SHAPE, importance, widths=(8, 4, 2), counts=(1, 2, 1))) == [4, 2, 8, 4]
    assert widths(bits(SHAPE, importance, low_layers=1, high=None, low=2)) == [None, 2, None, None]


def test_of_equally_important_blocks_the_last_are_lowered_first():
    assert widths(bits(SHAPE, [1, 1, 1, 1], low_layers=2, high=4, low=2)) == [4, 4, 2, 2]


@given(st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4), st.data())
def test_no_block_has_fewer_bits_than_a_less_important_one(importance, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
    counts = (cuts[0], cuts[1] - cuts[0], 4 - cuts[1])
    plan = bits(SHAPE, importance, widths=(8, 4, 2), counts=counts)
    assert plan.average_bits == np.dot((8, 4, 2), counts) / 4
    for i in range(4):
        assert all(plan.layers[i].bits >= plan.layers[j].bits for j in range(4) if importance[i] > importance[j]), (
            importance,
            plan,
        )


@given(st.permutations(range(4)))
def test_lowering_more_blocks_lowers_the_same_ones_too(importance):
    for k in range(4):
        fewer, more = (widths(bits(SHAPE, importance, low_layers=n)) for n in (k, k + 1))
        assert sum(a != b for a, b in zip(fewer, more, strict=True)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either low_layers"),
        ({"low_layers": 1, "widths": (8, 4), "counts": (2, 2)}, "give either low_layers"),
        ({"widths": (8, 4)}, "give either low_layers"),
        ({"low_layers": 5}, "low_layers must be from 0 to 4"),
        ({"low_layers": -1}, "low_layers must be from 0 to 4"),
        ({"low_layers": 1, "high": 4, "low": 8}, "widths go to blocks from the most important"),
        ({"low_layers": 1, "high": 8, "low": None}, "widths go to blocks from the most important"),
        ({"widths": (8, 4), "counts": (2, 1)}, "need as many counts that add up to the 4"),
        ({"widths": (8, 4), "counts": (4, -1)}, "each of counts must be from 0 to 4, not -1"),
        ({"widths": (8,), "counts": (2, 2)}, "need as many counts"),
        ({"low_layers": 1.5}, "low_layers must be a whole number, not 1.5"),
        ({"widths": (8, 4), "counts": (2.5, 1.5)}, "each of counts must be a whole number, not 2.5"),
        ({"low_layers": 1, "low": 0}, "bits must be from 1 to 16, not 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        bits(SHAPE, [1, 2, 3, 4], **options)


@pytest.mark.parametrize(
    ("importance", "message"),
    [([1, 2, 3], "4 numbers, one for each block, but its shape is"), ([1, 2, 3, np.nan], "nan for block 3")],
)
def test_bad_importance(importance, message):
    with pytest.raises(ValueError, match=message):
        bits(SHAPE, importance, low_layers=1)


# Outliers.


def test_outliers_by_hand():
    # m = 0, 1, 1/4, 3/4, mean 1/2: shares of 0.01 + 0.02 * m / 0.5.
    plan = outliers(SHAPE, [0, 4, 1, 3], mean=0.03, base=0.01)
    assert [layer.outliers for layer in plan.layers] == pytest.approx([0.01, 0.05, 0.02, 0.04])
    assert {layer.outliers for layer in outliers(SHAPE, [7] * 4, mean=0.03, base=0.01).layers} == {0.03}


@given(st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4), st.floats(0, 0.2), st.floats(0, 1))
def test_outliers_keep_their_mean_and_follow_importance(importance, mean, part):
    shares = [layer.outliers for layer in outliers(SHAPE, importance, mean, part * mean).layers]
    assert np.mean(shares) == pytest.approx(mean, abs=1e-9) and min(shares) >= part * mean - 1e-12
    assert all(shares[i] >= shares[j] for i in range(4) for j in range(4) if importance[i] > importance[j])


def test_bad_outliers():
    with pytest.raises(ValueError, match="base 0.2 is above the mean 0.1"):
        outliers(SHAPE, [1, 2, 3, 4], 0.1, 0.2)
    with pytest.raises(ValueError, match="mean must be a share"):
        outliers(SHAPE, [1, 2, 3, 4], 1.0)
    with pytest.raises(ValueError, match=r"block 3 would keep 2.00 of its weights"):
        outliers(SHAPE, [0, 0, 0, 1], 0.5)
    with pytest.raises(ValueError, match="4 numbers, one for each block"):
        outliers(SHAPE, [0, 1], 0.5)


# Sizes.


def test_bytes_by_hand():
    # 100 codes of 3 bits are 300 bits, 38 bytes; 4 groups of 25 with 16 + 8 bits are 12 bytes.
    assert Grouped(25)(3, 1, 100) == 38 + 12
    assert Grouped(30)(8, 2, 100) == 200 + 2 * 4 * 3  # the last group of a row is short
    assert Grouped("row", zero=0)(4, 10, 64) == 320 + 20
    assert Grouped("matrix", zero=16)(4, 10, 64) == 320 + 4


def test_effective_bits_count_scales_and_zero_points():
    plan = bits(SHAPE, [1, 2, 3, 4], low_layers=2, high=8, low=4)
    assert plan.average_bits == 6
    assert plan.effective_bits(SHAPE) == pytest.approx(6 + 24 / 64)
    assert plan.effective_bits(SHAPE, Grouped(32, zero=16)) == pytest.approx(6 + 32 / 32)
    half = bits(SHAPE, [1, 2, 3, 4], low_layers=2, high=None, low=4)
    assert half.effective_bits(SHAPE) == pytest.approx((16 + 4 + 24 / 64) / 2)
    dropped = Plan((Layer(bits=4), Layer(keep=False), Layer(keep=False), Layer(bits=2)), 64)
    assert dropped.effective_bits(SHAPE) == pytest.approx(3 + 24 / 64)


def test_predicted_bytes_of_a_dense_plan_are_the_models():
    assert Plan((Layer(),) * 4, 64).predicted_bytes(SHAPE) == SHAPE.total_bytes
    assert bits(SHAPE, [1, 2, 3, 4], low_layers=0).predicted_parameters(SHAPE) == SHAPE.total_parameters


def test_outliers_are_not_guessed():
    plan = Plan((Layer(bits=4, outliers=0.01),) * 4, 64)
    with pytest.raises(ValueError, match="keeps outliers"):
        plan.predicted_bytes(SHAPE)


def test_a_plan_of_bits_prints_its_average():
    model = tiny()
    plan = lw.plans.bits(lw.shape(model), lw.scores.zd(model), low_layers=1)
    assert "average bits 6.67" in repr(plan) and sorted(widths(plan)) == [4, 8, 8]
