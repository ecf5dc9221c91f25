import csv
import math
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
from layerwise import stats
from layerwise.claims import block_orders, quantization
from layerwise.claims.verdict import DOES_NOT, HOLDS, INCONCLUSIVE, Part, a_gain, all_of, more_than_luck
from layerwise.stats import Estimate, Luck
from pandas.testing import assert_frame_equal

L = 8
DRAWS, WINDOWS = 19, 24  # 19 draws are what luck needs to be ruled out
KEPT = "random, ends kept"
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
    """Losses of the order of a score, of ramps, and of random orders with and without the ends, on the same windows."""
    L = len(harm)
    drawn = [rng.permutation(L) for _ in range(draws)]
    kept = [[*1 + rng.permutation(L - 2), L - 1, 0] for _ in range(draws)]
    ramps = [in_turn(importance) for name, importance in lw.plans.by_position(L).items() if name in RAMPS]
    found = in_order(harm, [in_turn(score), *ramps, *drawn, *kept], rng, noise)
    found[:, [0, -1]] = found[:1, [0, -1]]
    drawn, kept = np.split(found[1 + len(ramps) :], 2)
    return {"LIM": found[:1]} | dict(zip(RAMPS, found[1:, None], strict=False)) | {"random": drawn, KEPT: kept}


def in_turn(importance):
    """The least important block first, of equal ones the last, as `lw.plans.bits` lowers them."""
    return np.argsort(-np.asarray(importance, float), kind="stable")[::-1]


def ramps(harm, **setting):
    """Rows of the ramps on calibration text, that is in other windows."""
    losses = sweep(np.random.default_rng(9), np.asarray(harm), harm, draws=1)
    return tidy({name: losses[name] for name in RAMPS}, **setting)


HARM = np.array([0.60, 0.03, 0.09, 0.01, 0.13, 0.02, 0.08, 0.04])  # no ramp is close to it
RAMPS = block_orders.RAMPS


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
    found = lw.claims.share_within(falling(*quality), "LIM", level=0.9)
    assert found == pytest.approx((share, share, share), abs=1e-9)


def test_the_share_depends_on_the_level_and_on_what_was_measured():
    rows = falling(1, 0.96, 0.90, 0.7, 0.5)
    assert lw.claims.share_within(rows, "LIM", level=0.95).value == pytest.approx((1 + 1 / 6) / 4)
    assert lw.claims.share_within(rows[rows["lowered"].isin([0, 4])], "LIM", level=0.95).value == pytest.approx(0.1)


def test_the_share_of_random_orders_is_the_mean_of_their_shares():
    quality = np.array([[1, 0.95, 0.5], [1, 0.8, 0.5]])
    rows = tidy({"random": np.tile(-np.log(quality)[..., None], (1, 1, 4))}, blocks=2)
    by_draw = [(1 + 0.05 / 0.45) / 2, 0.5 / 2]
    found = lw.claims.share_within(rows, "random", level=0.9)
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
    assert len(found) == 2 * 8 and list(found["order"][:8]) == ["LIM", *RAMPS, "random", KEPT]
    expected = lw.claims.share_within(rows, "random")
    assert tuple(found.loc[6, ["value", "low", "high"]]) == expected == tuple(found.loc[14, ["value", "low", "high"]])


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


def judged(rows, harm=HARM, **options):
    return lw.claims.q1(rows, ramps(harm), **{"level": 0.9} | options)


def test_q1_holds_where_the_score_knows_the_damage(rows):
    verdict = judged(rows)
    assert verdict.verdict == HOLDS and verdict.claim == "Q1" and verdict.unit == "points"
    own, others = (lw.claims.share_within(rows, order, 0.9).value for order in ("LIM", "random"))
    assert verdict.effect == pytest.approx(100 * (own - others)) and 0 < verdict.low < verdict.effect < verdict.high
    assert f"until {100 * own:.0f} % (95 %:" in verdict.reason and "rtn, group 64, 4→2" in verdict.reason
    assert "0 of 19 orders without information do as well (p = 0.05; at most 15 % of all)" in verdict.reason
    assert verdict.luck == Luck(0, 19, 19) and "which measures nothing" in verdict.reason


def test_q1_does_not_hold_where_the_order_is_reversed(rng):
    verdict = judged(tidy(sweep(rng, HARM, -HARM)))
    assert verdict.verdict == DOES_NOT and verdict.high < 0 and "25 % is not reached" in verdict.reason


