"""Bits by matrix under a budget of bytes: the optimum, constraints, and what can't be met."""

from itertools import product

import layerwise as lw
import numpy as np
import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise.plans import Layer, allocate, by_part, number_of_bytes

SHAPES = {"untied": lw.shape(tiny()), "tied": lw.shape(tiny("gpt2"))}
UNTIED = SHAPES["untied"]
WIDTHS = (2, 4, None)


def falling(shape, seed=0, widths=WIDTHS):
    """Costs that fall with the width, as real ones do."""
    return -np.sort(-np.random.default_rng(seed).exponential(size=(len(shape.parts), len(widths))), axis=1)


def between(shape, share, widths=WIDTHS):
    low, high = (by_part(shape, [width] * len(shape.parts)).predicted_bytes(shape) for width in (widths[0], widths[-1]))
    return int(low + share * (high - low))


def cost_of(shape, plan, costs, widths=WIDTHS):
    return sum(row[widths.index(bits)] for row, bits in zip(costs, plan.bits_by_part(shape), strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.98))
@settings(max_examples=20, deadline=None)
def test_a_plan_is_never_a_byte_over_and_at_most_one_percent_below(shape, seed, share):
    widths = (2, 3, 4, 5, 6, 8)
    budget = between(shape, share, widths)
    taken = allocate(shape, falling(shape, seed, widths), budget, widths).predicted_bytes(shape)
    assert 0.99 * budget <= taken <= budget


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95), removal=st.booleans())
@settings(max_examples=25, deadline=None)
def test_it_is_the_best_of_all_plans(seed, share, removal):
    by_block = {"share": lambda part: part.path if part.block is None else ("block", part.block)}
    costs, budget = falling(UNTIED, seed), between(UNTIED, share)
    drops = np.random.default_rng(seed).exponential(20, size=UNTIED.L) if removal else None
    best = np.inf
    for choice in product((*WIDTHS, "gone") if removal else WIDTHS, repeat=UNTIED.L):
        for ends in product(WIDTHS, repeat=2):
            if all(each == "gone" for each in choice):
                continue
            bits = [None if part.block is None or choice[part.block] == "gone" else choice[part.block] for part in
                    UNTIED.parts[:-2]] + list(ends)  # fmt: skip
            plan = by_part(UNTIED, bits)
            gone = {i for i, each in enumerate(choice) if each == "gone"}
            layers = tuple(Layer(keep=False) if i in gone else layer for i, layer in enumerate(plan.layers))
            plan = lw.Plan(layers, plan.width, embedding_bits=ends[0], head_bits=ends[1])
            if 0.99 * budget <= plan.predicted_bytes(UNTIED) <= budget:
                of_parts = [row[WIDTHS.index(width)] for row, width, part in zip(costs, bits, UNTIED.parts, strict=True)
                            if part.block not in gone]  # fmt: skip
                best = min(best, sum(of_parts) + sum(drops[i] for i in gone))
    try:
        plan = allocate(UNTIED, costs, budget, WIDTHS, removal=drops, **by_block)
    except ValueError:
        assert not np.isfinite(best)
        return
    gone = {i for i, layer in enumerate(plan.layers) if not layer.keep}
    bits = zip(costs, plan.bits_by_part(UNTIED), UNTIED.parts, strict=True)
    found = sum(row[WIDTHS.index(width)] for row, width, part in bits if part.block not in gone)
    found += sum(drops[i] for i in gone)
    if np.isfinite(best):
        assert found == pytest.approx(best, rel=2e-6)
    assert plan.predicted_bytes(UNTIED) <= budget


