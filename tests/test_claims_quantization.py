import csv
import math
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
from layerwise import stats
from layerwise.claims import block_orders, quantization
from layerwise.claims.verdict import CANNOT_TELL, DOES_NOT, HOLDS, all_of, more_than_luck
from layerwise.stats import Estimate
from pandas.testing import assert_frame_equal

L = 8
DRAWS, WINDOWS = 19, 24  # 19 draws are what luck needs to be ruled out
BLOCK_0_HIGH = "random, block 0 high"
MODEL = "embedded/6L"
SETTING = {"model": MODEL, "quantizer": "rtn", "group": "64", "levels": "4→2"}


def tidy(losses, lowered=None, blocks=L, **setting):
    """Rows of `losses`: order -> `[draws, K, windows]`, in nats above the dense model."""
    parts = []
    for order, values in losses.items():
        draws, K, windows = np.shape(values)
        draw, at = np.indices((draws, K)).reshape(2, -1)
        columns = {"order": order, "draw": draw, "lowered": np.asarray(range(K) if lowered is None else lowered)[at]}
        columns |= {"blocks": blocks, "bytes": 1000 - at}
        found = pd.DataFrame(np.reshape(values, (-1, windows)), columns=[f"w{i}" for i in range(windows)])
        parts.append(pd.concat([pd.DataFrame(columns), found], axis=1))
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(**SETTING | setting)


def in_order(harm, orders, rng, noise=0.01, windows=WINDOWS):
    """Losses `[draws, K, windows]` of lowering blocks whose damage adds up: `harm` `[L]` by orders `[draws, L]`.

    A window scales all damage by a factor of its own; noise has its standard deviation in nats.
    """
    harm, orders = np.asarray(harm), np.atleast_2d(orders)
    lost = np.concatenate([np.zeros((len(orders), 1)), np.cumsum(harm[orders], axis=1)], axis=1)
    scale = np.exp(0.3 * rng.normal(size=windows) - 0.045)
    found = lost[..., None] * scale + noise * rng.normal(size=(*lost.shape, windows))
    found[:, [0, -1]] = found[:1, [0, -1]]  # none and all are one plan, whatever the order
    return found


def sweep(rng, harm, score, noise=0.01, draws=DRAWS):
    """Losses of the order of a score and of random orders with and without block 0, on the same windows."""
    L = len(harm)
    drawn = [rng.permutation(L) for _ in range(draws)]
    high = [np.append(1 + rng.permutation(L - 1), 0) for _ in range(draws)]
    found = in_order(harm, [np.argsort(score), *drawn, *high], rng, noise)
    found[:, [0, -1]] = found[:1, [0, -1]]
    return {"LIM": found[:1], "random": found[1 : 1 + draws], BLOCK_0_HIGH: found[1 + draws :]}


HARM = np.array([0.60, 0.08, 0.01, 0.02, 0.03, 0.04, 0.09, 0.13])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def rows(rng):
    return tidy(sweep(rng, HARM, HARM))


# The share within a level.


def falling(*quality, windows=5):
    """Rows of one order without noise, with these qualities at 0, 1, … lowered blocks."""
    losses = -np.log(quality)
    return tidy({"LIM": np.tile(losses[None, :, None], (1, 1, windows))}, blocks=len(quality) - 1)


@pytest.mark.parametrize(
    ("quality", "share"),
    [
        ((1, 0.95, 0.85, 0.6, 0.5), (1 + 0.5) / 4),  # half-way from 95 to 85 %
        ((1, 0.95, 0.90, 0.6, 0.5), 2 / 4),  # on the level is within it
        ((1, 0.85, 0.95, 0.95, 0.5), (2 / 3) / 4),  # it leaves at once, though it comes back
        ((1.02, 1.01, 0.99, 0.98, 0.95), 1),
        ((0.89, 0.88, 0.95, 0.7, 0.5), 0),
    ],
)
def test_the_share_is_where_quality_first_leaves_the_level(quality, share):
    found = lw.claims.share_within(falling(*quality), "LIM")
    assert found == pytest.approx((share, share, share), abs=1e-9)


