"""The page of what didn't work says what the committed rows say: a sentence that they no longer bear out is red."""

import json
import re
from itertools import product
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
from layerwise import claims, results, stats
from layerwise.claims import block_orders
from layerwise.experiments.cases import item_rows, window_rows

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "book" / "what_failed.md").read_text().split())
BY_BLOCK = {"rtn", "quanto", "hqq"}  # quantizers
SHALLOW, DEEP = ["6L", "12L"], "24L"
MODELS = {*SHALLOW, DEEP}  # those of seed 0


def every(*others):
    """What every model must have: the settings of a test, none of which may be missing from its rows."""
    return set(product(MODELS, *others))


def says(*sentences):
    for sentence in sentences:
        assert sentence in PAGE, f"the page no longer says {sentence!r}: change this test with it"


def rows(chapter, table):
    """Committed rows of the models of seed 0."""
    found = results.load_rows(ROOT / "results" / chapter / f"{table}.csv")
    assert MODELS <= set(found["model"])
    return found[found["model"].isin(MODELS)]


def quantized(table, *levels):
    found = rows("variable_quantization", table)
    return found[found["levels"].isin(levels)] if levels else found


def techniques(rows, *more):
    """The rows of each model by each of the techniques that quantize block by block."""
    parts = dict(list(rows.groupby(["model", "quantizer", *more])))
    assert {name[:2] for name in parts} == every(BY_BLOCK)
    return parts.items()


def by_order(rows):
    """Mean loss over the sweep of each order and draw."""
    return rows.groupby(["order", "draw"])["loss"].mean()


def by_block(rows):
    """Mean damage over windows of each block."""
    return rows.set_index("block").filter(regex=r"^w\d").mean(axis=1)


def luck(rows, order):
    """Chance that a random order does as well over the sweep."""
    losses = by_order(rows)
    return block_orders.luck(-losses[order, 0], -losses["random"])


def over_draws(differences):
    return stats.crossed_mean(differences.pivot(index="draw", columns="window", values="difference").to_numpy())


def seeds(blocks):
    """Models of a depth, by the shipped recipe, that the chapter on depth has rows of; that of seed 0 is the first."""
    names = results.load_rows(ROOT / "results" / "depth" / "steps.csv")["model"].unique()
    return sorted(name for name in names if re.fullmatch(rf"{blocks}L(-s\d+)?", name))


def log(name):
    return json.loads((lw.models.WEIGHTS / name / "training.json").read_text())


def gap(name):
    """Test loss above the floor."""
    return log(name)["test_loss"] - log(name)["test_floor"]


def test_zd_turns_the_order_round():
    says(
        "On every model of the chapters on bits, by rounding, quanto and HQQ in the groups that each comes with, the "
        "layers that ZD calls most important tend to do the least damage when they get fewer bits, and on the way to 2 "
        "bits quality is lost sooner by its order than in a random one",
        "by GPTQ none of the three random orders that were drawn is as bad.",
    )
    scores = quantized("scores").query("score == 'ZD'").set_index(["model", "block"])["value"]
    damaged = techniques(quantized("damage"), "levels")
    assert {setting for setting, _ in damaged} == every(BY_BLOCK, {"4→2", "8→4"})
    for (model, quantizer, levels), part in damaged:
        damage = by_block(part)
        found = stats.rank_correlation(scores[model][damage.index].to_numpy(), damage.to_numpy()[:, None])
        assert found.value < -0.75, (model, quantizer, levels)
    orders = quantized("orders", "4→2", "8→2")
    shares = claims.shares(orders[orders["order"].isin(["ZD", "random"])])
    shares = shares.pivot(index=["model", "quantizer", "levels"], columns="order")
    assert set(shares.index) == every(BY_BLOCK, {"4→2", "8→2"})
    assert (shares["high", "ZD"] < shares["low", "random"]).all()
    by_gptq = dict(list(quantized("gptq", "4→2", "8→2").groupby(["model", "levels"])))
    assert set(by_gptq) == every({"4→2", "8→2"})
    for setting, part in by_gptq.items():
        losses = by_order(part)
        assert len(losses["random"]) == 3 and (losses["random"] < losses["ZD", 0]).all(), setting


