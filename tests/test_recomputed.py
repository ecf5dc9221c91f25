"""Effects behind verdicts, computed anew from the committed tables by pandas and scipy: nothing of `lw.claims` is used
but what is compared with it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layerwise import claims
from layerwise.experiments.rows import window_rows
from scipy import stats

RESULTS = Path(__file__).parents[1] / "results"
MODELS = ["6L", "12L", "24L"]
RAMPS = ["late first", "late first, last block kept", "early first", "early first, block 0 kept", "middle first"]


def table(chapter, name):
    return pd.read_csv(RESULTS / chapter / f"{name}.csv", keep_default_na=False, na_values=[""], dtype={"run": str})


def of_model(name, model):
    rows = table("variable_quantization", name)
    return rows[(rows["model"] == model) & (rows["quantizer"] == "quanto") & (rows["levels"] == "4→2")]


def curves(rows):
    """Losses `[K, windows]` by order and draw, with the numbers of lowered blocks."""
    windows = [f"w{i}" for i in range(16)]
    for (order, draw), part in rows.groupby(["order", "draw"]):
        part = part.sort_values("lowered")
        yield order, draw, part["lowered"].to_numpy(), part[windows].to_numpy()


def share(lowered, loss, level):
    """Where quality first leaves the level, walking from step to step."""
    quality = np.exp(-loss.mean(axis=1))
    for i in range(1, len(lowered)):
        if quality[i] < level:
            part = (quality[i - 1] - level) / (quality[i - 1] - quality[i])
            return (lowered[i - 1] + part * (lowered[i] - lowered[i - 1])) / lowered[-1]
    return 1.0


@pytest.mark.parametrize("model", MODELS)
def test_q1(model):
    rows, seen = of_model("orders", model), of_model("ramps_seen", model)
    shares = {(order, draw): share(lowered, loss, 0.975) for order, draw, lowered, loss in curves(rows)}
    drawn = [value for (order, _), value in shares.items() if order == "random"]
    verdict = claims.q1(rows, seen)
    assert verdict.effect == pytest.approx(100 * (shares["LIM", 0] - np.mean(drawn)), abs=1e-6)
    assert verdict.luck.as_good == sum(value >= shares["LIM", 0] - 1e-9 for value in drawn)
    on_calibration = {order: share(lowered, loss, 0.975) for order, _, lowered, loss in curves(seen)}
    best = max(RAMPS, key=lambda order: on_calibration[order])
    assert f"by {best}, which measures nothing, until {100 * shares[best, 0]:.0f} %" in verdict.reason
    if 100 * (shares["LIM", 0] - shares[best, 0]) < 0 or shares["LIM", 0] < 0.2:
        assert verdict.verdict != "holds"


@pytest.mark.parametrize("model", MODELS)
def test_beyond_position(model):
    rows, seen = of_model("orders", model), of_model("ramps_seen", model)

    def areas(part):
        return {(o, d): np.trapezoid(loss, lowered, axis=0) / lowered[-1] for o, d, lowered, loss in curves(part)}

    area, on_calibration = areas(rows), areas(seen)
    best = min(RAMPS, key=lambda order: on_calibration[order, 0].mean())
    for score in ("LIM", "ZD"):
        saved = area[best, 0] - area[score, 0]
        low, high = stats.t.interval(0.95, len(saved) - 1, saved.mean(), stats.sem(saved))
        verdict = claims.beyond_position(rows, seen, score)
        assert (verdict.effect, verdict.low, verdict.high) == pytest.approx((saved.mean(), low, high), abs=1e-6)
        assert best in verdict.reason
        if high < 0.01:
            assert verdict.verdict == "doesn't hold"


@pytest.mark.parametrize("model", MODELS)
def test_q5(model):
    rows, seen = of_model("orders", model), of_model("ramps_seen", model)
    scores = table("variable_quantization", "scores").query("model == @model")
    damage = window_rows(of_model("damage", model), "value")
    harm = damage.groupby("block")["value"].mean()
    for score in ("LIM", "ZD"):
        value = scores[scores["score"] == score].set_index("block")["value"]
        verdict = claims.q5(scores, damage, rows, seen, score)
        assert verdict.effect == pytest.approx(stats.spearmanr(value.sort_index(), harm.sort_index()).statistic)


@pytest.mark.parametrize("model", MODELS)
def test_s1(model):
    grid = table("dynamic_slicing", "grid").query("model == @model")
    windows = grid.filter(regex=r"^w\d+$").columns
    constant = grid[grid["plan"] == "constant"].set_index(["mean", "draw"])[windows]
    change = []
    for mean, part in grid[(grid["plan"] == "LR") & (grid["mean"] > grid["base"] + 1e-9)].groupby("mean"):
        if constant.loc[mean].to_numpy().mean() <= np.log(2):
            by_base = [
                np.mean(
                    [
                        row[windows].to_numpy(float) - constant.loc[mean, row["draw"]].to_numpy()
                        for _, row in one.iterrows()
                    ]
                )
                for _, one in part.groupby("base")
            ]
            change.append(np.mean(by_base))
    rows = window_rows(grid[grid["plan"].isin(["LR", "constant"])])
    assert claims.s1(claims.against_constant(rows)).effect == pytest.approx(100 * np.expm1(np.mean(change)), abs=1e-3)


def test_q4():
    steps = table("depth", "steps").query("kind == 'bits, LIM' and recipe == 'AdamW'")
    windows = steps.filter(regex=r"^w\d+$").columns
    found = []
    for _, part in steps.groupby("model"):
        part = part.sort_values("share")
        own = part[windows].dropna(axis="columns").to_numpy()
        blocks = part["blocks"].iloc[0]
        found.append((np.log2(blocks), 100 * share(part["share"].to_numpy() * blocks, own, 0.975)))
    slope = stats.linregress(*np.transpose(found)).slope
    assert claims.q4(claims.tolerated(steps)).effect == pytest.approx(slope, abs=1e-6)