def test_the_share_depends_on_the_level_and_on_what_was_measured():
    rows = falling(1, 0.96, 0.90, 0.7, 0.5)
    assert lw.claims.share_within(rows, "LIM", level=0.95).value == pytest.approx((1 + 1 / 6) / 4)
    assert lw.claims.share_within(rows[rows["lowered"].isin([0, 4])], "LIM", level=0.95).value == pytest.approx(0.1)


def test_the_share_of_random_orders_is_the_mean_of_their_shares():
    quality = np.array([[1, 0.95, 0.5], [1, 0.8, 0.5]])
    rows = tidy({"random": np.tile(-np.log(quality)[..., None], (1, 1, 4))}, blocks=2)
    by_draw = [(1 + 0.05 / 0.45) / 2, 0.5 / 2]
    found = lw.claims.share_within(rows, "random")
    assert found.value == pytest.approx(np.mean(by_draw))
    assert (found.low, found.high) == pytest.approx((by_draw[1], by_draw[0]))  # two draws: all that they span


def test_ends_are_shared_between_orders(rows):
    ends, own = rows["lowered"].isin([0, L]), rows["order"] == "LIM"
    fewer = rows[~ends | own]  # equal plans were run once
    for order in ("LIM", "random"):
        assert lw.claims.share_within(fewer, order) == lw.claims.share_within(rows, order)


def test_shares_have_a_row_per_setting_and_order(rows):
    both = pd.concat([rows, rows.assign(quantizer="hqq", levels="8→4")])
    found = lw.claims.shares(both)
    assert list(found.columns) == ["model", "quantizer", "group", "levels", "order", "value", "low", "high"]
    assert len(found) == 2 * 3 and list(found["order"][:3]) == ["LIM", "random", BLOCK_0_HIGH]
    expected = lw.claims.share_within(rows, "random")
    assert tuple(found.loc[1, ["value", "low", "high"]]) == expected == tuple(found.loc[4, ["value", "low", "high"]])


def test_the_interval_of_a_share_covers_the_truth():
    rng = np.random.default_rng(1)
    runs, inside = 200, {"LIM": 0, "random": 0}
    everyone = [rng.permutation(L) for _ in range(4000)]
    lost = np.concatenate([np.zeros((4000, 1)), np.cumsum(HARM[np.array(everyone)], axis=1)], axis=1)
    quality_share = block_orders.share_left(np.arange(L + 1) / L, lost, 0.9)
    own = np.append(0, np.cumsum(np.sort(HARM)))
    truth = {"LIM": block_orders.share_left(np.arange(L + 1) / L, own, 0.9), "random": quality_share.mean()}
    for _ in range(runs):
        read = block_orders.Sweep(SETTING, L, np.arange(L + 1), sweep(rng, HARM, HARM, noise=0.002))
        for order in inside:
            found = read.shares(order, 0.9).estimate
            inside[order] += found.low <= truth[order] <= found.high
    for covered in inside.values():
        assert covered / runs > 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)


# Q1.


def test_q1_holds_where_the_score_knows_the_damage(rows):
    verdict = lw.claims.q1(rows)
    assert verdict.verdict == HOLDS and verdict.claim == "Q1" and verdict.unit == "points"
    own, others = (lw.claims.share_within(rows, order).value for order in ("LIM", "random"))
    assert verdict.effect == pytest.approx(100 * (own - others)) and 0 < verdict.low < verdict.effect < verdict.high
    assert f"until {100 * own:.0f} % (95 %:" in verdict.reason and "rtn, group 64, 4→2" in verdict.reason
    assert "only 5 % of orders without information" in verdict.reason


def test_q1_does_not_hold_where_the_order_is_reversed(rng):
    verdict = lw.claims.q1(tidy(sweep(rng, HARM, -HARM)))
    assert verdict.verdict == DOES_NOT and verdict.high < 0 and "25 % is not reached" in verdict.reason


