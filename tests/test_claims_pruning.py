"""Q3 on made-up rows whose answer is known."""

import re

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
from layerwise import claims, stats
from scipy import stats as reference

WINDOWS = 8


def family(name, losses, sizes, pruning, bits=None, draws=1, noise=0.01, seed=0):
    """Plans of one family at sizes; each window has the loss, and noise that all plans share but for a tenth of it."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(0, noise, WINDOWS)
    rows = []
    for draw in range(draws):
        for i, (loss, size) in enumerate(zip(losses, sizes, strict=True)):
            row = {"model": "12L", "family": name, "pruning": pruning, "draw": draw, "bytes": size}
            row["average_bits"] = bits[i] if bits else np.nan
            values = loss + shared + rng.normal(0, noise / 10, WINDOWS)
            rows.append(row | {f"w{j}": value for j, value in enumerate(values)})
    return rows


def rows(bits_losses=(0.001, 0.01, 0.1, 1.0), **more):
    """Bits at sizes 4, 3, 2, 1, of 8, 4, 3, 2 bits; two kinds of pruning at sizes 5 to 0.5."""
    return pd.DataFrame(
        family("uniform bits", bits_losses, [4, 3, 2, 1], False, [8, 4, 3, 2], seed=1, **more)
        + family("slicing", [0.0, 0.4, 0.8, 1.2, 1.6, 1.8], [5, 4, 3, 2, 1, 0.5], True, seed=2, **more)
        + family("removal", [0.0, 0.2, 0.5, 0.9, 1.9, 2.5], [5, 4, 3, 2, 1, 0.5], True, seed=3, **more)
    )


def test_bits_that_beat_all_pruning_are_found():
    verdict = claims.q3(rows())
    assert verdict.verdict == "holds" and verdict.low > 0
    assert verdict.effect == pytest.approx(0.2 - 0.001, abs=0.02) and "removal" in verdict.reason
    assert "better than the best pruning of as many bytes at 3 and worse at 0" in verdict.reason


def test_at_two_bits_the_claim_has_an_exception():
    worse = rows((0.001, 0.01, 0.1, 5.0))
    assert claims.q3(worse).verdict == "holds" and "At 2 bits" not in claims.q3(worse).reason
    exception = claims.q3_exception(worse)
    assert exception.verdict == "holds" and exception.effect == pytest.approx(1.6 - 5, abs=0.02) and exception.high < 0
    assert re.search("At 2 bits the loss of slicing minus that of the bits is −3.(39|40)", exception.reason)
    assert claims.q3_exception(rows((0.001, 0.01, 0.1, 0.2))).verdict == "doesn't hold"
    beyond = claims.q3_exception(rows().query("~pruning | (bytes < 1)"))
    assert beyond.verdict == "inconclusive" and "nothing pruned is as large" in beyond.reason
    with pytest.raises(ValueError, match="no plan of uniform bits has at most 2 average bits"):
        claims.q3_exception(rows().query("bytes > 1"))
    found = claims.at_equal_bytes(worse)
    assert found["average_bits"].tolist() == [2, 3, 4, 8] and found["rival"].iloc[0] == "slicing"


def test_bits_that_lose_at_one_size_are_found():
    verdict = claims.q3(rows((0.001, 0.01, 1.0, 2.0)))
    assert verdict.verdict == "doesn't hold" and verdict.high < 0 and "least at 3 bits" in verdict.reason


def test_no_difference_cannot_be_told():
    verdict = claims.q3(rows((0.2, 0.5, 0.9, 1.6)))
    assert verdict.verdict == "inconclusive"


def test_one_window_cannot_be_told():
    one = rows()[["model", "family", "pruning", "draw", "bytes", "average_bits", "w0"]]
    verdict = claims.q3(one)
    assert verdict.verdict == "inconclusive" and np.isnan(verdict.low) and "nan" not in str(verdict)


def test_nothing_is_found_in_noise_more_often_than_its_risk():
    """Four kinds of pruning that are as good as bits: the best of them by luck must not count as better."""
    found, losses = 0, (0.2, 0.5, 0.9, 1.6)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        null = family("uniform bits", losses, [4, 3, 2, 1], False, [8, 4, 3, 2])
        for kind in range(4):
            null += family(f"kind {kind}", losses, [4, 3, 2, 1], True)
        null = pd.DataFrame(null)
        windows = [name for name in null if name.startswith("w")]
        null[windows] += rng.normal(0, 0.1, (len(null), len(windows)))
        found += claims.q3(null).verdict != "inconclusive"
    assert found <= 0.08 * 200


def test_pruning_that_is_a_little_larger_is_the_rival():
    part = pd.DataFrame(
        family("uniform bits", [0.0, 0.1], [2.5, 3.5], False, [4, 8], noise=0)
        + family("removal", [1.0, 2.0], [3, 2], True, draws=3, noise=0)
    )
    found = claims.at_equal_bytes(part)
    assert found["value"].iloc[0] == pytest.approx(1.0) and found["rival"].iloc[0] == "removal"
    assert np.isnan(found["value"].iloc[1]), "nothing pruned is as large"
    assert "at 1 nothing pruned is as large" in claims.q3(part).reason


def test_pruning_that_is_much_larger_is_no_rival():
    """Half of the weights zero has one size, and would else be what every few bits are set against."""
    part = rows()
    smallest = part.loc[part["family"] == "uniform bits", "bytes"].min()
    before = claims.at_equal_bytes(part).iloc[0]
    better = part[part["pruning"]].iloc[:1].assign(family="2:4", draw=0)
    windows = [name for name in part if name[0] == "w" and name[1:].isdigit()]
    better[windows] = -1.0
    at_limit = pd.concat([part, better.assign(bytes=1.25 * smallest)])
    beyond = pd.concat([part, better.assign(bytes=1.26 * smallest)])
    assert claims.at_equal_bytes(at_limit).iloc[0]["rival"] == "2:4"
    assert claims.at_equal_bytes(beyond).iloc[0]["value"] == before["value"]


def test_draws_of_both_sides_are_paired():
    rng = np.random.default_rng(0)
    own = family("uniform bits", [0.0], [2.0], False, [4], draws=4, noise=0)
    rival = family("removal", [1.0], [2.0], True, draws=4, noise=0)
    for a, b in zip(own, rival, strict=True):
        shift = rng.normal(0, 5)
        for j in range(WINDOWS):
            a[f"w{j}"] += shift
            b[f"w{j}"] += shift + rng.normal(0, 0.01)
    found = claims.at_equal_bytes(pd.DataFrame(own + rival)).iloc[0]
    assert found["value"] == pytest.approx(1, abs=0.02) and found["high"] - found["low"] < 0.1


def test_only_the_sizes_that_are_judged_are_corrected_for():
    found = claims.at_equal_bytes(rows())
    raw = found.set_index("average_bits")["p"]
    assert stats.holm(raw.loc[[3, 4, 8]]).max() <= 0.05 and len(raw) == 4


def test_where_curves_cross():
    part = pd.DataFrame(
        family("bits", [0.0, 1.0, 4.0], [3, 2, 1], False, noise=0)
        + family("removal", [1.0, 2.0, 3.0], [3, 2, 1], True, noise=0)
    )
    assert claims.crossing(part, "bits", "removal") == pytest.approx((1.5, 1.5, 1.5))
    assert claims.crossing(part, "removal", "bits").value == np.inf
    better = part[part["bytes"] > 1]
    assert claims.crossing(better, "bits", "removal").value == 0


def test_where_families_have_a_plan_in_common_neither_is_better():
    part = pd.DataFrame(
        family("uniform", [0.1, 1.0], [4, 2], False, noise=0)
        + family("variable", [0.1, 0.9], [4, 2], False, draws=3, noise=0)
    )
    assert claims.crossing(part, "variable", "uniform").value == 0
    assert claims.crossing(part, "uniform", "variable").value == np.inf
    one = part[part["family"] == "uniform"]
    assert np.isnan(claims.crossing(pd.concat([one, one.assign(family="other")]), "uniform", "other")).all()


def test_a_crossing_has_an_interval_that_covers_it():
    covered = 0
    for seed in range(100):
        part = pd.DataFrame(
            family("bits", [0.0, 1.0, 4.0], [3, 2, 1], False, noise=2.0, seed=seed)
            + family("removal", [1.0, 2.0, 3.0], [3, 2, 1], True, noise=2.0, seed=1000 + seed)
        )
        found = claims.crossing(part, "bits", "removal")
        covered += found.low <= 1.5 <= found.high
    assert covered >= 90


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="bytes"), "the rows lack bytes; needed are model, family"),
        (lambda t: t[["model", "family", "pruning", "draw", "bytes", "average_bits"]], "the rows lack w0"),
        (lambda t: pd.concat([t, t]), "family uniform bits, draw 0, bytes 4.0 is there more than once"),
        (lambda t: t.assign(w3=np.inf), "family uniform bits, draw 0, bytes 4.0 lacks a finite loss"),
        (lambda t: pd.concat([t, t.assign(model="6L")]), "Q3 is on one model, but the rows are of 12L, 6L"),
        (lambda t: t.assign(pruning=False), "no row is pruning"),
        (lambda t: t[t["family"] != "uniform bits"], "no row is of the family 'uniform bits'; there is slicing"),
        (lambda t: t.assign(average_bits=2.0, bytes=t["bytes"]), "no plan of uniform bits has 3 to 8 average bits"),
        (lambda t: t.assign(bytes=t["bytes"] - 50 * t["pruning"]), "has as few bytes as any plan of pruning"),
    ],
)
def test_rows_that_cannot_be_judged_say_why(change, message):
    with pytest.raises(ValueError, match=message):
        claims.q3(change(rows()))


def test_families_without_common_sizes_have_no_crossing():
    with pytest.raises(ValueError, match="have no sizes in common"):
        claims.crossing(rows().assign(bytes=lambda t: t["bytes"] + 50 * t["pruning"]), "uniform bits", "removal")
    with pytest.raises(ValueError, match="no row is of the family 'bits'"):
        claims.crossing(rows(), "bits", "removal")


def test_the_p_value_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    assert stats.p_value(values) == pytest.approx(reference.ttest_1samp(values, 0).pvalue)
    assert np.isnan(stats.p_value([1.0])) and lw.stats.p_value([0.0, 0.0]) == 1 and stats.p_value([1.0, 1.0]) == 0


def test_crossings_are_of_pairs_that_both_have():
    both = pd.concat([rows(), rows().assign(model="6L")])
    both = both[(both["model"] == "12L") | (both["family"] != "removal")]
    pairs = [("uniform bits", "slicing"), ("uniform bits", "removal"), ("uniform bits", "nothing")]
    found = claims.crossings(both, pairs)
    assert found[["model", "rival"]].values.tolist() == [["12L", "slicing"], ["12L", "removal"], ["6L", "slicing"]]
    assert found["value"].iloc[0] == claims.crossing(rows(), *pairs[0]).value
    apart = rows().assign(bytes=lambda table: table["bytes"] + 50 * table["pruning"])
    assert claims.crossings(apart, pairs).empty


def test_the_best_that_fits_is_measured_on_windows_that_did_not_choose_it():
    part = rows().assign(amount=lambda table: table["bytes"].astype(str))
    found = claims.best_that_fits(part, 2)
    assert (found["family"], found["bytes"]) == ("uniform bits", 2)
    best = part[(part["family"] == "uniform bits") & (part["bytes"] == 2)]
    assert found["value"] == pytest.approx(best[["w1", "w3", "w5", "w7"]].to_numpy().mean())
    assert found["low"] < found["value"] < found["high"]
    assert claims.best_that_fits(part, 0.1) == {}


def test_estimates_in_a_clause():
    rows = pd.DataFrame(
        {"model": ["6L", "12L", "24L"], "value": [1.2, np.nan, -2], "low": [1.1, 0, np.nan], "high": 1.3}
    )
    assert claims.by_model(rows, "nats") == "+1.200 nats (95 %: +1.100 to +1.300) on 6L, −2.000 nats on 24L"
    assert claims.by_model(rows.head(0), "nats") == "not measured"


def test_random_orders_that_do_better_are_counted():
    rows = pd.DataFrame({"model": "6L", "family": ["by LIM", *["random"] * 3], "loss": [1.0, 0.5, 1.5, 0.9]})
    both = pd.concat([rows, rows[:1].assign(model="12L")])
    assert claims.random_ahead(both, "by LIM", "random") == "2 of 3 on 6L"
