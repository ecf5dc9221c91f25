"""Q2 on made-up rows in which the truth is known."""

import numpy as np
import pandas as pd
import pytest
from layerwise import claims


def made_up(gain=0.0, spread=0.02, draws=3, windows=16, samples=19, seed=0, noise=0.01):
    """Losses of uniform bits, of a plan by importance that is `gain` nats better, and of random plans."""
    rng = np.random.default_rng(seed)
    text = rng.normal(1, 0.3, windows)
    rows = []

    def add(plan, sample, shift, draw):
        loss = text + shift + rng.normal(0, noise, windows)
        of = {"model": "m", "plan": plan, "draw": draw, "sample": sample}
        rows.extend(of | {"window": w, "loss": value} for w, value in enumerate(loss))

    for draw in range(draws):
        add("uniform", 0, 0, draw)
        add("by LIM", 0, -gain, draw)
    for sample in range(samples):
        add("random", sample, rng.normal(0, spread), 0)
    return pd.DataFrame(rows)


def test_a_true_gain_is_found_with_its_size():
    found = claims.q2(made_up(gain=0.1), "by LIM")
    assert found.verdict == "holds" and found.low < 100 * np.expm1(-0.1) < found.high < 0
    assert "0 of 19 orders without information do as well" in found.reason


def test_what_makes_it_worse_does_not_hold():
    assert claims.q2(made_up(gain=-0.1), "by LIM").verdict == "doesn't hold"


def test_a_plan_that_is_one_more_random_one_rarely_holds():
    rng = np.random.default_rng(1)
    verdicts = [claims.q2(made_up(gain=rng.normal(0, 0.05), spread=0.05, seed=k), "by LIM").verdict for k in range(200)]
    assert verdicts.count("holds") <= 20  # 5 % of 200, and 3 standard deviations


@pytest.mark.parametrize("few", [{"samples": 10}, {"draws": 1}, {"noise": 2.0}])
def test_too_little_data_can_not_tell(few):
    assert claims.q2(made_up(gain=0.1, **few), "by LIM").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="sample"), "the rows lack sample"),
        (lambda rows: rows[rows["plan"] != "uniform"], "no row has the plan 'uniform'; there is by LIM, random"),
        (lambda rows: rows.assign(model=rows["draw"]), "Q2 is on one model, but the rows are of 0, 1, 2"),
        (lambda rows: rows[(rows["plan"] != "by LIM") | (rows["draw"] > 0)], "must have the same draws and windows"),
        (lambda rows: pd.concat([rows, rows[:1]]), "uniform has more than one row for a draw and window"),
        (lambda rows: rows.assign(loss=rows["loss"].where(rows.index > 0)), "uniform must have a finite loss"),
        (lambda rows: rows.assign(loss=rows["loss"].where(rows["plan"] != "random")), "random must have a finite loss"),
        (
            lambda rows: rows[(rows["plan"] != "random") | (rows["window"] > 0)],
            "random must have the windows of by LIM",
        ),
        (lambda rows: rows[:-1], "random must have a finite loss for every sample and window"),
        (lambda rows: rows.assign(draw=rows["draw"] + (rows["plan"] == "random")), "random must have the windows"),
    ],
)
def test_malformed_rows(change, message):
    with pytest.raises(ValueError, match=message):
        claims.q2(change(made_up()), "by LIM")