def test_q1_does_not_hold_of_a_score_that_only_knows_position(rng):
    harm = np.array([1.0, 0.2, 0.15, 0.1, 0.06, 0.02, 0.01, 0.005])
    verdict = judged(tidy(sweep(rng, harm, harm, noise=0.001)), harm)
    assert verdict.verdict == DOES_NOT and verdict.low > 5  # it is far better than random orders
    assert "by late first" in verdict.reason and verdict.reason.endswith("as much as 5 points is ruled out.")


def test_the_ramp_is_chosen_on_calibration_text(rows):
    best = min(RAMPS, key=lambda order: rows[rows["order"] == order].filter(regex=r"w\d").mean(axis=None))
    assert block_orders.best_by_position(ramps(HARM)) == best
    turned = ramps(-HARM)  # calibration text that prefers another one decides
    chosen = block_orders.best_by_position(turned)
    assert chosen != best and f"by {chosen}, which measures nothing" in lw.claims.q1(rows, turned, 0.9).reason
    with pytest.raises(ValueError, match="lack middle first: a score is compared with the best of them"):
        lw.claims.q1(rows, ramps(HARM).query("order != 'middle first'"))


def test_beyond_the_ends_nothing_is_left_of_a_score_that_knows_no_other_block(rng):
    harm = np.array([1.0, *[0.02] * (L - 2), 0.5])
    rows = tidy(sweep(rng, harm, harm, noise=0.001))
    beyond = judged(rows, harm, rival=KEPT)
    assert beyond.verdict == DOES_NOT and beyond.claim == "Q1 beyond the ends"
    assert abs(beyond.effect) < 2 and "as much as 5 points is ruled out" in beyond.reason


def test_q1_does_not_hold_where_fewer_than_a_quarter_can_be_lowered(rng):
    harm = np.array([2.0, 0.06, 2.0, 2.0, 2.0, 0.2, 1.0, 2.0])
    verdict = judged(tidy(sweep(rng, harm, harm, noise=0.001)), harm)
    assert verdict.verdict == DOES_NOT and verdict.low > 0 and "25 % is not reached" in verdict.reason


@pytest.mark.parametrize(
    ("shift", "factor", "why"),
    [(0.0, 0.05, "with all blocks at the lower width quality is"), (0.3, 1, "with all blocks at the higher width")],
)
def test_q1_cannot_tell_where_no_order_can_leave_the_level(rng, shift, factor, why):
    losses = {name: shift + v for name, v in sweep(rng, factor * HARM, HARM, noise=0.001).items()}
    for verdict in (judged(tidy(losses)), lw.claims.q1_at_random(tidy(losses), 0.9)):
        assert verdict.verdict == INCONCLUSIVE and verdict.effect in (0, 100)
        assert why in verdict.reason and "orders are not put to the test" in verdict.reason


def test_q1_needs_nineteen_draws_to_rule_out_luck(rng):
    verdict = judged(tidy(sweep(rng, HARM, HARM, draws=18)))
    assert verdict.verdict == INCONCLUSIVE and verdict.low > 0
    assert "but 0 of 18 orders without information do as well" in verdict.reason


@pytest.mark.parametrize(("draws", "windows"), [(1, WINDOWS), (DRAWS, 1)])
def test_q1_cannot_tell_from_one_draw_or_one_window(rng, draws, windows):
    losses = {name: values[:, :, :windows] for name, values in sweep(rng, HARM, HARM, draws=draws).items()}
    verdict = judged(tidy(losses))
    assert verdict.verdict == INCONCLUSIVE and np.isnan([verdict.low, verdict.high]).all()
    assert "no interval" in verdict.reason and "nan" not in str(verdict)


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [([3.0] * L, HOLDS), ([0.01] * (L - 1) + [0.9], DOES_NOT), ([0.14] * L, INCONCLUSIVE)],
)
def test_at_random_quality_stays_close_until_a_tenth_of_layers_at_most(rng, harm, verdict):
    found = lw.claims.q1_at_random(tidy(sweep(rng, np.array(harm), harm, noise=0.001)), level=0.9)
    assert found.verdict == verdict and found.claim == "Q1 at random" and found.low < found.effect < found.high


