"""The page of what didn't work: where its results are computed, and what it says of the shipped models and benchmarks.

What results decide is glued in the chapters that the page names, so that results of other models may join them.
"""

import json
import re
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "what_failed.md").read_text()


def log(name):
    """How a shipped model was trained."""
    return json.loads((lw.models.WEIGHTS / name / "training.json").read_text())


def gaps(*names):
    """Test loss above the floor, in nats per token."""
    return np.array([log(name)["test_loss"] - log(name)["test_floor"] for name in names])


def test_every_result_names_where_it_is_computed():
    entries = re.search("## Results\n(.*)## Dead ends", PAGE, re.S).group(1).strip().split("\n\n")
    assert len(entries) > 10
    for entry in entries:
        assert re.search(r"\(\.\./notebooks/\w+\)|\(claims\)|`results/\S+`", entry), entry


def test_what_it_names_is_there():
    for name in re.findall(r"\]\(([\w./]+)\)", PAGE):
        assert (ROOT / "book" / f"{name}.md").exists(), name
    for file in re.findall(r"`(results/\S+)`", PAGE):
        assert (ROOT / file).exists(), file


OURS = ["6L", "6L-s1", "6L-s2", "12L", "12L-s1", "12L-s2", "12L-muon", "24L", "24L-s1", "24L-s2"]


def orders(levels):
    """Mean loss over the sweep of each order of our models at its quarters, by rounding: `[model, order]`."""
    rows = pd.read_csv(ROOT / "results" / "beyond_position" / "orders.csv", low_memory=False)
    rows = rows[(rows["levels"] == levels) & (rows["quantizer"] == "rtn") & rows["model"].isin(OURS)]
    inner = rows[(rows["lowered"] > 0) & (rows["lowered"] < rows["blocks"])]
    return inner.pivot_table(index="model", columns="order", values="loss"), rows


def test_the_order_by_lim_is_a_ramp_on_our_models():
    means, _ = orders("4→2")
    ramp = means[["early first", "early first, block 0 kept"]].min(axis=1)
    behind = means["LIM"] - ramp
    assert set(behind.index) == set(OURS) and behind.min() > -0.01
    assert behind["12L-muon"] > 0.03 and behind.idxmax() == "12L-muon" and (means["ZD"] > ramp + 0.05).all()


def test_on_a_real_llm_the_technique_turns_the_order_round():
    rows = pd.read_csv(ROOT / "results" / "beyond_position" / "orders.csv", low_memory=False)
    rows = rows[(rows["model"] == "packaged/smollm2-135m") & (rows["lowered"] == rows["blocks"] // 2)]
    by = dict(list(rows.groupby("quantizer")))
    loss = {name: part.groupby("order")["loss"].mean() for name, part in by.items()}
    drawn = {name: part.loc[part["order"].str.startswith("random"), "loss"] for name, part in by.items()}
    assert loss["rtn"]["LIM"] < loss["rtn"][list(lw.claims.RAMPS)].min()
    assert (drawn["rtn"] > loss["rtn"]["LIM"]).mean() > 0.95 and (drawn["hqq"] < loss["hqq"]["LIM"]).all()
    assert loss["hqq"][list(lw.claims.RAMPS)].idxmin() == "late first"


def test_from_4_to_3_bits_our_models_lose_too_little_to_tell_orders_apart():
    _, rows = orders("4→3")
    three = rows[rows["model"].isin(["6L", "12L", "24L"]) & (rows["order"] == "LIM")]
    ends = three.pivot_table(index="model", columns=three["lowered"] / three["blocks"], values="loss")
    assert (ends[1.0] - ends[0.0]).max() < 0.05


def test_widths_by_lr_lose_to_a_ramp_on_our_models():
    rows = pd.read_csv(ROOT / "results" / "beyond_position" / "widths.csv")
    rows = rows[rows["model"].isin(["6L", "12L", "24L"]) & (rows["draw"] == 0)]
    groups = dict(list(rows.groupby(["model", "mean"])))
    assert len(groups) == 6
    for part in groups.values():
        drawn = part["plan"].str.startswith("random")
        loss = part[~drawn].groupby("plan")["loss"].min()
        assert loss["early first, block 0 kept"] < loss["LR"] - 0.02
        assert (part.loc[drawn, "loss"] > loss["LR"]).mean() > 0.5


def test_a_training_seed_can_weigh_more_than_six_blocks():
    (first, *others), twelve = gaps("6L", "6L-s1", "6L-s2"), gaps("12L", "12L-s1", "12L-s2")
    assert (first - others > np.mean([first, *others]) - twelve.mean()).all()


def test_the_models_of_twenty_four_blocks_end_where_it_says():
    twelve = gaps("12L", "12L-s1", "12L-s2")
    assert twelve.min() < gaps("24L") < twelve.max() and gaps("24L-s1", "24L-s2").max() < twelve.min()


def test_the_other_optimizer_is_all_that_sets_its_model_apart():
    assert log("12L-muon")["recipe"] == log("12L")["recipe"] | {"name": "12L-muon", "optimizer": "muon"}


def test_quantizing_once_saves_less_where_quantizing_is_cheap():
    measured = pd.read_csv(ROOT / "results" / "benchmarks" / "quantization.csv").set_index("quantity")["value"]
    anew = measured.filter(like="loading and quantizing anew / sweep")
    assert len(anew)
    for name, ratio in anew.items():
        assert (ratio >= 5) == ("hqq" in name), name


def test_deeper_models_tolerate_no_more_slicing_and_many_more_layers_at_2_bits_in_lims_order():
    steps = pd.read_csv(ROOT / "results" / "depth" / "steps.csv", low_memory=False)
    shares = lw.claims.tolerated(steps[steps["model"].isin(OURS) & (steps["model"] != "12L-muon")])
    verdicts = {kind: lw.claims.q4(part) for kind, part in shares.groupby("kind")}
    assert {verdicts[kind].verdict for kind in ("bits, LIM", "bits, random", "slicing")} == {"inconclusive"}
    assert verdicts["slicing"].low < 0 < verdicts["slicing"].high < 2
    assert verdicts["bits, LIM"].low > verdicts["bits, random"].high


def test_lim_adds_little_to_a_quantizer_that_chooses_and_zd_does_harm():
    rows = pd.read_csv(ROOT / "results" / "dynamic_quantizers" / "plans.csv")
    loss = rows[rows["what"].isin(["both", "nothing"])].groupby(["model", "plan"])["loss"].mean().unstack()
    assert set(loss.index) == {"6L", "12L", "24L"}
    assert (loss["LIM"] - loss["uniform"]).between(-0.01, 0).all() and (loss["ZD"] - loss["uniform"] > 0.05).all()
