"""Q4 on made-up rows whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from layerwise import claims
from scipy import stats as reference


def rows(slope, spread=3.0, depths=(6, 12, 24), seeds=3, seed=0, text=0.0):
    """Shares that rise by `slope` points with each doubling, and differ between training seeds.

    With the standard error `text` the test windows move all shares of a depth together.
    """
    rng = np.random.default_rng(seed)
    found = [
        {
            "model": f"{L}L-s{s}",
            "blocks": L,
            "value": (40 + slope * np.log2(L / 12) + rng.normal(0, spread)) / 100,
            "censored": False,
        }
        for L in depths
        for s in range(seeds)
    ]
    found = pd.DataFrame(found)
    found["value"] += found["blocks"].map({L: rng.normal(0, text) / 100 for L in depths})
    return found.assign(low=found["value"] - 1.96 * text / 100, high=found["value"] + 1.96 * text / 100)


def plans(model="6L", kind="bits", draw=0, spread=0.1, windows=16, leaves=0.5):
    """Losses that rise with the share so that quality is 90 % at `leaves`, and differ between windows."""
    noise = np.random.default_rng(draw).normal(0, spread, windows)
    shares = np.linspace(0, 1, 5)
    loss = -np.log(0.9) * shares[:, None] / leaves * (1 + noise - noise.mean())
    about = {"model": model, "kind": kind, "draw": draw, "blocks": 6, "seed": 0}
    return pd.DataFrame(loss, columns=[f"w{i}" for i in range(windows)]).assign(share=shares, **about)


def test_the_share_that_is_tolerated_is_where_quality_leaves_the_level():
    kinds = pd.concat([plans(), plans(kind="slicing", leaves=0.25).query("share < 0.6")])
    both = claims.tolerated(pd.concat([kinds, plans("12L", windows=4, leaves=2)]), 0.9).set_index(["model", "kind"])
    assert list(both.loc[("6L", "bits"), ["blocks", "seed"]]) == [6, 0]
    assert both["value"].to_numpy() == pytest.approx([0.5, 0.25, 1], abs=0.01)  # the last one never leaves it
    assert list(both["censored"]) == [False, False, True]
    assert (both["low"] <= both["value"]).all() and (both["value"] <= both["high"]).all()


def test_of_draws_it_is_the_mean_and_what_was_not_measured_is_not_told():
    drawn = pd.concat([plans(draw=0, spread=0), plans(draw=1, spread=0, leaves=0.25)])
    assert claims.tolerated(drawn, 0.9)["value"].item() == pytest.approx(0.375, abs=0.01)
    (short,) = claims.tolerated(plans(leaves=2).query("share < 0.6"), 0.9).to_dict("records")
    assert short["value"] == 0.5 and short["censored"]
    (bad,) = claims.tolerated(plans().assign(w0=1.0, w1=1.0, w2=1.0)).to_dict("records")
    assert bad["value"] == 0 and bad["censored"]


def test_the_interval_covers_windows_and_draws():
    # Loss is linear in the share, so that quality leaves the level at leaves / mean of (1 + noise).
    table = plans(spread=0.1, windows=400)
    slopes = table[[f"w{i}" for i in range(400)]].iloc[-1] / (-np.log(0.9) / 0.5)
    error = 0.5 * slopes.std(ddof=1) / 20
    (found,) = claims.tolerated(table, 0.9).to_dict("records")
    assert found["high"] - found["low"] == pytest.approx(2 * 1.966 * error, rel=0.15)
    shares = np.random.default_rng(0).uniform(0.2, 0.8, 20)
    drawn = pd.concat([plans(draw=i, spread=0, leaves=leaves) for i, leaves in enumerate(shares)])
    (found,) = claims.tolerated(drawn, 0.9).to_dict("records")
    assert found["high"] - found["low"] == pytest.approx(2 * 2.093 * shares.std(ddof=1) / np.sqrt(20), rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="kind"), "the rows lack kind; needed are model, kind, draw, share and w0"),
        (lambda t: t[["model", "kind", "draw", "share"]], "the rows lack w0"),
        (lambda t: pd.concat([t, t]), "model 6L, kind bits, draw 0, share 0.0 is there more than once"),
        (lambda t: t.assign(w3=np.inf), "lacks a finite loss"),
        (lambda t: t.assign(share=100 * t["share"]), "a share from 0 to 1"),
        (lambda t: t.assign(draw=np.nan), "every row needs a model, a kind, a draw"),
        (lambda t: t.assign(**{f"w{i}": np.nan for i in range(16)}), "6L, bits has no loss in any window"),
        (lambda t: pd.concat([t, plans(draw=1)[1:]]), "6L, bits: every draw needs the same shares"),
    ],
)
def test_plans_of_which_no_share_follows_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        claims.tolerated(change(plans()))


def test_a_level_is_a_share():
    with pytest.raises(ValueError, match="level must be a share .* not 90"):
        claims.tolerated(plans(), level=90)


def test_deeper_models_that_tolerate_more_are_found():
    verdict = claims.q4(rows(10))
    assert verdict.verdict == "holds" and verdict.low > 0 and verdict.low < 10 < verdict.high
    again = claims.q4(rows(10).astype({"blocks": float}))  # as tables with gaps have it
    assert "6 blocks: " in again.reason and again.reason == verdict.reason


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


def test_the_interval_covers_text_that_all_models_of_a_depth_have_read():
    verdicts = [claims.q4(rows(0, seed=seed, text=5)) for seed in range(300)]
    assert sum(v.verdict == "holds" for v in verdicts) <= 0.05 * 300
    assert np.mean([v.low <= 0 <= v.high for v in verdicts]) >= 0.93
    # the deepest models may be far lower than they seem, so the slope may be; it can't be far higher
    table = rows(5)
    table.loc[table["blocks"] == 24, "low"] -= 0.3
    plain, wide = claims.q4(rows(5)), claims.q4(table)
    assert wide.high == pytest.approx(plain.high)
    assert (wide.effect - wide.low) ** 2 == pytest.approx((plain.effect - plain.low) ** 2 + 15**2)


def test_a_share_hides_how_many_blocks_must_stay():
    grows = rows(0, spread=0.5)  # four tenths of 6 and of 24: 3.6 blocks must stay, or 14.4
    assert claims.q4(grows).verdict == "doesn't hold" and claims.q4_by_blocks(grows).verdict == "doesn't hold"
    table = rows(0).assign(value=lambda t: 1 - (4 - np.log2(t["blocks"] / 12) + 0.1 * (np.arange(9) % 3)) / t["blocks"])
    table = table.assign(low=table["value"] - 1e-3, high=table["value"] + 1e-3)
    fewer = claims.q4_by_blocks(table)
    assert fewer.verdict == "holds" and fewer.low < -1 < fewer.high < 0 and fewer.unit == "blocks"
    assert "In this family" in fewer.statement and "6 blocks: 5.1" in fewer.reason


def test_too_little_data_cannot_be_told():
    for few in (rows(10, seeds=1), rows(10, depths=(6,))):
        verdict = claims.q4(few)
        assert verdict.verdict == "inconclusive" and np.isnan(verdict.low) and "nan" not in str(verdict)
    blind = claims.q4(rows(10).assign(low=np.nan, high=np.nan))
    assert blind.verdict == "inconclusive" and "one window says nothing" in blind.reason and "nan" not in blind.reason


def test_models_that_never_leave_the_level_tell_nothing():
    ceiling = rows(0, spread=0).assign(value=1.0, censored=True)
    verdict = claims.q4(ceiling)
    assert verdict.verdict == "inconclusive" and "leave the level before the first step, or never" in verdict.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="blocks"),
            "the rows lack blocks; needed are model, blocks, value, low, high, censored",
        ),
        (lambda t: pd.concat([t, t]), "a model more than once"),
        (lambda t: t.assign(value=40), "value must be a share of layers, from 0 to 1"),
    ],
)
def test_rows_that_cannot_be_judged_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        claims.q4(change(rows(5)))


def beside(values, other, unit="%", reach=1.0):
    trained = [("AdamW", value) for value in values] + [("muon", other)]
    found = [
        {"model": f"m{i}", "kind": "bits", "blocks": 12, "recipe": recipe, "unit": unit, "value": value}
        for i, (recipe, value) in enumerate(trained)
    ]
    found = pd.DataFrame(found)
    other_depth = found.head(1).assign(model="deep", blocks=24, value=0.5)
    return pd.concat([found.assign(low=found["value"] - reach, high=found["value"] + reach), other_depth])


def test_a_model_stands_apart_where_its_interval_is_outside_of_what_one_more_twin_would_give():
    values = [50.0, 52.0, 54.0]
    reach = reference.t.ppf(0.975, 2) * 2 * np.sqrt(1 + 1 / 3)
    (row,) = claims.beside_twins(beside(values, 30.0)).to_dict("records")
    assert (row["model"], row["twins"], row["apart"]) == ("m3", 3, True)
    assert [row["from"], row["to"]] == pytest.approx([52 - reach, 52 + reach])
    words = f"30 % (29 % to 31 %); judging by 3 twins, another seed by AdamW would lie between {52 - reach:.0f} %"
    assert claims.twins_in_words(row).startswith(words) and claims.twins_in_words(row).endswith("so it stands apart")
    (row,) = claims.beside_twins(beside(values, 42.5)).to_dict("records")
    assert row["apart"] is False and "doesn't clearly stand apart" in claims.twins_in_words(row)


def test_correlations_of_twins_are_compared_on_fishers_scale():
    (row,) = claims.beside_twins(beside([0.5, 0.6, 0.7], -0.9, "rank correlation", 0.05)).to_dict("records")
    there = np.arctanh([0.5, 0.6, 0.7])
    reach = reference.t.ppf(0.975, 2) * there.std(ddof=1) * np.sqrt(1 + 1 / 3)
    assert [row["from"], row["to"]] == pytest.approx(np.tanh([there.mean() - reach, there.mean() + reach]))
    assert row["apart"] and claims.twins_in_words(row).startswith("−0.90 (−0.95 to −0.85)")


def test_without_twins_that_differ_nothing_can_stand_apart():
    for values in ([50.0], [50.0, 50.0]):
        (row,) = claims.beside_twins(beside(values, 30.0)).to_dict("records")
        assert row["apart"] is None and np.isnan(row["from"])
    assert claims.beside_twins(beside([50.0, 52.0], 30.0), other="lion").empty
    assert "apart" in claims.beside_twins(beside([50.0], 30.0), other="lion")


def test_what_is_the_same_in_all_rows_of_a_model_is_kept():
    found = claims.tolerated(plans().assign(key=range(5)))
    assert found.loc[0, "blocks"] == 6 and "key" not in found