def test_an_order_that_knows_nothing_is_rarely_called_useful():
    rng = np.random.default_rng(2)
    runs, holds, above = 100, {"Q1": 0, "Q5": 0, "LIM beyond position": 0}, 0
    for _ in range(runs):
        harm = rng.gamma(1, 0.08, L)
        score = rng.normal(size=L)
        rows, choice = tidy(sweep(rng, harm, score)), ramps(harm)
        verdicts = [lw.claims.q1(rows, choice, 0.9), lw.claims.q5(*importance(score, harm, rng), rows, choice)]
        for verdict in [*verdicts, lw.claims.beyond_position(rows, choice)]:
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
    verdict = lw.claims.q5(scores, damage, rows, ramps(HARM))
    assert verdict.verdict == HOLDS and verdict.claim == "Q5" and verdict.effect > 0.9 and verdict.low > 0
    matrix = damage.pivot(index="block", columns="window", values="value").to_numpy()
    assert (verdict.effect, verdict.low, verdict.high) == stats.rank_correlation(HARM, matrix)
    assert "which measures nothing: that is above 0" in verdict.reason


def test_q5_does_not_hold_where_a_ramp_does_as_well(rng):
    harm = np.sort(HARM)[::-1]
    verdict = lw.claims.q5(*importance(harm, harm, rng), tidy(sweep(rng, harm, harm, noise=0.001)), ramps(harm))
    assert (
        verdict.verdict == DOES_NOT
        and "late first, which measures nothing: as much as 0.01 nats is ruled out" in verdict.reason
    )


def test_q5_does_not_hold_where_the_order_is_reversed(rng):
    verdict = lw.claims.q5(*importance(-HARM, HARM, rng), tidy(sweep(rng, HARM, -HARM)), ramps(HARM))
    assert verdict.verdict == DOES_NOT and verdict.high < 0


def test_q5_needs_the_sweep_as_well_as_the_correlation(rng):
    verdict = lw.claims.q5(*importance(HARM, HARM, rng), tidy(sweep(rng, HARM, -HARM)), ramps(HARM))
    assert verdict.verdict == DOES_NOT and verdict.low > 0


def test_q5_cannot_tell_from_one_window_of_damage(rng, rows):
    verdict = lw.claims.q5(*importance(HARM, HARM, rng, windows=1), rows, ramps(HARM))
    assert verdict.verdict == INCONCLUSIVE and np.isnan(verdict.low) and "nan" not in str(verdict)


def test_q5_reads_one_model_and_score_of_many(rng, rows):
    scores, damage, choice = *importance(HARM, HARM, rng), ramps(HARM)
    more = pd.concat([scores, scores.assign(score="ZD", value=0.0), scores.assign(model="other", value=1.0)])
    others = pd.concat([damage, damage.assign(model="other", value=-damage["value"])])
    verdict = lw.claims.q5(more.assign(quantizer="not read"), others.assign(quantizer="not read"), rows, choice)
    assert str(verdict) == str(lw.claims.q5(scores, damage, rows, choice))
    for name, part in {"sweep": rows, "scores": scores, "damage": damage}.items():
        used = verdict.rows[verdict.rows["table"] == name].drop(columns="table").dropna(axis="columns")
        assert_frame_equal(used[part.columns].reset_index(drop=True), part.reset_index(drop=True), check_dtype=False)
    assert set(verdict.rows["table"]) == {"sweep", "scores", "damage"}
    assert set(verdict.rows["quantizer"].dropna()) == {SETTING["quantizer"]}
    with pytest.raises(ValueError, match="same for all blocks: that is no order"):
        lw.claims.q5(more.assign(score="LIM").query("model == 'other'").assign(model=MODEL), damage, rows, choice)


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
        lw.claims.q5(*change(*importance(HARM, HARM, rng)), rows, ramps(HARM))


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


def test_q6_holds_where_the_order_gains_alike_on_every_technique(rng):
    rows = by_technique(rng, {"rtn": HARM, "quanto": HARM, "hqq": HARM})
    rows = pd.concat([rows[rows["quantizer"] != "hqq"], twice(rows[rows["quantizer"] == "hqq"])])
    verdict = lw.claims.q6(rows)  # a technique that loses twice as much gains twice as much
    assert verdict.verdict == HOLDS and verdict.claim == "Q6" and 50 < verdict.low < verdict.effect < 100
    assert "on every technique it gains, by more than half of the most" in verdict.reason


def twice(rows):
    windows = rows.filter(regex=r"^w\d").columns
    return rows.assign(**{name: 2 * rows[name] for name in windows})


