import csv
import inspect
import math
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
from layerwise import claims, stats
from layerwise.claims.grid import Grid
from layerwise.claims.verdict import as_much_as, no_worse
from layerwise.stats import Estimate

ROOT = Path(__file__).parents[1]
CELLS = [(0.2, 0.0), (0.2, 0.1), (0.3, 0.0), (0.3, 0.1), (0.3, 0.2)]
BEST = (0.3, 0.1)


def tidy(values, cells=CELLS, model="embedded/6L", unit="window", constant=0.1):
    """Rows of `values` `[cells, draws, units]`."""
    values = np.asarray(values)
    places = np.indices(values.shape).reshape(3, -1)
    mean, base = np.array(cells)[places[0]].T
    columns = {"mean": mean, "base": base, "draw": places[1], unit: places[2], "difference": values.ravel()}
    columns["loss"] = columns["difference"] + constant  # of the constant slices, nats above the dense model
    return pd.DataFrame({"model": model, **columns})


def noise(rng, draw=0.004, window=0.03, rest=0.01, draws=5, windows=40, cells=5):
    """Differences without any effect `[cells, draws, windows]`, with standard deviations in nats.

    Draws and windows move the settings of a grid half together and half each on its own.
    """
    found = rest * rng.normal(size=(cells, draws, windows))
    for deviation, shape in ((draw, (draws, 1)), (window, (1, windows))):
        found = found + deviation * math.sqrt(0.5) * (rng.normal(size=(1, *shape)) + rng.normal(size=(cells, *shape)))
    return found


