"""What a score knows beyond position, on made-up rows in which the truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from layerwise import claims, plans, stats
from layerwise.claims.block_orders import RAMPS
from layerwise.claims.position import KEPT

L = 12


def test_importances_by_position():
    found = plans.by_position(5)
    assert set(RAMPS) < set(found) and all(((v >= 0) & (v <= 1)).all() for v in found.values())

    def first(name):
        """Which blocks go first, of equally important ones the last."""
        return np.argsort(-found[name], kind="stable")[::-1].tolist()

    assert first("late first") == [4, 3, 2, 1, 0] and first("late first, last block kept") == [3, 2, 1, 4, 0]
    assert first("early first") == [0, 1, 2, 3, 4] and first("early first, block 0 kept") == [1, 2, 3, 4, 0]
    assert first("middle first") == [2, 3, 1, 4, 0]
    assert found["block 0 kept, others alike"].tolist() == [1, 0, 0, 0, 0]
    assert found["ends kept, others alike"].tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="2 blocks have no middle"):
        plans.by_position(2)


def test_a_score_dealt_out_keeps_the_ends_if_asked():
    score = np.array([3.0, 9.0, 1.0, 7.0, 5.0])
    dealt = plans.shuffled(score, 1, ends_kept=True)
    assert dealt[0] == 9 and dealt[-1] == 7 and sorted(dealt) == sorted(score)
    assert dealt.tolist() != plans.shuffled(score, 2, ends_kept=True).tolist()


# Widths.


def losses(harm_of_lr=0.0, ramp=-0.05, draws=5, samples=39, windows=24, constant=0.2, seed=0):
    """Losses at two means: LR's plan, of constant, a ramp that is `ramp` better, and random plans around constant."""
    rng = np.random.default_rng(seed)
    text = rng.normal(0, 0.05, windows)
    rows = []

    def add(plan, base, shift, draw=0, sample=0):
        loss = constant + mean + shift + text + rng.normal(0, 0.01, windows)
        of = {"model": "m", "blocks": L, "plan": plan, "mean": mean, "base": base, "draw": draw, "sample": sample}
        rows.extend(of | {"window": w, "loss": value} for w, value in enumerate(loss))

    for mean in (0.1, 0.2):
        for draw in range(draws):
            moved = rng.normal(0, 0.005)
            add("constant", mean, moved, draw)
            add("early first, block 0 kept", 0.0, ramp + moved, draw)
            add("late first", 0.0, 0.1 + moved, draw)
            add("LR", 0.0, harm_of_lr + moved, draw)
            add("LR", 0.05, harm_of_lr + 0.03 + moved, draw)
        for sample in range(samples):
            for random in ("random", KEPT):
                add(random, 0.0, rng.normal(0, 0.03), sample=sample)
    return pd.DataFrame(rows)


def choice(rows):
    """What calibration text says: the same plans, measured once."""
    kept = rows[~rows["plan"].isin(["random", KEPT])]
    return kept.groupby(["plan", "mean", "base"], as_index=False)["loss"].mean()


def test_widths_by_a_score_must_beat_the_best_ramp():
    better = losses(harm_of_lr=-0.15)
    found = claims.slices_beyond_position(better, choice(better))
    assert found.verdict == "holds" and found.claim == "LR beyond position" and found.unit == "%"
    assert found.low < 100 * math.expm1(-0.1) < found.high < 0 and "0 of 39 orders" in found.reason
    alike = losses(harm_of_lr=-0.05)
    assert claims.slices_beyond_position(alike, choice(alike)).verdict == "doesn't hold"  # 1 % is ruled out
    few = losses(harm_of_lr=-0.15, draws=4)
    assert "not decided here, by 4 calibration samples of 5" in claims.slices_beyond_position(few, choice(few)).reason
    worse = claims.slices_beyond_position(losses(), choice(losses()))
    assert worse.verdict == "doesn't hold" and worse.low > 0
    assert "against early first, block 0 kept, which measures nothing" in worse.reason