def test_beyond_block_0_nothing_is_left_of_a_score_that_knows_no_other_block(rng):
    harm = np.array([1.0, *[0.02] * (L - 1)])
    rows = tidy(sweep(rng, harm, np.arange(L) == 0, noise=0.001))
    assert lw.claims.q1(rows).verdict == HOLDS  # no random order here happens to lower block 0 last
    beyond = lw.claims.q1(rows, rival=BLOCK_0_HIGH)
    assert beyond.verdict == DOES_NOT and beyond.claim == "Q1 beyond block 0"
    assert abs(beyond.effect) < 2 and "as much as 5 points is ruled out" in beyond.reason


def test_q1_does_not_hold_where_fewer_than_a_quarter_can_be_lowered(rng):
    harm = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.2, 0.06])
    verdict = lw.claims.q1(tidy(sweep(rng, harm, harm, noise=0.001)))
    assert verdict.verdict == DOES_NOT and verdict.low > 0 and "25 % is not reached" in verdict.reason


@pytest.mark.parametrize(
    ("shift", "factor", "why"),
    [(0.0, 0.05, "with all blocks at the lower width quality is"), (0.3, 1, "with all blocks at the higher width")],
)
def test_q1_cannot_tell_where_no_order_can_leave_the_level(rng, shift, factor, why):
    verdict = lw.claims.q1(tidy({name: shift + v for name, v in sweep(rng, factor * HARM, HARM, noise=0.001).items()}))
    assert verdict.verdict == CANNOT_TELL and verdict.effect == 0
    assert why in verdict.reason and "orders are not put to the test" in verdict.reason


def test_q1_needs_nineteen_draws_to_rule_out_luck(rng):
    verdict = lw.claims.q1(tidy(sweep(rng, HARM, HARM, draws=18)))
    assert verdict.verdict == CANNOT_TELL and verdict.low > 0
    assert "5.3 % of orders without information" in verdict.reason


@pytest.mark.parametrize(("draws", "windows"), [(1, WINDOWS), (DRAWS, 1)])
def test_q1_cannot_tell_from_one_draw_or_one_window(rng, draws, windows):
    losses = {name: values[:, :, :windows] for name, values in sweep(rng, HARM, HARM, draws=draws).items()}
    verdict = lw.claims.q1(tidy(losses))
    assert verdict.verdict == CANNOT_TELL and np.isnan([verdict.low, verdict.high]).all()
    assert "no interval" in verdict.reason and "nan" not in str(verdict)


def test_an_order_that_knows_nothing_is_rarely_called_useful():
    rng = np.random.default_rng(2)
    runs, holds, above = 150, {"Q1": 0, "Q5": 0}, 0
    for _ in range(runs):
        harm = rng.gamma(1, 0.08, L)
        score = rng.normal(size=L)
        rows = tidy({name: v for name, v in sweep(rng, harm, score).items() if name != BLOCK_0_HIGH})
        verdicts = [lw.claims.q1(rows), lw.claims.q5(*importance(score, harm, rng), rows)]
        for verdict in verdicts:
            holds[verdict.claim] += verdict.verdict == HOLDS
        above += verdicts[0].low > 0
    for count in holds.values():
        assert count / runs < 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert above / runs > 0.15, "without a look at luck, the interval alone would have called it useful"


# Q5.


def importance(score, harm, rng, noise=0.1, windows=30):
    """Rows of a score and of measured damage, window by window."""
    blocks = np.arange(len(score))
    scores = pd.DataFrame({"model": MODEL, "score": "LIM", "block": blocks, "value": score})
    block, window = np.indices((len(score), windows)).reshape(2, -1)
    value = np.asarray(harm)[block] * np.exp(noise * rng.normal(size=block.shape))
    return scores, pd.DataFrame({"model": MODEL, "block": block, "window": window, "value": value})


def test_q5_holds_where_the_score_knows_the_damage(rng, rows):
    scores, damage = importance(HARM, HARM, rng)
    verdict = lw.claims.q5(scores, damage, rows)
    assert verdict.verdict == HOLDS and verdict.claim == "Q5" and verdict.effect > 0.9 and verdict.low > 0
    matrix = damage.pivot(index="block", columns="window", values="value").to_numpy()
    assert verdict.effect == stats.rank_correlation(HARM, matrix, over=("windows",)).value
    without = stats.rank_correlation(HARM[1:], matrix[1:], over=("windows",)).value
    assert f"over all but block 0 it is {without:+.2f}" in verdict.reason
    beyond = lw.claims.q5(scores, damage, rows, rival=BLOCK_0_HIGH)
    assert beyond.claim == "Q5 beyond block 0" and beyond.effect == without and beyond.verdict == HOLDS