def shifted(values, shift, cell=BEST):
    """The same with `shift` nats added to one cell."""
    return values + shift * (np.arange(len(CELLS)) == CELLS.index(cell))[:, None, None]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The two rules.


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1, 3, "holds"),
        (-0.9, 3, "holds"),  # perhaps worse, but by less than the margin
        (-0.9, -0.5, "holds"),
        (-1.1, 3, "inconclusive"),
        (-3, -0.9, "inconclusive"),
        (-3, -1.1, "doesn't hold"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_no_worse_than_a_margin_of_one(low, high, verdict):
    assert no_worse(Estimate((low + high) / 2, low, high), 1, "%")[0] == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (8, 9, "holds"),
        (6, 8, "holds"),
        (0.1, 8, "holds"),
        (-0.1, 8, "inconclusive"),
        (-9, 9, "inconclusive"),
        (3, 6.9, "doesn't hold"),  # a gain, but not as much
        (-1, 1, "doesn't hold"),
        (-3, -2, "doesn't hold"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_as_much_as_seven(low, high, verdict):
    assert as_much_as(Estimate((low + high) / 2, low, high), 7, "%")[0] == verdict


# S2: the best setting of a grid.


def test_s2_holds_where_perplexity_falls_by_as_much(rng):
    verdict = lw.claims.s2(tidy(shifted(noise(rng), math.log(0.92))))
    assert verdict.verdict == "holds" and verdict.claim == "S2" and verdict.unit == "%"
    assert verdict.low < -8 < verdict.high < 0
    assert "SP 30 %, SB 10 %, in 10 of 10 choices" in verdict.reason  # 4 draws, 2 halves of the windows
    assert "of 5 settings, 1 are better and 0 worse at 95 %, 1 and 0 after Holm's correction" in verdict.reason


def test_s2_does_not_hold_where_it_falls_by_less(rng):
    verdict = lw.claims.s2(tidy(shifted(noise(rng, window=0.01), math.log(0.97))))
    assert verdict.verdict == "doesn't hold" and -7 < verdict.low < -3 < verdict.high < 0


def test_s2_does_not_hold_where_nothing_falls(rng):
    verdict = lw.claims.s2(tidy(noise(rng)))
    assert verdict.verdict == "doesn't hold" and verdict.low < 0 < verdict.high


def test_s2_cannot_tell_from_few_noisy_windows(rng):
    verdict = lw.claims.s2(tidy(shifted(noise(rng, window=0.2, windows=6), -0.03)))
    assert verdict.verdict == "inconclusive" and verdict.low < -7 and verdict.high > 0


def test_the_best_setting_is_measured_on_data_that_did_not_choose_it():
    # One lucky window makes the first setting the best of all data, -0.0125 against -0.01. Only where draw 0 and the
    # even windows choose does it win; there, on draw 1 and the odd windows, it is worth nothing.
    lucky = np.zeros((2, 4))
    lucky[0, 0] = -0.1
    values = np.stack([lucky, np.full((2, 4), -0.01)])
    verdict = lw.claims.s2(tidy(values, cells=[(0.3, 0.0), (0.3, 0.1)]))
    assert verdict.effect == pytest.approx(100 * math.expm1((6 * -0.01 + 2 * 0) / 8))
    assert "SB 10 %, in 3 of 4 choices" in verdict.reason


def test_the_best_of_many_settings_without_effect_is_no_finding():
    rng = np.random.default_rng(1)
    runs, honest, naive = 300, [], []
    for _ in range(runs):
        values = noise(rng, rest=0.002, windows=20, cells=20)
        honest.append(Grid(pd.DataFrame(), values).held_out_best()[0])
        naive.append(stats.crossed_mean(min(values, key=np.mean)))
    gains = np.mean([best.high < 0 for best in honest])  # "holds" asks for that, and for more
    assert gains < 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert np.mean([best.high < 0 for best in naive]) > 0.1  # what choosing on the same data would have given
    values = [best.value for best in honest]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(runs)
    assert np.mean([best.value for best in naive]) < -0.005


@pytest.mark.parametrize("shift", [-0.03, -0.3])
def test_the_interval_covers_the_effect_of_the_settings_chosen(shift):
    rng = np.random.default_rng(2)
    runs, covered = 300, 0
    for _ in range(runs):
        best, chosen = Grid(pd.DataFrame(), shifted(noise(rng, draw=0.02, windows=20), shift)).held_out_best()
        effect = shift * np.mean([cell == CELLS.index(BEST) for cell in chosen])
        covered += best.low <= effect <= best.high
    assert covered / runs > 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)


# S1: the mean over settings.


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.05, "holds"), (0.0, "holds"), (0.01, "inconclusive"), (0.05, "doesn't hold")]
)
def test_s1_compares_with_the_margin(rng, shift, verdict):
    found = lw.claims.s1(tidy(noise(rng, window=0.01, windows=100, draw=0.001) + shift))
    assert found.verdict == verdict and found.low < 100 * math.expm1(shift) < found.high


def test_s1_cannot_tell_from_few_noisy_windows(rng):
    assert lw.claims.s1(tidy(noise(rng, window=0.2, windows=6))).verdict == "inconclusive"


def test_s1_takes_its_margin_from_the_reader(rng):
    rows = tidy(noise(rng) + math.log(1.03))
    assert [lw.claims.s1(rows, margin=margin).verdict for margin in (1, 6)] == ["doesn't hold", "holds"]


def test_s1_weighs_budgets_alike_however_many_bases_they_have(rng):
    values = noise(rng)
    by_budget = [values[:2].mean(), values[2:].mean()]
    assert lw.claims.s1(tidy(values)).effect == pytest.approx(100 * math.expm1(np.mean(by_budget)))


@pytest.mark.parametrize("claim", [claims.s1, claims.s2])
def test_budgets_that_wreck_both_models_do_not_count(rng, claim):
    values = noise(rng)
    rows = tidy(values)
    rows["loss"] += 0.7 * (rows["mean"] == 0.2)  # constant slices there have 2.2 times the dense perplexity
    found = claim(rows)
    assert f"{found.effect:.6f}" == f"{claim(tidy(values[2:], cells=CELLS[2:])).effect:.6f}"
    assert "2 settings at which constant slices more than double perplexity left out" in found.reason
    nothing = claim(tidy(values, constant=0.7))
    assert nothing.verdict == "inconclusive" and "At every mean" in nothing.reason and "nan" not in str(nothing)