def test_the_rival_and_the_base_are_chosen_on_calibration_text():
    rows = losses(harm_of_lr=-0.15)
    other = choice(rows)
    other.loc[other["plan"] == "late first", "loss"] = 0.0
    other.loc[(other["plan"] == "LR") & (other["base"] > 0), "loss"] = 0.0
    with pytest.raises(ValueError, match="no row has the plan 'random' at a base of 0.05"):
        claims.slices_beyond_position(rows, other)
    more = rows[rows["plan"].isin(["random", KEPT])].assign(base=0.05)
    found = claims.slices_beyond_position(pd.concat([rows, more]), other)
    assert "against late first" in found.reason and found.effect == pytest.approx(100 * math.expm1(-0.22), abs=1)


def test_means_that_wreck_both_models_do_not_count():
    rows = losses(harm_of_lr=-0.15, constant=0.55)  # 0.65 and 0.75 nats, and twice is 0.69
    found = claims.slices_beyond_position(rows, choice(rows))
    assert "Over 1 mean slice," in found.reason and set(claims.within_twice(rows)["mean"]) == {0.1}
    wrecked = losses(constant=0.7)
    nothing = claims.slices_beyond_position(wrecked, choice(wrecked))
    assert nothing.verdict == "inconclusive" and "At every mean" in nothing.reason and "nan" not in str(nothing)
    with pytest.raises(ValueError, match="no row has the plan 'constant' at a mean of 0.1"):
        claims.within_twice(rows.query("plan != 'constant'"))


def test_random_widths_rarely_pass_for_those_of_a_score():
    found = []
    for seed in range(100):  # LR's plan is one more random one, and the ramps are bad
        rng = np.random.default_rng(1000 + seed)
        rows = losses(harm_of_lr=rng.normal(0, 0.03 / math.sqrt(2)), ramp=0.2, windows=8, seed=seed)
        rows = rows[(rows["plan"] != "LR") | (rows["base"] == 0)]
        found.append(claims.slices_beyond_position(rows, choice(rows)).verdict)
    assert found.count("holds") <= 12  # 5 % of 100, and 3 standard deviations


# What scores know.


def known(depth_share, own, seed=0):
    """A score and damage that go with depth, and with each other beyond it by `own`."""
    rng = np.random.default_rng(seed)
    depth, shared = np.arange(L), rng.normal(size=L)
    value = depth_share * depth + own * shared + 0.3 * rng.normal(size=L)
    harm = depth_share * depth + own * shared + 0.3 * rng.normal(size=L)
    scores = pd.DataFrame({"model": "m", "score": "LIM", "block": depth, "value": value})
    block, window = np.indices((L, 10)).reshape(2, -1)
    damage = harm[block] + 0.1 * rng.normal(size=block.size)
    return scores, pd.DataFrame({"model": "m", "kind": "2 bits", "block": block, "window": window, "value": damage})


def test_knowledge_given_depth():
    (by_depth,) = claims.knowledge(*known(0.25, 0.0, seed=2)).to_dict("records")
    assert by_depth["correlation"] > 0.5 and by_depth["correlation_low"] > 0 and by_depth["depth"] > 0.5
    assert by_depth["partial_low"] < 0 < by_depth["partial_high"]
    u_shaped, damage = known(0.0, 0.0)  # both know the ends, and no more
    damage["value"] += 3 * np.abs(2 * damage["block"] - L + 1)
    u_shaped["value"] += 3 * np.abs(2 * u_shaped["block"] - L + 1)
    (ends,) = claims.knowledge(u_shaped, damage).to_dict("records")
    assert ends["partial"] > 0.9 and not ends["beyond"] > 0.6
    (beyond,) = claims.knowledge(*known(0.3, 2.0)).to_dict("records")
    assert beyond["partial"] > 0.8 and beyond["partial_low"] > 0 and beyond["beyond"] > 0.7
    assert stats.Luck(beyond["as_good"], beyond["drawn"]).p < 0.01
    scores, damage = known(1.0, 0.0)
    (same,) = claims.knowledge(scores.assign(value=scores["block"]), damage).to_dict("records")
    assert np.isnan(same["partial"]) and same["drawn"] == 0 and same["correlation"] == pytest.approx(same["depth"])
