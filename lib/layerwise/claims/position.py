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
    CANNOT_TELL,
    Verdict,
    a_gain,
    all_of,
    counted,
    in_words,
    more_than_luck,
    turned,
)
from layerwise.stats import Estimate, Luck

KEPT = "random, ends kept"  # drawn at random, with the ends where most scores have them
TWICE = math.log(2)  # nats: where constant slicing more than doubles the dense perplexity, both models are wrecked


def beyond_position(rows: pd.DataFrame, choice: pd.DataFrame, order: str = "LIM") -> Verdict:
    """Whether a score's order of blocks knows more than where blocks sit.

    Rows of one setting as for `block_orders.read_orders`, with the order, `RAMPS`, "random" and "random, ends kept";
    `choice` are those of the ramps on calibration text, which decide what the rival is. The effect is the mean loss
    over the sweep by the best ramp minus that by the order, in nats per token, positive = the order is better, paired
    over windows.

    It holds where the order is better than that ramp (`verdict.a_gain`, any gain counts) and than random orders of
    either kind (`verdict.more_than_luck`); it doesn't where one of them is better. Those that keep the ends are no
    rivals on a model whose ends matter least. Raises ValueError as `read_orders` and `best_by_position` do.
    """
    ramp = block_orders.best_by_position(choice)
    sweep = block_orders.against_random(rows, order, KEPT, ramp, "random")
    beyond = stats.mean(block_orders.saved(sweep, order, ramp)[0])
    knows, why_knows = a_gain(beyond, 0, "nats")
    savings = {random: block_orders.saving(sweep, order, random) for random in block_orders.RANDOM}
    more, why_more, luck = _against_each(savings)
    reason = (
        f"In the sweep ({sweep.name}) {order} saves {in_words(beyond, 'nats')} on average against {ramp}, which "
        f"measures nothing: {why_knows}; {why_more}."
    )
    statement = f"{order} orders layers better than any ramp over depth, and than random orders."
    return Verdict(f"{order} beyond position", statement, all_of([knows, more]), *beyond, "nats", reason, rows, luck)


def slices_beyond_position(rows: pd.DataFrame, choice: pd.DataFrame, plan: str = "LR") -> Verdict:
    """Whether widths that follow a score are better than widths that follow from where blocks sit.

    Rows of one model, all plans of one mean of the same size: plan, mean, base, draw (of calibration text), sample (of
    random plans; 0 for others), window, and loss, minus the dense model's, in nats per token. `choice` has plan, mean,
    base and loss on calibration text, of the plan and of those by position: at each mean it decides which base the plan
    is judged at, and which plan by position at which base is its rival. Means at which the plan "constant" more than
    doubles perplexity are left out. The plans "random" and "random, ends kept" deal the score's values out to other
    blocks, at that base.

    The effect is the change of perplexity by the plan against the rival in %, negative = the score is better, mean over
    means, paired over draws and windows. It holds where that is a gain (`verdict.a_gain`), and one over random plans
    too (`verdict.more_than_luck`). Raises ValueError for rows that lack a column or a plan that is asked for.
    """
    needed = ["model", "plan", "mean", "base", "draw", "sample", "window", "loss"]
    if missing := [name for name in needed if name not in rows]:
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are {', '.join(needed)}")
    rows = within_twice(rows)
    statement = f"{plan} says more about widths than where a block sits."
    beyond, rivals = [], []
    over_random: dict[str, list[np.ndarray]] = {random: [] for random in block_orders.RANDOM}
    for mean, part in rows.groupby("mean"):
        means = choice[choice["mean"] == mean].groupby(["plan", "base"])["loss"].mean()
        if plan not in means.index.get_level_values("plan") or len(means.index.unique("plan")) < 2:
            raise ValueError(f"no rows on calibration text choose between {plan} and plans by position at {mean:g}")
        rival, at = means.drop(plan, level="plan").idxmin()
        base = means[plan].idxmin()
        own = _losses(part, plan, base, "draw")
        beyond.append((own - _losses(part, rival, at, "draw")).to_numpy())
        for random, savings in over_random.items():
            savings.append(_losses(part, random, base, "sample").to_numpy() - own.iloc[[0]].to_numpy())
        rivals.append(rival)
    if not beyond:
        reason = "At every mean constant slicing more than doubles perplexity, so there is nothing to judge."
        return Verdict(f"{plan} beyond position", statement, CANNOT_TELL, np.nan, np.nan, np.nan, "%", reason, rows)
    change = percent(stats.crossed_mean(np.mean(beyond, axis=0)))
    knows, why_knows = a_gain(turned(change), 0, "%")
    gains = {random: np.mean(savings, axis=0) for random, savings in over_random.items()}
    more, why_more, luck = _against_each(
        {random: (stats.crossed_mean(gain), stats.luck(0, -gain.mean(axis=1))) for random, gain in gains.items()}
    )
    reason = (
        f"Over {counted(len(rivals), 'mean slice')}, {plan} changes perplexity by {in_words(change, '%')} against "
        f"{' and '.join(dict.fromkeys(rivals))}, which measures nothing: {why_knows}; "
        f"{why_more}."
    )
    return Verdict(f"{plan} beyond position", statement, all_of([knows, more]), *change, "%", reason, rows, luck)