def test_q5_does_not_hold_where_the_order_is_reversed(rng):
    verdict = lw.claims.q5(*importance(-HARM, HARM, rng), tidy(sweep(rng, HARM, -HARM)))
    assert verdict.verdict == DOES_NOT and verdict.high < 0


def test_q5_needs_the_sweep_as_well_as_the_correlation(rng):
    verdict = lw.claims.q5(*importance(HARM, HARM, rng), tidy(sweep(rng, HARM, -HARM)))
    assert verdict.verdict == DOES_NOT and verdict.low > 0


def test_q5_cannot_tell_from_one_window_of_damage(rng, rows):
    verdict = lw.claims.q5(*importance(HARM, HARM, rng, windows=1), rows)
    assert verdict.verdict == CANNOT_TELL and np.isnan(verdict.low) and "nan" not in str(verdict)


def test_q5_reads_one_model_and_score_of_many(rng, rows):
    scores, damage = importance(HARM, HARM, rng)
    more = pd.concat([scores, scores.assign(score="ZD", value=0.0), scores.assign(model="other", value=1.0)])
    others = pd.concat([damage, damage.assign(model="other", value=-damage["value"])])
    verdict = lw.claims.q5(more.assign(quantizer="not read"), others.assign(quantizer="not read"), rows)
    assert str(verdict) == str(lw.claims.q5(scores, damage, rows))
    for name, part in {"sweep": rows, "scores": scores, "damage": damage}.items():
        used = verdict.rows[verdict.rows["table"] == name].drop(columns="table").dropna(axis="columns")
        assert_frame_equal(used[part.columns].reset_index(drop=True), part.reset_index(drop=True), check_dtype=False)
    assert set(verdict.rows["table"]) == {"sweep", "scores", "damage"}
    assert set(verdict.rows["quantizer"].dropna()) == {SETTING["quantizer"]}
    with pytest.raises(ValueError, match="same for all blocks: that is no order"):
        lw.claims.q5(more.assign(score="LIM").query("model == 'other'").assign(model=MODEL), damage, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, d: (s[:-1], d), "LIM of embedded/6L must cover the blocks 0 to 7"),
        (lambda s, d: (s.assign(score="ZD"), d), "LIM of embedded/6L must cover the blocks 0 to 7"),
        (lambda s, d: (pd.concat([s, s]), d), "LIM of embedded/6L has more than one row for a block"),
        (lambda s, d: (s, d[d["block"] > 0]), "damage of embedded/6L must cover the blocks 0 to 7"),
        (lambda s, d: (s, d.drop(index=33)), "damage of embedded/6L must have a finite value for every block"),
        (lambda s, d: (s, pd.concat([d, d])), "damage of embedded/6L has more than one row for a block and window"),
    ],
)
def test_q5_needs_every_block_once(rng, rows, change, message):
    with pytest.raises(ValueError, match=message):
        lw.claims.q5(*change(*importance(HARM, HARM, rng)), rows)


# Q6.


def by_technique(rng, scores, **noise):
    """Rows of one sweep per technique, in which the order of LIM is that of the given score."""
    return pd.concat([tidy(sweep(rng, HARM, score, **noise), quantizer=name) for name, score in scores.items()])


def test_gains_are_the_mean_loss_over_the_sweep_that_the_order_saves(rng):
    losses = sweep(rng, HARM, HARM)
    found = lw.claims.gains(tidy(losses))
    saved = np.trapezoid(losses["random"] - losses["LIM"], dx=1 / L, axis=1)
    assert list(found.columns) == ["model", "levels", "quantizer", "group", "value", "low", "high", "p"]
    assert tuple(found.loc[0, ["value", "low", "high"]]) == pytest.approx(stats.crossed_mean(saved))
    assert found.loc[0, "p"] == pytest.approx(stats.crossed_p_value(saved))