def test_q6_does_not_hold_where_the_order_gains_on_one_and_loses_on_another(rng):
    verdict = lw.claims.q6(by_technique(rng, {"rtn": HARM, "quanto": HARM, "hqq": -HARM}))
    assert verdict.verdict == DOES_NOT and verdict.high < 0
    assert "it gains on 2 of 3 techniques and loses on 1" in verdict.reason and "gains least by hqq" in verdict.reason


def test_q6_does_not_hold_where_the_gain_depends_on_the_technique(rng):
    losses = sweep(rng, HARM, HARM, noise=0.001)
    typical = losses["random"].mean(axis=0, keepdims=True)
    little = {"LIM": 0.8 * typical + 0.2 * losses["LIM"]}  # a fifth of the gain
    little["random"] = typical + 1e-4 * rng.normal(size=losses["random"].shape)
    verdict = lw.claims.q6(pd.concat([tidy(losses), tidy(little, quantizer="hqq")]))
    assert verdict.verdict == DOES_NOT and verdict.effect == pytest.approx(20, abs=2)
    assert "gains less than half of what it does on another" in verdict.reason


def test_q6_has_nothing_to_compare_where_the_order_loses_everywhere(rng):
    verdict = lw.claims.q6(by_technique(rng, {"rtn": -HARM, "hqq": -HARM}))
    assert verdict.verdict == INCONCLUSIVE and "LIM saves nothing of what random loses" in verdict.reason
    assert "on 0 of 2 techniques it gains, on 2 it loses" in verdict.reason and "nan" not in verdict.reason


def test_q6_takes_the_draws_that_all_techniques_have(rng):
    both = by_technique(rng, {"rtn": HARM, "hqq": HARM}, draws=25)
    fewer = both[(both["quantizer"] != "hqq") | (both["draw"] < 20)]
    assert lw.claims.q6(fewer).effect == lw.claims.q6(both[both["draw"] < 20]).effect != lw.claims.q6(both).effect
    with pytest.raises(ValueError, match="the techniques have no draw of random in common"):
        lw.claims.q6(both.assign(draw=both["draw"] + 50 * ((both["quantizer"] == "hqq") & (both["order"] != "LIM"))))


def test_q6_cannot_tell_from_noise_or_from_one_technique(rng):
    assert lw.claims.q6(by_technique(rng, {"rtn": HARM})).verdict == INCONCLUSIVE
    noisy = by_technique(rng, {"rtn": HARM, "hqq": HARM}, draws=2)
    assert lw.claims.q6(noisy).verdict == INCONCLUSIVE
    single = lw.claims.q6(by_technique(rng, {"rtn": HARM, "hqq": HARM}, draws=1))
    assert single.verdict == INCONCLUSIVE and "nan" not in single.reason


def test_random_orders_that_pose_as_the_score_rarely_pass_q6():
    rng = np.random.default_rng(3)
    runs, found = 100, []
    for _ in range(runs):  # techniques do the same damage, so a lucky order is lucky on all of them
        harm, score = rng.gamma(1, 0.08, L), rng.normal(size=L)
        orders = {"LIM": [in_turn(score)], "random": [rng.permutation(L) for _ in range(DRAWS)]}
        parts = [
            tidy({name: in_order(harm * size, each, rng) for name, each in orders.items()}, quantizer=f"q{size}")
            for size in (1, 2)
        ]
        found.append(lw.claims.q6(pd.concat(parts)).verdict)
    assert found.count(HOLDS) / runs < 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert found.count(DOES_NOT) <= 2  # it isn't refuted by an order that is bad on all of them


# The rules.


@pytest.mark.parametrize(
    ("low", "high", "as_good", "verdict"),
    [
        (1, 9, 9, HOLDS),
        (6, 9, 9, HOLDS),
        (1, 9, 10, INCONCLUSIVE),
        (1, 3, 0, DOES_NOT),  # a gain, but too small to count
        (-1, 3, 0, DOES_NOT),
        (-1, 9, 0, INCONCLUSIVE),
        (-9, -1, 190, DOES_NOT),
        (math.nan, math.nan, 0, INCONCLUSIVE),
    ],
)
def test_a_gain_must_be_more_than_luck(low, high, as_good, verdict):
    gain = Estimate((low + high) / 2, low, high)
    assert more_than_luck(gain, Luck(as_good, 199), 5, "points")[0] == verdict
    if as_good < 10:
        assert a_gain(gain, 5, "points")[0] == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, DOES_NOT], DOES_NOT),
    ],
)
def test_a_claim_of_two_parts_needs_both(parts, verdict):
    assert all_of(parts) == verdict