def test_importance_adds_little_to_a_quantizer_that_chooses_for_itself():
    says(
        "gains six tenths of a per cent of perplexity or less from moving bits and outliers between blocks by LIM, "
        "which can't be told from nothing, and loses by ZD",
        "A gain of one per cent by LIM is ruled out on the deepest model alone.",
    )
    plans = window_rows(rows("dynamic_quantizers", "plans").query("what in ['nothing', 'both']"))
    parts = dict(list(plans.groupby("model")))
    assert set(parts) == MODELS
    for name, part in parts.items():
        by_lim, by_zd = (claims.q2(part, score) for score in ("LIM", "ZD"))
        assert -0.65 < by_lim.effect < 0 < by_lim.high, name
        assert (by_lim.low > -1) == (by_lim.verdict == "doesn't hold") == (name == DEEP), name
        assert by_zd.low > 3, name


def test_two_bits_beat_pruning():
    says(
        "with all blocks at 2 bits, rounded to nearest, the models lose less than a nat per token, and the best "
        "pruning that still has as many bytes loses about three nats more, or more than that",
        "to be as small, a model of 24 blocks keeps three of them, one of twelve a single one, and one of six none; or "
        "a quarter of its width at the most",
    )
    room = {}
    for name, part in rows("quantization_vs_pruning", "plans").groupby("model"):
        gain = claims.at_equal_bytes(part).set_index("average_bits").loc[2]
        assert gain["low"] > 2.75
        assert (part.query("family == 'uniform bits' and average_bits == 2")["loss"] < 1).all()
        kept = part["amount"].str.extract(r"(\d+) of \d+ blocks$")[0].astype(float)
        block, rest = np.polyfit(kept.dropna(), part["bytes"][kept.notna()], 1)
        room[name] = int((gain["bytes"] - rest) / block)
        cut = part["amount"].str.extract(r"(\d+) % narrower")[0].astype(float)
        assert (cut[part["bytes"] <= gain["bytes"]].dropna() >= 75).all()
    assert room == {"6L": 0, "12L": 1, "24L": 3}