def test_gains_compare_techniques_at_the_plans_that_all_have(rng):
    losses = sweep(rng, HARM, HARM)
    quartiles = [0, 2, 4, 6, 8]
    few = {name: values[:, quartiles] for name, values in losses.items()}
    rows = pd.concat([tidy(losses), tidy(few, lowered=quartiles, quantizer="gptq")])
    found = lw.claims.gains(rows)
    assert found["value"][0] == found["value"][1] and list(found["quantizer"]) == ["rtn", "gptq"]
    alone = lw.claims.gains(tidy(few, lowered=quartiles))
    assert alone["value"][0] == found["value"][0] and found["p"][0] == pytest.approx(2 * alone["p"][0])


def test_q6_holds_where_the_order_gains_on_every_technique(rng):
    verdict = lw.claims.q6(by_technique(rng, {"rtn": HARM, "quanto": HARM, "hqq": HARM}))
    assert verdict.verdict == HOLDS and verdict.claim == "Q6" and verdict.low > 0
    assert "better than random on 3 of 3 techniques, worse on 0" in verdict.reason


def test_q6_does_not_hold_where_the_order_gains_on_one_and_loses_on_another(rng):
    verdict = lw.claims.q6(by_technique(rng, {"rtn": HARM, "quanto": HARM, "hqq": -HARM}))
    assert verdict.verdict == DOES_NOT and verdict.high < 0
    assert "on 2 of 3 techniques, worse on 1" in verdict.reason and "gains least by hqq" in verdict.reason


def test_q6_cannot_tell_from_noise_or_from_one_technique(rng):
    assert lw.claims.q6(by_technique(rng, {"rtn": HARM})).verdict == CANNOT_TELL
    noisy = by_technique(rng, {"rtn": HARM, "hqq": HARM}, draws=2)
    assert lw.claims.q6(noisy).verdict == CANNOT_TELL
    single = lw.claims.q6(by_technique(rng, {"rtn": HARM, "hqq": HARM}, draws=1))
    assert single.verdict == CANNOT_TELL and "nan" not in single.reason


def test_q6_finds_nothing_where_orders_are_alike():
    rng = np.random.default_rng(3)
    runs, found = 100, []
    for _ in range(runs):
        losses = 0.1 * rng.normal(size=(2, 1 + DRAWS, 5, WINDOWS))
        parts = [
            tidy({"LIM": one[:1], "random": one[1:]}, lowered=[0, 2, 4, 6, 8], quantizer=f"q{i}")
            for i, one in enumerate(losses)
        ]
        found.append(lw.claims.q6(pd.concat(parts)).verdict)
    assert runs - found.count(CANNOT_TELL) <= 2  # both would have to differ from 0


# The rules.


@pytest.mark.parametrize(
    ("low", "high", "luck", "verdict"),
    [
        (1, 9, 0.05, HOLDS),
        (6, 9, 0.05, HOLDS),
        (1, 9, 0.06, CANNOT_TELL),
        (1, 3, 0.01, DOES_NOT),  # a gain, but too small to count
        (-1, 3, 0.01, DOES_NOT),
        (-1, 9, 0.01, CANNOT_TELL),
        (-9, -1, 0.9, DOES_NOT),
        (math.nan, math.nan, 0.01, CANNOT_TELL),
    ],
)
def test_a_gain_must_be_more_than_luck(low, high, luck, verdict):
    assert more_than_luck(Estimate((low + high) / 2, low, high), luck, 5, "points")[0] == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, CANNOT_TELL], CANNOT_TELL),
        ([CANNOT_TELL, DOES_NOT], DOES_NOT),
    ],
)
def test_a_claim_of_two_parts_needs_both(parts, verdict):
    assert all_of(parts) == verdict


def test_luck_counts_the_orders_that_do_as_well():
    assert block_orders.luck(0.5, [0.4, 0.5, 0.6]) == 3 / 4 and block_orders.luck(1, np.zeros(19)) == 1 / 20