def test_what_is_fused_has_one_width_and_floors_are_kept():
    costs = falling(UNTIED)
    plan = allocate(UNTIED, costs, between(UNTIED, 0.3), WIDTHS, fused=True, floors={"head": 4, "down_proj": 4})
    for layer in plan.layers:
        of = {path: layer.bits_of(path) for path in (part.path for part in UNTIED.parts if part.block == 0)}
        assert len({of[f"self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert of["mlp.gate_proj"] == of["mlp.up_proj"] and of["mlp.down_proj"] in (4, None)
    assert plan.head_bits in (4, None)
    free = allocate(UNTIED, costs, between(UNTIED, 0.3), WIDTHS)
    assert cost_of(UNTIED, free, costs) < cost_of(UNTIED, plan, costs)
    tied = SHAPES["tied"]
    plan = allocate(tied, falling(tied), between(tied, 0.3), WIDTHS, floors={"head": 4})
    assert plan.embedding_bits in (4, None)


def test_keys_and_values_take_their_bytes_first():
    costs, budget = falling(UNTIED), between(UNTIED, 0.5)
    heads, each = 2, 8  # of keys and values, of tiny Llama
    assert UNTIED.cache_bytes == 2 * UNTIED.L * heads * each * UNTIED.bytes_per_parameter
    plan = allocate(UNTIED, costs, budget, WIDTHS, context=10)
    assert 0.99 * budget <= plan.predicted_bytes(UNTIED) + 10 * UNTIED.cache_bytes <= budget


def test_a_block_goes_where_that_is_the_better_use_of_bytes():
    costs, budget = falling(UNTIED), between(UNTIED, 0.3)
    assert all(layer.keep for layer in allocate(UNTIED, costs, budget, WIDTHS, removal=[99, 99, 99]).layers)
    plan = allocate(UNTIED, costs, budget, WIDTHS, removal=[99, 0, 99])
    assert [layer.keep for layer in plan.layers] == [True, False, True]
    assert 0.99 * budget <= plan.predicted_bytes(UNTIED) <= budget
    assert sum(layer.keep for layer in allocate(UNTIED, costs, budget, WIDTHS, removal=[0, 0, 0]).layers) >= 1


@pytest.mark.parametrize("share", [-0.02, 1.1])
def test_a_budget_that_no_plan_meets_is_told_the_range_of_those_that_can_be(share):
    low, high = between(UNTIED, 0), between(UNTIED, 1)
    with pytest.raises(ValueError, match="no plan takes .* from .* to") as error:
        allocate(UNTIED, falling(UNTIED), between(UNTIED, share), WIDTHS)
    told = str(error.value).partition("takes from ")[2].partition(",")[0].split(" to ")
    assert [number_of_bytes(each) for each in told] == pytest.approx([low, high], rel=1e-3)


def test_where_matrices_are_too_large_for_one_percent_it_is_the_best_below():
    costs = falling(UNTIED)
    plan = allocate(UNTIED, costs, between(UNTIED, 0.4), WIDTHS, share=lambda part: "all")
    assert set(plan.bits_by_part(UNTIED)) == {4 if between(UNTIED, 0.4) >= by_four() else 2}


def by_four():
    return by_part(UNTIED, [4] * len(UNTIED.parts)).predicted_bytes(UNTIED)


def test_what_can_not_be_is_told():
    costs, budget = falling(UNTIED), between(UNTIED, 0.5)
    with pytest.raises(ValueError, match="finite numbers for 23 parts x 3 widths.*these are 23 x 2"):
        allocate(UNTIED, costs[:, :2], budget, WIDTHS)
    with pytest.raises(ValueError, match="finite"):
        allocate(UNTIED, np.where(costs > 1, np.nan, costs), budget, WIDTHS)
    with pytest.raises(ValueError, match="'lm_head': 4 can't be kept: no part's path ends so; there is self_attn"):
        allocate(UNTIED, costs, budget, WIDTHS, floors={"lm_head": 4})
    with pytest.raises(ValueError, match="'head': 8 can't be kept: no width is as large"):
        allocate(UNTIED, costs[:, :2], budget, (2, 4), floors={"head": 8})
    with pytest.raises(ValueError, match="removal must be 3 finite numbers"):
        allocate(UNTIED, costs, budget, WIDTHS, removal=[1, 2])
    with pytest.raises(ValueError, match="parts of several blocks can't share"):
        allocate(UNTIED, costs, budget, WIDTHS, removal=[1, 2, 3], share=lambda part: part.path)


@pytest.mark.parametrize(
    ("told", "count"), [("6 GB", 6 * 10**9), ("6GiB", 6 * 2**30), ("1.5 MB", 1_500_000), (" 800kb", 800_000), (12, 12)]
)
def test_bytes_are_numbers_or_words(told, count):
    assert number_of_bytes(told) == count


@pytest.mark.parametrize("told", ["six GB", "6 XB", -1, 0, True, "6 GBit"])
def test_bytes_that_can_not_be_read_are_told(told):
    with pytest.raises(ValueError, match='such as "6 GB" or "6 GiB"'):
        number_of_bytes(told)