def test_s1_needs_five_draws_of_calibration_text_and_ten_on_tasks(rng):
    for claim, rows in ((claims.s1, tidy(noise(rng, draws=4))), (claims.s1_tasks, by_item(rng, 0.2, draws=9))):
        found = claim(rows)
        assert found.verdict == "inconclusive" and "not decided here, by" in found.reason and np.isfinite(found.low)


def test_s1_is_not_called_true_at_its_margin():
    rng = np.random.default_rng(3)
    runs = 80
    found = [lw.claims.s1(tidy(noise(rng, windows=20) + math.log(1.01))).verdict for _ in range(runs)]
    allowed = 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)
    assert found.count("holds") / runs < allowed and found.count("doesn't hold") / runs < allowed


def test_constant_slices_against_themselves_do_not_count(rng):
    values = noise(rng)
    own = [(0.2, 0.2), (0.3, 0.1 + 0.2)]  # the last differs from its mean in the last bit
    with_own = tidy(np.concatenate([values, np.zeros((2, 5, 40))]), cells=CELLS + own)
    for claim in (lw.claims.s1, lw.claims.s2):
        assert str(claim(with_own)) == str(claim(tidy(values)))


# S1 on tasks.


def by_item(rng, gain, items=400, draws=10):
    """Items of two tasks of which a tenth turns right or wrong, and a share `gain` turns right in the best cell."""
    turns = rng.choice([-1, 0, 0, 0, 0, 0, 0, 0, 0, 1], size=(len(CELLS), draws, items))
    lifted = shifted(np.zeros(turns.shape), 1) * (rng.uniform(size=turns.shape) < gain)
    rows = tidy(np.minimum(turns + lifted, 1), unit="item")
    return rows.assign(task=np.where(rows["item"] < items // 2, "sums", "uses"), item=rows["item"] % (items // 2))


def test_s1_on_tasks_holds_where_the_best_setting_gains_as_much(rng):
    rows = by_item(rng, gain=0.2)
    best = rows[(rows["mean"] == BEST[0]) & (rows["base"] == BEST[1])]
    verdict = lw.claims.s1_tasks(rows)
    assert verdict.verdict == "holds" and verdict.claim == "S1 on tasks" and verdict.unit == "points"
    assert verdict.effect == pytest.approx(100 * best["difference"].mean()) and verdict.low > 5
    assert "1 and 0 after Holm's correction" in verdict.reason


@pytest.mark.parametrize("gain", [0, 0.02])
def test_s1_on_tasks_does_not_hold_where_less_is_gained(rng, gain):
    assert lw.claims.s1_tasks(by_item(rng, gain, items=4000)).verdict == "doesn't hold"


def test_s1_on_tasks_cannot_tell_from_few_items(rng):
    assert lw.claims.s1_tasks(by_item(rng, gain=0.05, items=12)).verdict == "inconclusive"


# Each setting on its own.


def test_settings_are_intervals_of_relative_perplexity_with_corrected_p_values(rng):
    values = shifted(noise(rng), -0.15)
    found = lw.claims.settings(pd.concat([tidy(values), tidy(values[:2], cells=CELLS[:2], model="embedded/12L")]))
    assert list(found.columns) == ["model", "mean", "base", "value", "low", "high", "p"]
    assert list(found["model"]) == ["embedded/6L"] * 5 + ["embedded/12L"] * 2
    assert [*zip(found["mean"], found["base"], strict=True)] == CELLS + CELLS[:2]
    expected = np.expm1([stats.crossed_mean(one) for one in values])
    np.testing.assert_allclose(found[["value", "low", "high"]][:5], expected)
    p = [stats.crossed_p_value(one) for one in values]
    np.testing.assert_allclose(found["p"], [*stats.holm(p), *stats.holm(p[:2])])
    assert (found["p"] < 0.05).tolist() == [False, False, False, True, False, False, False]


def test_findings_among_settings_without_effect_are_rare():
    rng = np.random.default_rng(4)
    runs = 150
    alone, corrected = zip(*(Grid(pd.DataFrame(), noise(rng, windows=20)).p_values() for _ in range(runs)), strict=True)
    assert np.mean(np.min(corrected, axis=1) < 0.05) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_what_is_found_is_counted_before_and_after_the_correction(rng):
    values = noise(rng, draw=0.001, window=0.02, rest=0.001, draws=4)
    values -= values.mean(axis=(1, 2), keepdims=True)
    rows = tidy(values + np.array([0.2, -0.006, 0, 0, 0])[:, None, None])
    assert "1 are better and 1 worse at 95 %, 0 and 1 after Holm's correction" in lw.claims.s1(rows).reason


# Too little, and wrong.


@pytest.mark.parametrize("claim", ["s1", "s2", "s1_tasks"])
@pytest.mark.parametrize(("draws", "units"), [(1, 40), (3, 1)])
def test_a_single_draw_or_window_says_nothing(rng, claim, draws, units):
    rows = tidy(noise(rng, draws=draws, windows=units) - 0.5)
    verdict = getattr(lw.claims, claim)(rows.assign(task="uses", item=rows["window"]))
    assert verdict.verdict == "inconclusive" and np.isnan([verdict.low, verdict.high]).all()
    assert "too few, 2 of each are needed" in verdict.reason and "nan" not in str(verdict)


ROWS = tidy(noise(np.random.default_rng(0), windows=4, draws=4))


@pytest.mark.parametrize("claim", ["s1", "s2", "settings"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.drop(columns=["window", "base"]), "the rows lack base"),
        (ROWS.drop(index=22), "mean 0.2, base 0.1, draw 1, window 2 has no finite difference"),
        (ROWS.assign(difference=np.inf), "mean 0.2, base 0.0, draw 0, window 0 has no finite difference"),
        (pd.concat([ROWS, ROWS[17:18]]), "mean 0.2, base 0.1, draw 0, window 1 is there more than once"),
        (ROWS.assign(base=ROWS["mean"]), "no row has a base below its mean"),
    ],
)
def test_rows_that_are_no_grid_say_what_is_wrong(claim, rows, message):
    with pytest.raises(ValueError, match=message):
        getattr(lw.claims, claim)(rows)


def test_a_verdict_is_on_one_model():
    two = pd.concat([ROWS, ROWS.assign(model="embedded/12L")])
    with pytest.raises(ValueError, match="on one model, but the rows are of embedded/6L, embedded/12L"):
        lw.claims.s2(two)


# What is shown.


def test_a_verdict_reads_as_text_and_as_html(rng):
    verdict = lw.claims.s2(tidy(noise(rng), model="<mine>"))
    assert str(verdict) == repr(verdict) == f"S2 on <mine>: {verdict.verdict}. {verdict.reason}"
    assert verdict.reason.endswith(".") and f"{verdict.effect:+.2f}".replace("-", "−") in verdict.reason
    page = verdict._repr_html_()
    assert "&lt;mine&gt;" in page and "<mine>" not in page and verdict.statement in page


def test_verdicts_are_told_in_sentences():
    def verdict(found, *models):
        rows = pd.DataFrame({"model": models})
        return lw.claims.Verdict("S1", "", found, 0.0, 0.0, 0.0, "%", "For a reason.", rows)

    verdicts = [verdict("inconclusive", "6L"), verdict("holds", "12L"), verdict("holds", "24L")]
    assert lw.claims.summary(verdicts) == "holds on 12L, 24L; is inconclusive on 6L"
    assert lw.claims.told(verdicts[:2]) == "On 6L it is inconclusive. For a reason. On 12L it holds. For a reason."
    of_all = verdict("doesn't hold", "6L", "12L", "24L", "24L")
    assert lw.claims.summary([of_all]) == "doesn't hold on 3 models together"
    assert lw.claims.told([of_all]) == "On 3 models together it doesn't hold. For a reason."
    assert lw.claims.summary([]) == "was not judged"


def test_verdicts_make_a_table(rng):
    rows = tidy(noise(rng))
    verdicts = [lw.claims.s1(rows), lw.claims.s2(rows)]
    found = lw.claims.table(verdicts)
    assert list(found["claim"]) == ["S1", "S2"] and set(found["model"]) == {"embedded/6L"}
    assert found["effect"].tolist() == [verdict.effect for verdict in verdicts]
    assert verdicts[0].rows is rows


def test_there_are_three_verdicts():
    with pytest.raises(ValueError, match="'holds', \"doesn't hold\", 'inconclusive', not 'maybe'"):
        lw.claims.Verdict("S1", "", "maybe", 0.0, 0.0, 0.0, "%", "", pd.DataFrame())


# What the papers report.


@pytest.fixture(scope="module")
def papers():
    with open(ROOT / "results" / "papers.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_the_papers_report_has_a_source_on_each_line(papers):
    assert list(papers[0]) == ["claim", "paper", "model", "setting", "quantity", "value", "unit", "source"]
    for line in papers:
        assert all(line[name] for name in ("claim", "paper", "quantity", "unit", "source"))
        assert math.isfinite(float(line["value"])) and line["paper"] in ("arXiv 2411.03513", "arXiv 2406.17415")


@pytest.mark.parametrize(("claim", "function"), [("S1", "s1_tasks"), ("S2", "s2")])
def test_claims_ask_for_what_the_papers_report(papers, claim, function):
    (reported,) = (float(line["value"]) for line in papers if line["claim"] == claim)
    assert inspect.signature(getattr(lw.claims, function)).parameters["claimed"].default == reported


def test_differences_are_from_constant_slices_of_the_same_mean_draw_and_unit():
    keys = pd.MultiIndex.from_product(
        [["constant", "LR"], [0.2, 0.3], [0, 1], range(3)], names=["plan", "mean", "draw", "window"]
    )
    rows = keys.to_frame(index=False).assign(model="6L", loss=np.arange(24.0) ** 2)
    found = claims.against_constant(rows)
    assert set(found["plan"]) == {"LR"} and len(found) == 12
    own = found.query("mean == 0.3 and draw == 1 and window == 2")
    assert own["difference"].item() == 23**2 - 11**2
    items = rows.rename(columns={"window": "item", "loss": "correct"}).assign(task="sums")
    assert (
        claims.against_constant(items, "correct", ("task", "item"))["difference"].tolist()
        == found["difference"].tolist()
    )


def test_constant_slicing_must_have_what_others_have():
    rows = pd.DataFrame({"model": "6L", "plan": ["constant", "LR", "LR"], "mean": 0.3, "draw": 0, "loss": 1.0})
    rows["window"] = [0, 0, 1]
    with pytest.raises(ValueError, match="the plan 'constant' needs one row for each model, mean, draw, window"):
        claims.against_constant(rows)
    with pytest.raises(ValueError, match="the plan 'constant' needs one row"):
        claims.against_constant(pd.concat([rows[:1], rows[:2]]))


def test_changes_are_of_perplexity_over_draws_and_windows():
    windows = pd.MultiIndex.from_product([["6L", "12L"], ["LR", "ramp"], [0, 1], range(3)])
    rows = windows.to_frame(index=False, name=["model", "plan", "draw", "window"])
    rng = np.random.default_rng(0)
    rows["difference"] = rng.normal(0, 0.01, len(rows)) - 0.05 * (rows["plan"] == "LR")
    found = claims.changes(rows, ["model", "plan"])
    values = rows.query("model == '12L' and plan == 'LR'")["difference"].to_numpy().reshape(2, 3)
    expected = np.expm1(lw.stats.crossed_mean(values))
    assert found.iloc[2].tolist() == ["12L", "LR", *expected]
    alone = claims.changes(rows[rows["draw"] == 0], ["model", "plan"])
    assert alone["low"].isna().all()
    of_model = pd.DataFrame(
        {"model": ["6L", "12L"], "value": [-0.041, 0.02], "low": [-0.062, None], "high": [-0.02, None]}
    )
    assert claims.changes_by_model(of_model) == "−4.1 % (−6.2 to −2.0) on 6L, +2.0 % on 12L"