# Rows that are wrong.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["group", "draw"]), "the rows lack group, draw; needed are model, quantizer"),
        (lambda t: t[[name for name in t if not name.startswith("w")]], "the rows lack w0"),
        (lambda t: t.assign(model=np.arange(len(t))), "a sweep is of one model, but the rows have 0, 1"),
        (lambda t: pd.concat([t, t.assign(group="row")]), "a sweep is of one group, but the rows have 64, row"),
        (lambda t: t[:0], "a sweep is of one model, but the rows have none"),
        (lambda t: t[t["order"] != "LIM"], "no row has the order 'LIM'; there is random, random, block 0 high"),
        (lambda t: pd.concat([t, t[3:4]]), "order LIM, draw 0, lowered 3 is there more than once"),
        (lambda t: t.assign(w5=t["w5"].where(t["lowered"] != 4)), "order LIM, draw 0, lowered 4 lacks a finite loss"),
        (lambda t: t.assign(w5=np.inf), "order LIM, draw 0, lowered 0 lacks a finite loss"),
        (lambda t: t.assign(blocks=7), "the lowered blocks must be 0 to 7, not 8"),
        (lambda t: t.drop(index=12), "draws 0 and 1 of random differ in having 3 blocks lowered"),
        (lambda t: t[~t["lowered"].isin([0])], "measured with 1 to 8 of 8 blocks lowered; a share needs both ends"),
        (lambda t: t.assign(levels="8/4/2"), "rtn, group 64, 8/4/2: a share of lowered blocks needs two widths"),
        (lambda t: t.assign(draw=t["draw"] + t["lowered"] % 2 * (t["order"] == "LIM")), "draws 0 and 1 of LIM differ"),
    ],
)
def test_rows_that_are_no_sweep_say_what_is_wrong(rows, change, message):
    with pytest.raises(ValueError, match=message):
        lw.claims.q1(change(rows))


def test_orders_without_a_common_plan_cannot_be_compared(rows):
    three = rows.assign(levels="8/4/2")
    apart = three[(three["order"] == "LIM") == (three["lowered"] % 2 == 0)]
    with pytest.raises(ValueError, match="LIM and random have 0 numbers of lowered blocks in common, 2 are needed"):
        lw.claims.gains(apart)


@pytest.mark.parametrize(("order", "rival"), [("LIM", "reversed LIM"), ("random", "random"), ("LIM", "chance")])
def test_the_rival_must_be_random_and_the_order_not(rows, order, rival):
    with pytest.raises(ValueError, match="compared with one of 'random', 'random, block 0 high'"):
        lw.claims.q1(rows, order=order, rival=rival)


def test_an_order_of_a_score_has_one_draw(rows):
    again = rows[rows["order"] == "LIM"].assign(draw=1)
    with pytest.raises(ValueError, match="LIM has 2 draws: an order that comes from a score has one"):
        lw.claims.q1(pd.concat([rows, again]))


@pytest.mark.parametrize("level", [0, 1, 90])
def test_a_level_is_a_share(rows, level):
    with pytest.raises(ValueError, match="level must be a share of the dense model's quality between 0 and 1"):
        lw.claims.share_within(rows, "LIM", level)


def test_q6_is_on_one_model_and_its_levels(rows):
    with pytest.raises(ValueError, match="on one model and its levels, but the rows have 2"):
        lw.claims.q6(pd.concat([rows, rows.assign(levels="8→4")]))


def test_sweeps_over_three_widths_have_gains(rng):
    assert lw.claims.gains(tidy(sweep(rng, HARM, HARM), levels="8/4/2", blocks=5))["value"][0] > 0


# What the paper reports.


def test_the_claim_asks_for_what_the_paper_reports():
    with open(Path(__file__).parents[1] / "results" / "papers.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["claim"] == "Q1"]
    for setting, expected in (
        ("the proposed ordering", quantization.BY_SCORE),
        ("no specific ordering", quantization.AT_RANDOM),
    ):
        found = sorted(float(line["value"]) / 100 for line in lines if line["setting"] == setting)
        assert found == pytest.approx(list(expected))
