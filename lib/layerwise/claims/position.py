"""What a score knows beyond where a block sits: against the best plan that measures nothing, and given depth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import block_orders
from layerwise.claims.differences import percent
from layerwise.claims.verdict import (
    DOES_NOT,
    INCONCLUSIVE,
    NATS,
    Part,
    Verdict,
    a_gain,
    all_of,
    counted,
    in_words,
    more_than_luck,
    turned,
)
from layerwise.plans import by_position
from layerwise.stats import Estimate, Luck

KEPT = "random, ends kept"  # drawn at random, with the ends where most scores have them
FEW = 199  # orders that keep the ends, at most, are too few for one of them to be rare
DRAWS = 5  # of calibration text that a verdict on perplexity needs
STAKE = 5  # times the least gain that counts: what has to be lost before orders can be told apart by it
TWICE = math.log(2)  # nats: where constant slicing more than doubles the dense perplexity, both models are wrecked


def beyond_position(rows: pd.DataFrame, choice: pd.DataFrame, order: str = "LIM") -> Verdict:
    """Whether a score's order of blocks knows more than where blocks sit.

    Rows of one setting as for `block_orders.read_orders`, with the order, `RAMPS`, "random" and "random, ends kept";
    `choice` are those of the ramps on calibration text, which decide what the rival is. The effect is the mean loss
    over the sweep by the best ramp minus that by the order, in nats per token, positive = the order is better, paired
    over windows. Two orders are compared at the numbers of lowered blocks that both have: random ones may have fewer.

    It holds where the order is better than that ramp (`verdict.a_gain`, from 0.01 nats) and than random orders of
    either kind (`verdict.more_than_luck`); it doesn't where one of these is ruled out. Those that keep the ends are no
    rivals on a model whose ends matter least, hence both kinds; where they are few, since the blocks are, none can be
    lucky enough among them, and only the gain over them counts. Raises ValueError as `read_orders` and
    `best_by_position` do.

    Where fewer bits for all blocks cost less than five times 0.01 nats hardly an order could save as much: then what
    isn't behind the ramp is inconclusive.
    """
    ramp = block_orders.best_by_position(choice)
    sweep = block_orders.against_random(rows, order, KEPT, "random")
    of_both = block_orders.read_orders(rows, [order, ramp])
    beyond = stats.mean(block_orders.saved(of_both, order, ramp)[0])
    knows, why_knows = a_gain(beyond, NATS, "nats")
    savings = {random: block_orders.saving(sweep, order, random) for random in block_orders.RANDOM}
    more, why_more, luck = _against_each(savings, sweep.blocks)
    reason = (
        f"In the sweep ({sweep.name}) {order} saves {in_words(beyond, 'nats')} on average against {ramp}, which "
        f"measures nothing: {why_knows}; {why_more}."
    )
    statement = f"{order} orders layers better than the best ramp over depth, and than random orders."
    verdict = all_of([knows, more])
    parts = (Part(beyond, NATS, "nats"), *(Part(gain, NATS, "nats") for gain, _ in savings.values()))
    stake = np.diff(of_both.loss[order][0, [0, -1]].mean(axis=-1)).item()
    if stake < STAKE * NATS and verdict == DOES_NOT and beyond.high >= 0:
        verdict, parts = INCONCLUSIVE, ()
        reason += f" Fewer bits for all blocks cost {stake:.3f} nats, too little for {NATS:g} to tell orders apart."
    return Verdict(f"{order} beyond position", statement, verdict, *beyond, "nats", reason, rows, luck, parts)


def slices_beyond_position(rows: pd.DataFrame, choice: pd.DataFrame, plan: str = "LR") -> Verdict:
    """Whether widths that follow a score are better than widths that follow from where blocks sit.

    Rows of one model, all plans of one mean of the same size: blocks (their number), plan, mean, base, draw (of
    calibration text), sample (of random plans; 0 for others), window, and loss, minus the dense model's, in nats per
    token. `choice` has plan, mean, base and loss on calibration text, of the plan and of those by position: at each
    mean it decides which base the plan is judged at, and which plan by position at which base is its rival. Means at
    which the plan "constant" more than doubles perplexity are left out. The plans "random" and "random, ends kept" deal
    the score's values out to other blocks, at that base.

    The effect is the change of perplexity by the plan against the rival in %, negative = the score is better, mean over
    means, paired over draws and windows. It holds where that is a gain (`verdict.a_gain`, from
    1 %), and one over random plans too (`verdict.more_than_luck`); it isn't decided by fewer than 5 draws of
    calibration text. Raises ValueError for rows that lack a column or a plan that is asked for.
    """
    needed = ["model", "blocks", "plan", "mean", "base", "draw", "sample", "window", "loss"]
    if missing := [name for name in needed if name not in rows]:
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are {', '.join(needed)}")
    rows = within_twice(rows)
    statement = f"{plan} says more about widths than where a block sits."
    beyond, rivals = [], []
    over_random: dict[str, list[np.ndarray]] = {random: [] for random in block_orders.RANDOM}
    for mean, part in rows.groupby("mean"):
        base, rival, at = chosen_widths(choice, mean, plan)
        own = _losses(part, plan, base, "draw")
        beyond.append((own - _losses(part, rival, at, "draw")).to_numpy())
        for random, savings in over_random.items():
            savings.append(_losses(part, random, base, "sample").to_numpy() - own.iloc[[0]].to_numpy())
        rivals.append(rival)
    if not beyond:
        reason = "At every mean constant slicing more than doubles perplexity, so there is nothing to judge."
        return Verdict(f"{plan} beyond position", statement, INCONCLUSIVE, np.nan, np.nan, np.nan, "%", reason, rows)
    change = percent(stats.crossed_mean(np.mean(beyond, axis=0)))
    knows, why_knows = a_gain(turned(change), 1, "%")
    gains = {random: np.mean(savings, axis=0) for random, savings in over_random.items()}
    against = {r: (stats.crossed_mean(gain), stats.luck(0, -gain.mean(axis=1))) for r, gain in gains.items()}
    blocks = int(rows["blocks"].iloc[0])
    more, why_more, luck = _against_each(against, blocks)
    verdict = all_of([knows, more])
    if (draws := len(beyond[0])) < DRAWS:
        verdict, why_more = INCONCLUSIVE, f"not decided here, by {counted(draws, 'calibration sample')} of {DRAWS}"
    reason = (
        f"Over {counted(len(rivals), 'mean slice')}, {plan} changes perplexity by {in_words(change, '%')} against "
        f"{' and '.join(dict.fromkeys(rivals))}, which measures nothing: {why_knows}; "
        f"{why_more}."
    )
    parts = (Part(turned(change), 1, "%"), *(Part(gain, NATS, "nats") for gain, _ in against.values()))
    return Verdict(f"{plan} beyond position", statement, verdict, *change, "%", reason, rows, luck, parts)


def chosen_widths(choice: pd.DataFrame, mean: float, plan: str = "LR") -> tuple[float, str, float]:
    """The base at which a plan is judged, and which plan by position at which base is its rival, at a mean slice.

    Those of least loss in `choice`, rows as for `slices_beyond_position`; other plans than this one and those of
    `plans.by_position` are no rivals. Raises ValueError where it lacks either.
    """
    by_place = choice["plan"].isin([plan, *by_position(3)])
    means = choice[np.isclose(choice["mean"], mean) & by_place].groupby(["plan", "base"])["loss"].mean()
    if plan not in means.index.get_level_values("plan") or len(means.index.unique("plan")) < 2:
        raise ValueError(f"no rows on calibration text choose between {plan} and plans by position at {mean:g}")
    rival, at = means.drop(plan, level="plan").idxmin()
    return means[plan].idxmin(), rival, at


def within_twice(rows: pd.DataFrame, constant: str = "constant") -> pd.DataFrame:
    """Rows at the means where constant slicing at most doubles the dense model's perplexity.

    Rows: plan, mean, and loss minus the dense model's in nats per token. Raises ValueError without rows of `constant`.
    """
    losses = rows[rows["plan"] == constant].groupby("mean")["loss"].mean()
    if absent := set(rows["mean"]) - set(losses.index):
        raise ValueError(f"no row has the plan {constant!r} at a mean of {min(absent):g}")
    return rows[rows["mean"].isin(losses.index[losses <= TWICE])]


def knowledge(scores: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """How scores agree with measured damage, by rank: as they are, and given where a block sits.

    `scores`: model, score, block, value (higher = more important); `damage`: model, kind, block, window, value (higher
    = worse). A row per model, score and kind: `correlation`; `partial`, given depth; and `beyond`, given depth, which
    block is the first, and in models of ten blocks or more how far it is from the middle. Each has a 95 % interval over
    blocks and windows (`_low`, `_high`), and the last the luck, `as_good` of `drawn` random orders. `depth` is how
    depth itself agrees with the damage. NaN where nothing of a score remains.
    """
    found = []
    for (model, kind), part in damage.groupby(["model", "kind"], sort=False):
        harm = part.pivot(index="block", columns="window", values="value").to_numpy(float)
        depth = np.arange(len(harm))
        place = [depth, depth == 0, np.abs(2 * depth - depth[-1])][: 3 if len(depth) >= 10 else 2]
        for score, values in scores[scores["model"] == model].groupby("score", sort=False):
            value = values.sort_values("block")["value"].to_numpy(float)
            row = {"model": model, "kind": kind, "score": score}
            for name, given in {"correlation": None, "partial": depth, "beyond": place}.items():
                estimate = stats.rank_correlation(value, harm, given=given)
                row |= dict(zip([name, f"{name}_low", f"{name}_high"], estimate, strict=True))
            luck = stats.Luck(0, 0)
            if not np.isnan(row["beyond"]):
                luck = stats.rank_luck(value, harm.mean(axis=1), place)
            row |= {"as_good": luck.as_good, "drawn": luck.drawn}
            found.append(row | {"depth": stats.rank_correlation(depth, harm, over=("windows",)).value})
    return pd.DataFrame(found)


def _against_each(savings: Mapping[str, tuple[Estimate, Luck]], blocks: int) -> tuple[str, str, Luck]:
    """Verdict, why, and luck of a saving in nats against each kind of random plans: the worst luck that counts."""
    many = [random for random in savings if random != KEPT or math.factorial(blocks - 2) > FEW]
    lucks = [savings[random][1] for random in many]
    verdicts, whys = [], []
    for random, (gain, luck) in savings.items():
        judged = more_than_luck(gain, luck, NATS, "nats") if random in many else a_gain(gain, NATS, "nats")
        verdicts.append(judged[0])
        whys.append(f"against {random} {in_words(gain, 'nats')}: {judged[1]}")
    return all_of(verdicts), "; ".join(whys), max(lucks, key=lambda luck: luck.p)


def _losses(rows: pd.DataFrame, plan: str, base: float, unit: str) -> pd.DataFrame:
    """Losses of a plan at a base, a line per draw or sample and a column per window; samples are of the first draw."""
    part = rows[(rows["plan"] == plan) & np.isclose(rows["base"], base)]
    if unit == "sample":
        part = part[part["draw"] == part["draw"].min()]
    if part.empty:
        raise ValueError(f"no row has the plan {plan!r} at a base of {base:g}")
    found = part.pivot(index=unit, columns="window", values="loss")
    if not np.isfinite(found).all(axis=None):
        raise ValueError(f"{plan} must have a finite loss for every {unit} and window")
    return found