def told(verdict, effect, model, luck=None, parts=()):
    effects = (effect, effect - 1, effect + 1)
    rows = pd.DataFrame({"model": [model]})
    return lw.claims.Verdict("Q9", "It does.", verdict, *effects, "nats", "So.", rows, luck, parts)


def test_luck_is_corrected_for_the_number_of_models():
    each = [
        told(HOLDS, 2, "a", Luck(0, 199)),
        told(HOLDS, 2, "b", Luck(7, 199)),
        told(DOES_NOT, -2, "c", Luck(150, 199)),
    ]
    found = lw.claims.corrected([*each, told(HOLDS, 2, "d")])
    assert [v.verdict for v in found] == [HOLDS, INCONCLUSIVE, DOES_NOT, HOLDS]  # p .005 x 3, .04 x 2
    assert "Of 3 models, one would do so by luck with p = 0.08." in found[1].reason and found[0] is each[0]


def test_random_orders_that_are_too_few_for_many_models_are_told():
    found = lw.claims.corrected([told(HOLDS, 2, name, Luck(0, 20)) for name in "abc"])
    assert {v.verdict for v in found} == {INCONCLUSIVE}
    assert "20 random orders are too few, 59 are needed." in found[0].reason
    assert lw.claims.corrected([told(HOLDS, 2, name, Luck(0, 59)) for name in "abc"])[2].verdict == HOLDS


def of_parts(model, *gains):
    parts = tuple(Part(Estimate(gain, gain - 1, gain + 1), least, "points") for gain, least in gains)
    return told(HOLDS, gains[0][0], model, parts=parts)


def test_models_of_a_family_are_the_unit_of_a_verdict_on_it():
    both = [of_parts(f"m{i}", (9 + i, 5), (20 - i, 5)) for i in range(4)]
    found = lw.claims.on_family(both, "ours")
    assert (
        found.verdict == HOLDS and found.effect == 10.5 and found.low < 9.5 and "Over 4 models of ours" in found.reason
    )
    assert "in this family: ours" in found.statement and len(found.rows) == 4
    one_is_small = [of_parts(f"m{i}", (20 + i, 5), (i / 9, 5)) for i in range(4)]  # whatever the effect that is shown
    assert lw.claims.on_family(one_is_small, "ours").verdict == DOES_NOT
    mixed = lw.claims.on_family([of_parts(name, (gain, 0)) for name, gain in (("a", 9), ("b", -9), ("c", 8))], "ours")
    assert mixed.verdict == INCONCLUSIVE
    with pytest.raises(ValueError, match="one verdict on one claim for each of several models"):
        lw.claims.on_family(both[:1] * 2, "ours")
    with pytest.raises(ValueError, match="Q9 asks for something else than gains"):
        lw.claims.on_family([told(HOLDS, 2, "a"), told(HOLDS, 2, "b")], "ours")


def test_q1_and_q5_have_verdicts_on_families(rng):
    verdicts = {"Q1": [], "Q5": [], "LIM beyond position": []}
    for name in ("a", "b", "c"):
        rows, choice = tidy(sweep(rng, HARM, HARM), model=name), ramps(HARM, model=name)
        scores, damage = (part.assign(model=name) for part in importance(HARM, HARM, rng))
        for each in (
            lw.claims.q1(rows, choice, 0.9),
            lw.claims.q5(scores, damage, rows, choice),
            lw.claims.beyond_position(rows, choice),
        ):
            verdicts[each.claim].append(each)
    for each in verdicts.values():
        assert lw.claims.on_family(each, "ours").verdict == HOLDS


def test_few_orders_keep_the_ends_of_a_small_model(rng):
    six = HARM[[0, 1, 2, 4, 5, 3]]  # of 24 orders none is rare
    rows = tidy(sweep(rng, six, six), blocks=6)
    found = lw.claims.beyond_position(rows, ramps(six, blocks=6))
    assert found.luck.drawn == DRAWS and f"against {KEPT}" in found.reason
    drawn = rows[rows["order"] == "random"].filter(regex=r"^w\d").mean(axis=None)
    assert drawn > 0 and found.verdict == HOLDS


