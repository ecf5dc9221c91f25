"""What ways to choose bits lose at equal bytes, over budgets."""

import numpy as np
import pandas as pd
import pytest
from layerwise.claims import kl_ratios, told_ratios


def rows(factors, noise=0.0, windows=16, seed=0):
    """KL of each cost at budgets where a hundredfold is at stake: `factors` times that of the first, by budget."""
    rng = np.random.default_rng(seed)
    base = np.array([1.0, 0.1, 0.01])[:, None] * np.exp(0.5 * rng.normal(size=(3, windows)))
    found = []
    for cost, factor in factors.items():
        kl = base * np.array(factor)[:, None] * np.exp(noise * rng.normal(size=base.shape))
        found += [
            {"model": "m", "quantizer": "rtn", "cost": cost, "draw": 0, "budget": b, "window": w, "kl": kl[i, w]}
            for i, b in enumerate((2, 3, 4))
            for w in range(windows)
        ]
    return pd.DataFrame(found)


def test_budgets_weigh_alike_however_much_is_at_stake():
    found = kl_ratios(rows({"ours": [1, 1, 1], "theirs": [1, 1, 8]}), "ours").iloc[0]
    assert found["value"] == pytest.approx(1.0) and found["budgets"] == 3
    assert (found["better"], found["worse"]) == (0, 1)


def test_an_interval_covers_what_windows_leave_open():
    sure = kl_ratios(rows({"ours": [1, 1, 1], "theirs": [1.2, 1.2, 1.2]}, noise=0.05), "ours").iloc[0]
    assert 0.1 < sure["low"] < sure["value"] < sure["high"] < 0.3
    covered = [
        kl_ratios(rows({"ours": [1, 1, 1], "theirs": [1, 1, 1]}, noise=0.3, seed=seed), "ours").iloc[0]
        for seed in range(25)
    ]
    assert sum(each["low"] <= 0 <= each["high"] for each in covered) >= 21


def test_a_better_one_is_told_and_budgets_that_one_lacks_are_left_out():
    some = rows({"ours": [1, 1, 1], "theirs": [0.5, 0.5, 0.5]})
    some = some[(some["cost"] == "ours") | (some["budget"] > 2)]
    found = kl_ratios(some, "ours").iloc[0]
    assert found["value"] == pytest.approx(-0.5) and found["high"] < 0
    assert (found["budgets"], found["better"], found["worse"]) == (2, 2, 0)


def test_equal_plans_differ_by_nothing():
    found = kl_ratios(rows({"ours": [1, 1, 1], "theirs": [1, 1, 1]}), "ours").iloc[0]
    assert found[["value", "low", "high"]].tolist() == [0, 0, 0] and found["worse"] == found["better"] == 0


def test_ratios_are_told_as_times():
    found = kl_ratios(rows({"ours": [1, 1, 1], "theirs": [1.2, 1.2, 1.2]}), "ours").assign(model="hub/name")
    assert told_ratios(found) == ["1.20 times (1.20 to 1.20) on name"]