def within_twice(rows: pd.DataFrame, constant: str = "constant") -> pd.DataFrame:
    """Rows at the means where constant slicing at most doubles the dense model's perplexity.

    Rows: plan, mean, and loss minus the dense model's in nats per token. Raises ValueError without rows of `constant`.
    """
    losses = rows[rows["plan"] == constant].groupby("mean")["loss"].mean()
    if absent := set(rows["mean"]) - set(losses.index):
        raise ValueError(f"no row has the plan {constant!r} at a mean of {min(absent):g}")
    return rows[rows["mean"].isin(losses.index[losses <= TWICE])]


def knowledge(scores: pd.DataFrame, damage: pd.DataFrame) -> pd.DataFrame:
    """How scores agree with measured damage, by rank: as they are, and given how deep a block sits.

    `scores`: model, score, block, value (higher = more important); `damage`: model, kind, block, window, value (higher
    = worse). A row per model, score and kind: `correlation` and `partial`, each with a 95 % interval over blocks and
    windows (`_low`, `_high`), and the luck of the second, `as_good` of `drawn` random orders. `depth` is how depth
    itself agrees with the damage. Where depth explains a score whole, partial is NaN, for nothing remains of it.
    """
    found = []
    for (model, kind), part in damage.groupby(["model", "kind"], sort=False):
        harm = part.pivot(index="block", columns="window", values="value").to_numpy(float)
        depth = np.arange(len(harm))
        for score, values in scores[scores["model"] == model].groupby("score", sort=False):
            value = values.sort_values("block")["value"].to_numpy(float)
            row = {"model": model, "kind": kind, "score": score}
            row |= dict(zip(["correlation", "low", "high"], stats.rank_correlation(value, harm), strict=True))
            partial = stats.rank_correlation(value, harm, given=depth)
            row |= dict(zip(["partial", "partial_low", "partial_high"], partial, strict=True))
            none = stats.Luck(0, 0) if np.isnan(partial.value) else stats.rank_luck(value, harm.mean(axis=1), depth)
            row |= none._asdict() | {"depth": stats.rank_correlation(depth, harm, over=("windows",)).value}
            found.append(row)
    return pd.DataFrame(found)


def _against_each(savings: Mapping[str, tuple[Estimate, Luck]]) -> tuple[str, str, Luck]:
    """Verdict, why, and luck of a saving in nats against each kind of random plans: the worse luck of both."""
    each = {random: more_than_luck(*saving, 0, "nats") for random, saving in savings.items()}
    why = "; ".join(
        f"against {random} {in_words(gain, 'nats')}: {each[random][1]}" for random, (gain, _) in savings.items()
    )
    return all_of(one for one, _ in each.values()), why, max((luck for _, luck in savings.values()), key=lambda x: x.p)


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