def test_an_order_and_a_ramp_are_compared_wherever_both_were_measured(rng):
    rows, choice = tidy(sweep(rng, HARM, HARM)), ramps(HARM)
    every = lw.claims.beyond_position(rows, choice)
    half = rows[~rows["order"].str.startswith("random") | (rows["lowered"] == 4)]  # random orders at one number alone
    few = lw.claims.beyond_position(half, choice)
    assert few.effect == every.effect and few.parts[0] == every.parts[0] and few.parts[1] != every.parts[1]


def test_where_little_is_lost_no_order_is_told_from_another(rng):
    rows, choice = tidy(sweep(rng, HARM, HARM)), ramps(HARM)
    windows = [name for name in rows if name[0] == "w" and name[1:].isdigit()]
    at_stake = rows.loc[(rows["order"] == "LIM") & (rows["lowered"] == 8), windows].mean(axis=None)
    smaller = rows.assign(**{name: rows[name] * 0.04 / at_stake for name in windows})  # 0.04 nats with all lowered
    found = lw.claims.beyond_position(smaller, choice)
    assert found.verdict == INCONCLUSIVE and "too little for 0.01 to tell orders apart" in found.reason
    worse = smaller.copy()
    worse.loc[(worse["order"] == "LIM") & worse["lowered"].between(1, 7), windows] += 0.02
    behind = lw.claims.beyond_position(worse, choice)
    assert behind.effect < 0 and behind.high < 0 and behind.verdict == DOES_NOT  # what is behind the ramp is told


# Rows that are wrong.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["group", "draw"]), "the rows lack group, draw; needed are model, quantizer"),
        (lambda t: t[[name for name in t if not name.startswith("w")]], "the rows lack w0"),
        (lambda t: t.assign(model=np.arange(len(t))), "a sweep is of one model, but the rows have 0, 1"),
        (lambda t: pd.concat([t, t.assign(group="row")]), "a sweep is of one group, but the rows have 64, row"),
        (lambda t: t[:0], "a sweep is of one model, but the rows have none"),
        (lambda t: t[t["order"] != "LIM"], "no row has the order 'LIM'; there is late first, late first, last"),
        (lambda t: pd.concat([t, t[3:4]]), "order LIM, draw 0, lowered 3 is there more than once"),
        (lambda t: t.assign(w5=t["w5"].where(t["lowered"] != 4)), "order LIM, draw 0, lowered 4 lacks a finite loss"),
        (lambda t: t.assign(w5=np.inf), "order LIM, draw 0, lowered 0 lacks a finite loss"),
        (lambda t: t.assign(blocks=7), "the lowered blocks must be 0 to 7, not 8"),
        (lambda t: t.drop(index=57), "draws 0 and 1 of random differ in having 3 blocks lowered"),
        (lambda t: t[~t["lowered"].isin([0])], "measured with 1 to 8 of 8 blocks lowered; a share needs both ends"),
        (lambda t: t.assign(levels="8/4/2"), "rtn, group 64, 8/4/2: a share of lowered blocks needs two widths"),
        (lambda t: t.assign(draw=t["draw"] + t["lowered"] % 2 * (t["order"] == "LIM")), "draws 0 and 1 of LIM differ"),
    ],
)
def test_rows_that_are_no_sweep_say_what_is_wrong(rows, change, message):
    with pytest.raises(ValueError, match=message):
        lw.claims.q1(change(rows), ramps(HARM))


def test_orders_without_a_common_plan_cannot_be_compared(rows):
    three = rows.assign(levels="8/4/2")
    apart = three[(three["order"] == "LIM") == (three["lowered"] % 2 == 0)]
    with pytest.raises(ValueError, match="LIM and random have 0 numbers of lowered blocks in common, 2 are needed"):
        lw.claims.gains(apart)


@pytest.mark.parametrize(("order", "rival"), [("LIM", "reversed LIM"), ("random", "random"), ("LIM", "chance")])
def test_the_rival_must_be_random_and_the_order_not(rows, order, rival):
    with pytest.raises(ValueError, match="compared with one of 'random', 'random, ends kept'"):
        lw.claims.q1(rows, ramps(HARM), order=order, rival=rival)


def test_an_order_of_a_score_has_one_draw(rows):
    again = rows[rows["order"] == "LIM"].assign(draw=1)
    with pytest.raises(ValueError, match="LIM has 2 draws: an order that comes from a score has one"):
        lw.claims.q1(pd.concat([rows, again]), ramps(HARM))


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
