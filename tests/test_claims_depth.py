"""Q4 on made-up rows whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from layerwise import claims
from scipy import stats as reference


def rows(slope, spread=3.0, depths=(6, 12, 24), seeds=3, seed=0):
    """Shares that rise by `slope` points with each doubling, and differ between training seeds."""
    rng = np.random.default_rng(seed)
    found = [
        {
            "model": f"{L}L-s{s}",
            "blocks": L,
            "seed": s,
            "value": (40 + slope * np.log2(L / 12) + rng.normal(0, spread)) / 100,
        }
        for L in depths
        for s in range(seeds)
    ]
    return pd.DataFrame(found)


def test_deeper_models_that_tolerate_more_are_found():
    verdict = claims.q4(rows(10))
    assert verdict.verdict == "holds" and verdict.low > 0 and verdict.low < 10 < verdict.high


def test_deeper_models_that_tolerate_no_more_are_found():
    verdict = claims.q4(rows(-8))
    assert verdict.verdict == "doesn't hold" and verdict.high < 2


def test_the_slope_is_that_of_least_squares():
    table = rows(5)
    line = reference.linregress(np.log2(table["blocks"]), 100 * table["value"])
    verdict = claims.q4(table)
    reach = reference.t.ppf(0.975, 7) * line.stderr
    assert (verdict.effect, verdict.low, verdict.high) == pytest.approx(
        (line.slope, line.slope - reach, line.slope + reach)
    )


def test_without_an_effect_it_holds_no_more_often_than_its_risk():
    verdicts = [claims.q4(rows(0, seed=seed)).verdict for seed in range(300)]
    assert verdicts.count("holds") <= 0.05 * 300


def test_too_little_data_cannot_be_told():
    for few in (rows(10, seeds=1), rows(10, depths=(6,))):
        verdict = claims.q4(few)
        assert verdict.verdict == "can't tell" and np.isnan(verdict.low) and "nan" not in str(verdict)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="seed"), "the rows lack seed; needed are model, blocks, seed, value"),
        (lambda t: pd.concat([t, t]), "a depth and seed more than once"),
        (lambda t: t.assign(value=40), "value must be a share of layers, from 0 to 1"),
    ],
)
def test_rows_that_cannot_be_judged_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        claims.q4(change(rows(5)))