def test_removal_by_lim_ends_behind_removal_of_the_last():
    says(
        "While few blocks are gone, LIM chooses better. With half of them gone on the two shallower models, and five "
        "in six on the deepest, its choice loses clearly more than removing the last blocks",
        "on all three models, the first block alone loses less than the two that LIM keeps",
        "of ten random first cuts, eight lose less on each of the two shallower models, and all ten on the deepest",
    )
    plans = rows("quantization_vs_pruning", "plans")
    windows = block_orders.windows_of(plans, ["model", "family", "amount"])
    for name, part in plans.groupby("model"):
        lim, last = (
            part[part["family"] == family].groupby("amount")[windows].mean()
            for family in ("removal by LIM", "removal of the last")
        )
        blocks = int(name.removesuffix("L"))
        late = blocks // 2 if name in SHALLOW else blocks // 6
        first, late, two, one = (f"{kept} of {blocks} blocks" for kept in (5 * blocks // 6, late, 2, 1))
        assert stats.mean(last.loc[first] - lim.loc[first]).low > 0
        cuts = part[part["family"] == "removal, random"].groupby("draw").first()  # the fewest blocks gone
        losses = part[part["family"] == "removal of the last"].set_index("amount")["loss"]
        less = cuts["loss"] < losses[cuts["amount"].unique().item()]
        assert len(less) == 10 and less.sum() == (8 if name in SHALLOW else 10)
        assert stats.mean(lim.loc[late] - last.loc[late]).low > 0.5
        assert (lim.loc[one] == last.loc[one]).all() and stats.mean(lim.loc[two] - lim.loc[one]).low > 0


def test_widths_that_lie_far_apart_gain_nothing():
    says(
        "Blocks at 8 and at 2 bits are worse than 4 bits for all, at about the same average, on every model, by "
        "rounding, quanto and HQQ. Of all mixes in LIM's order only 4 and 2 bits gained anything against one width, "
        "which was 3 bits (quanto has none): by rounding and GPTQ on every model, by HQQ on the two shallower ones. "
        "Corrected for how many mixes were compared, GPTQ's gains alone are left. 8 and 4 against 6, which rounding "
        "alone has, made no difference that could be told",
    )
    mixes = pd.concat([quantized("orders"), quantized("gptq")]).query("order == 'LIM' and 0 < lowered < blocks")
    one_width, keys = quantized("uniform"), ["model", "quantizer", "average_bits"]
    found = mixes.merge(one_width, on=keys, suffixes=("", "_one"))
    windows = block_orders.windows_of(mixes, keys)
    change = found[windows].to_numpy() - found[[f"{name}_one" for name in windows]].to_numpy()
    found[["value", "low", "high"]] = [stats.mean(each) for each in change]
    found["p"] = stats.holm([stats.p_value(each) for each in change])
    found["what"] = found["levels"] + found["bits"].map(" against {:g}".format)
    far = found[(found["what"] == "8→2 against 4") & found["quantizer"].isin(BY_BLOCK)]
    assert (
        sorted(zip(far["model"], far["quantizer"], strict=True)) == sorted(every(BY_BLOCK)) and (far["low"] > 0).all()
    )
    gained = found[found["high"] < 0]
    assert set(gained["what"]) == {"4→2 against 3"}
    where = set(zip(gained["model"], gained["quantizer"], strict=True))
    assert where == every({"rtn", "gptq"}) | {(name, "hqq") for name in SHALLOW}
    left = gained[gained["p"] <= 0.05]
    assert set(zip(left["model"], left["quantizer"], strict=True)) == every({"gptq"})
    assert "quanto" not in set(one_width.query("bits == 3")["quantizer"])
    near = found[found["what"] == "8→4 against 6"]
    assert sorted(near["model"]) == sorted(MODELS) and ((near["low"] < 0) & (near["high"] > 0)).all()


def test_part_of_a_scores_gain_is_its_first_block():
    says(
        "on the two deeper models block 0 and the last three are the four blocks that cost most",
        "on the two deeper models less is left then",
        "On six blocks a random order may do as well as a score by chance alone, which is why some claims can't be "
        "told there.",
        "On six blocks some random orders do.",
    )
    for (name, quantizer), part in techniques(quantized("damage", "4→2")):
        damage, blocks = by_block(part), part["block"].nunique()
        assert name == "6L" or set(damage.nlargest(4).index) == {0, *range(blocks - 3, blocks)}, (name, quantizer)
    for (name, quantizer), part in techniques(quantized("orders", "4→2")):
        sweep = block_orders.read_orders(part, list(block_orders.RANDOM))
        gained_by_sparing = stats.crossed_mean(np.subtract(*map(sweep.area, block_orders.RANDOM)))
        assert name == "6L" or gained_by_sparing.low > 0, (name, quantizer)
        assert (luck(part, "LIM") > 0.05) == (name == "6L"), (name, quantizer)
        if quantizer == "quanto":  # the one that is judged
            (gained,) = claims.gains(part)["low"]
            assert gained > 0 and (claims.q1(part).verdict == "can't tell") == (name == "6L")


def test_dynamic_slicing_gains_at_equal_bytes_on_the_deepest_model_only():
    says(
        "On the two shallower models, dynamic slicing gains at equal width and not at equal bytes.** The paper's rule "
        "gives width to where matrices are dear. At equal bytes its gain is gone there; on the deepest model most of "
        "it stays.",
        "What keeps a gain at equal bytes on the two deeper models, and perhaps on the shallowest, is the order of the "
        "blocks without their distances; a ramp that measures nothing, and keeps late blocks, does better on the "
        "shallowest and can't be told from it on the next, but it ruins the deepest",
    )
    budgets = rows("dynamic_slicing", "rivals")
    stored = budgets[budgets["budget"] == "width"].groupby(["model", "plan"])["bytes"].mean().unstack()
    assert (stored["LR"] > stored["constant"]).all()
    differences = claims.against_constant(window_rows(budgets))
    found = {setting: over_draws(part) for setting, part in differences.groupby(["model", "plan", "budget"])}
    for name in SHALLOW:
        assert found[name, "LR", "width"].high < min(0, found[name, "LR", "bytes"].low)
        assert found[name, "LR", "bytes"].high > 0
    of_width, of_bytes = (found[DEEP, "LR", budget] for budget in ("width", "bytes"))
    assert of_bytes.high < 0 and of_bytes.value < of_width.value / 2
    assert found["12L", "LR ranks", "bytes"].high < 0 and found[DEEP, "LR ranks", "bytes"].high < 0
    assert found["6L", "LR ranks", "bytes"].value < 0 < found["6L", "LR ranks", "bytes"].high
    at_bytes = differences[differences["budget"] == "bytes"]
    ramp, ranks = (at_bytes[at_bytes["plan"] == plan] for plan in ("late kept", "LR ranks"))
    pairs = ramp.merge(ranks, on=["model", "draw", "window"], suffixes=("", "_ranks"))
    pairs["difference"] -= pairs["difference_ranks"]
    apart = {name: over_draws(part) for name, part in pairs.groupby("model")}
    assert apart["6L"].high < 0 and apart["12L"].low < 0 < apart["12L"].high
    assert found[DEEP, "late kept", "bytes"].low > 0.4


def test_a_sliced_model_may_need_more_memory():
    says("every model in {numref}`fig-fits` needs less memory to serve without a quarter of its width than with it")
    says("a tenth narrower, all models of {numref}`fig-bits-or-pruning` take more bytes than before")
    slicing = "family in ['constant slicing', 'dynamic slicing'] and amount == '10 % narrower'"  # those of the figure
    for name, part in rows("quantization_vs_pruning", "plans").query(slicing).groupby("model"):
        assert (part["bytes"] > lw.size(lw.load(f"embedded/{name}")[0]).bytes).all()
    needs = results.load_rows(ROOT / "results" / "what_fits" / "needs.csv")
    serving = needs.pivot(index="model", columns="plan", values="serving")
    assert (serving["sliced"] < serving["dense"]).all()


def test_accuracy_cannot_tell_dynamic_from_constant_slicing():
    says(
        "The interval of the difference is wider than the effect that the paper reports, since it rests on two draws "
        "of calibration text",
    )
    papers = pd.read_csv(ROOT / "results" / "papers.csv").query("claim == 'S1'")
    reported = float(papers["value"].item())
    answers = item_rows(rows("dynamic_slicing", "answers").query("mean > 0"))
    assert answers["draw"].nunique() == 2
    differences = claims.against_constant(answers, "correct", ("task", "item"))
    for _, part in differences.groupby("model"):
        verdict = claims.s1_tasks(part)
        assert verdict.verdict == "can't tell" and verdict.high - verdict.low > reported


def test_accuracy_tells_orders_apart():
    says(
        "with half of the blocks at 2 bits by quanto, accuracy in LIM's order is above that in ZD's, and in LIM's "
        "reversed, by several times its error",
    )
    answers = rows("variable_quantization", "answers").query("quantizer == 'quanto'")
    assert set(answers["model"]) == MODELS
    for name, part in answers.groupby("model"):
        half = part[part["lowered"] == part["lowered"].max() / 2].sort_values("task")
        marks = half.groupby(["order", "draw"])["right"].sum()
        by_lim, *others = (np.array(list(marks[order, 0])) == "+" for order in ("LIM", "ZD", "reversed LIM"))
        for other in others:
            gain = by_lim - 1.0 * other
            assert gain.mean() > 5 * stats.standard_error(gain), name


def test_a_training_seed_can_weigh_more_than_six_blocks():
    says(
        "Of three models of six blocks that differ in nothing but their training seed, the one of seed 0, which the "
        "other chapters take, ended further above the other two than six blocks lie above twelve on average; the other "
        "two lie closer to every model of twelve than to it (two of these were trained with `float32` products, all of "
        "six with `bfloat16`;",
        "It has learned least of the three, and by LIM's order the most of its blocks can go down in bits",
    )
    _, *siblings = seeds(6)
    assert siblings == ["6L-s1", "6L-s2"]
    exact = [name for name in seeds(6) + seeds(12) if log(name).get("products") == "float32"]  # first logs don't say
    assert exact == ["12L-s1", "12L-s2"]
    others, twelve = (np.array(list(map(gap, names))) for names in (siblings, seeds(12)))
    assert (gap("6L") - others > np.mean([gap("6L"), *others]) - np.mean(twelve)).all()
    assert (abs(others[:, None] - twelve) < gap("6L") - others[:, None]).all()
    steps = results.load_rows(ROOT / "results" / "depth" / "steps.csv").query("kind == 'bits, LIM'")
    shares = claims.tolerated(steps).set_index("model")
    assert shares.loc["6L", "low"] > shares.loc[siblings, "high"].max()


def test_another_optimizer():
    says(
        "Damage by rounding to 2 bits falls with ZD there too. The rank correlation is weaker than on each of its "
        "three twins, but another seed by AdamW might have it as weak",
        "fewer layers can go from 4 to 2 bits in LIM's order before quality leaves 90 % than would be expected of "
        "another seed by AdamW ({numref}`fig-depth`): its twins can lower more than half. Five of twenty random orders "
        "reach as far, and none does on the twins. LIM isn't useless there: over all steps down to 2 bits its order "
        "loses less than each of the twenty.",
        "The other chapters' verdicts on LIM are all of models that AdamW trained.",
    )
    muon, twins = "12L-muon", seeds(12)
    assert len(twins) == 3 and log(muon)["recipe"] == log("12L")["recipe"] | {"name": muon, "optimizer": "muon"}
    zd = {}
    scores = results.load_rows(ROOT / "results" / "depth" / "scores.csv").query("score == 'zd'")
    for name, part in results.load_rows(ROOT / "results" / "depth" / "damage.csv").groupby("model"):
        damage = part.filter(regex=r"^w\d+$").to_numpy()
        zd[name] = stats.rank_correlation(scores.loc[scores["model"] == name, "value"], damage, over=("windows",))
    assert zd[muon].high < 0 and zd[muon].low > max(zd[twin].high for twin in twins)
    _, low, high = np.tanh(stats.another(np.arctanh([zd[twin].value for twin in twins])))
    assert low < zd[muon].low < high
    steps = results.load_rows(ROOT / "results" / "depth" / "steps.csv")
    lim = claims.tolerated(steps[steps["kind"] == "bits, LIM"]).set_index("model")
    assert lim["high"][muon] < stats.another(lim["value"][twins]).low and (lim["value"][twins] > 0.5).all()
    for name, as_far in ({muon: 5} | dict.fromkeys(twins, 0)).items():
        of = steps[steps["model"].eq(name) & steps["kind"].isin(["bits, LIM", "bits, random"])]
        each = of.assign(model=of["kind"] + of["draw"].astype(str), draw=0, kind="bits")
        shares = claims.tolerated(each).set_index("model")["value"]
        losses = each.set_index("model").filter(regex=r"^w\d+$").mean(axis=1).groupby("model").mean()
        ours = [label for label in shares.index if "LIM" in label]
        assert len(shares) == 21 and (shares.drop(ours) >= shares[ours[0]]).sum() == as_far
        assert (losses.drop(ours) > losses[ours[0]]).all()
    for path in (ROOT / "results").glob("*/*.csv"):
        assert path.parent.name == "depth" or muon not in path.read_text()


def test_quantizing_once_saves_less_where_quantizing_is_cheap():
    says(
        "five times as fast as one that loads and quantizes the model for every plan. By HQQ it is; by rounding and by "
        "quanto, which are quicker, it falls short",
        "that still leaves almost half of the blocks to be run",
        "as by HQQ on a single window",
    )
    benchmarks = ROOT / "results" / "benchmarks"
    measured = pd.read_csv(benchmarks / "quantization.csv").set_index("quantity")["value"]
    anew = measured.filter(like="loading and quantizing anew / sweep")
    assert len(anew) == 9
    for name, ratio in anew.items():
        assert (ratio >= 5) == ("hqq" in name), name
    once = measured.filter(like="sweep / its evaluations")
    assert once.index[once > 1.3].tolist() == ["random 91M, 1 window, hqq: sweep / its evaluations"]
    assert pd.read_csv(benchmarks / "quantization_seconds.csv")["share_run"].dropna().between(0.4, 0.5).all()


def test_twenty_four_blocks_by_the_recipe_of_six():
    says(
        "the deepest model of seed 0 ends among those of twelve, and it missed a skill",
        "on the items about scripts, whose wrong answers are steps of the others, it is below chance, where both "
        "shallower ones are far above. It is better at sums and at where things are",
        "Two more training seeds end below every model of twelve. They get half and almost two thirds of the items "
        "about scripts right, still fewer than both shallower ones, and at sums and at where things are they are not "
        "clearly better than both",
        "the lead at the other two tasks is that of one seed",
    )
    twins, lead = [f"{DEEP}-s1", f"{DEEP}-s2"], ["world_sums", "world_coreference"]
    assert min(map(gap, seeds(12))) < gap(DEEP) < max(map(gap, seeds(12)))
    assert max(map(gap, twins)) < min(map(gap, seeds(12)))
    accuracy = results.load_rows(ROOT / "results" / "embedded_models" / "accuracy.csv")
    accuracy = accuracy.set_index(["model", "task"])["value"].unstack()
    assert accuracy.loc[DEEP, "world_scripts"] < 0.25 and (accuracy.loc[SHALLOW, "world_scripts"] > 0.7).all()
    half, two_thirds = accuracy.loc[twins, "world_scripts"]
    assert 0.45 < half < 0.55 and 0.6 < two_thirds < 0.66
    assert (accuracy.loc[DEEP] > accuracy.loc[SHALLOW].max() + 0.03)[lead].all()
    assert (accuracy.loc[twins] < accuracy.loc[SHALLOW].max() + 0.02)[lead].all(axis=None)  # two standard errors


def test_deeper_models_stand_no_more_slicing():
    says(
        "those of more layers can have a larger share of them at 2 bits in LIM's order, and a larger share removed. It "
        "isn't so for the width: at 6, 12 and 24 blocks about 12 % of it can be cut before quality leaves 90 %, and a "
        "gain of 2 points for each doubling of the depth is ruled out",
        "In random orders it can't be told whether a larger share of the layers can go to 2 bits",
        "nine small models that AdamW trained, three of each depth, and deeper ones have more weights and have mostly "
        "come closer to the floor",
    )
    steps = results.load_rows(ROOT / "results" / "depth" / "steps.csv").query("recipe == 'AdamW'")
    assert steps.groupby("blocks")["model"].nunique().to_dict() == {6: 3, 12: 3, 24: 3}
    assert (np.diff([np.mean(list(map(gap, seeds(blocks)))) for blocks in (6, 12, 24)]) < 0).all()
    shares = claims.tolerated(steps)
    verdicts = {kind: claims.q4(part).verdict for kind, part in shares.groupby("kind")}
    assert verdicts == {
        "bits, LIM": "holds",
        "bits, random": "can't tell",
        "slicing": "doesn't hold",
        "removal, LIM": "holds",
        "removal, greedy": "holds",
    }
    width = shares[shares["kind"] == "slicing"].groupby("blocks")["value"].mean()
    assert list(width.index) == [6, 12, 24] and width.between(0.11, 0.13).all()


def test_from_8_to_4_bits_no_order_can_leave_90_percent():
    says(
        "In small groups of weights, even all blocks at 4 bits leave quality within two per cent of where it was.",
        "although on the deeper models LIM's order loses less than nearly all random ones, by thousandths of a nat",
    )
    orders = quantized("orders", "8→4")
    assert np.exp(-orders["loss"]).min() > 0.98
    for (name, quantizer), part in techniques(orders):
        assert claims.q1(part).verdict == "can't tell"
        losses = by_order(part)
        saved = losses["random"] - losses["LIM", 0]
        assert name == "6L" or ((saved > 0).mean() >= 0.95 and saved.abs().max() < 0.005), (name, quantizer)
