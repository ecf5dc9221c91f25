"""Q1, Q5 and Q6: fewer bits for the blocks that a score calls unimportant, against random ones (arXiv 2406.17415).

All take the rows of `read_orders`, one per plan. The rival is a random order: "random", or "random, block 0 high",
which lowers block 0 last and so shows what is left of a claim beyond leaving block 0 alone. Further columns are not
read.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import block_orders
from layerwise.claims.block_orders import RANDOM
from layerwise.claims.verdict import (
    CANNOT_TELL,
    DOES_NOT,
    HOLDS,
    RISK,
    Verdict,
    all_of,
    counted,
    in_words,
    more_than_luck,
)
from layerwise.stats import Estimate

# Shares of layers in lower bits until which quality stays close to the original, as the abstract has them.
BY_SCORE, AT_RANDOM = (0.25, 0.5), (0.05, 0.1)
LEAST = 5  # points of layers: a gain that counts; the abstract's own ranges tell no less apart


def share_within(rows: pd.DataFrame, order: str, level: float = 0.9) -> Estimate:
    """The share of lowered blocks at which quality first leaves `level`, with a 95 % interval; higher = better.

    Quality is the dense model's perplexity divided by the plan's, exp(-mean loss difference over windows); it is
    interpolated linearly between the numbers of lowered blocks that were measured. The share is 1 where quality never
    leaves the level, and 0 where it is outside with no block lowered. Of an order that is drawn it is the mean of the
    draws' shares, what one order taken at random may expect.

    The interval is a bootstrap over windows, and for random orders over draws as well; it is missing (NaN) for a single
    window or draw. Rows are of one setting; errors as for `read_orders`, for a level outside (0, 1), and for sweeps
    over three widths, which have no such share.
    """
    return block_orders.read_orders(rows, [order]).shares(order, level).estimate


def shares(rows: pd.DataFrame, level: float = 0.9) -> pd.DataFrame:
    """`share_within` of every order in every setting: model, quantizer, group, levels, order, value, low, high."""
    found = []
    for setting, part in rows.groupby(block_orders.SETTING, sort=False):
        for order in part["order"].unique():
            share = share_within(part, order, level)._asdict()
            found.append({**dict(zip(block_orders.SETTING, setting, strict=True)), "order": order, **share})
    return pd.DataFrame(found)


def q1(rows: pd.DataFrame, level: float = 0.9, order: str = "LIM", rival: str = "random") -> Verdict:
    """Q1: by the score's order quality stays close to the original until 25 to 50 % of layers have lower bits.

    Rows of one setting. The effect is `share_within` of the order minus that of the rival, in points of layers,
    positive = the order is better, on the same resampled windows and at the numbers of lowered blocks that both have.
    The claim has two parts:

    - by the order at least 25 % of layers can be lowered: it holds where the interval of the share is not below that,
      it doesn't where the whole interval is below;
    - and more than by the rival: `verdict.more_than_luck`; the least gain that counts is 5 points of layers.

    It holds where both do. It doesn't hold where one doesn't, if the sweep puts orders to the test at all: quality must
    be within the level with no layer lowered, and outside with all of them, each with its whole interval. Otherwise
    all orders have the same share, and it can't be told.

    Raises ValueError as `share_within` does, and for a rival that is not random.
    """
    sweep = _against_random(rows, order, rival)
    own, others = (sweep.shares(name, level) for name in (order, rival))
    gain = Estimate(*(100 * number for number in own.minus(others)))
    luck = block_orders.luck(own.by_draw[0], others.by_draw)
    enough, why_enough = _at_least(own.estimate, BY_SCORE[0])
    more, why_more = more_than_luck(gain, luck, LEAST, "points")
    verdict = all_of([enough, more])
    reason = (
        f"By {order} quality stays within {100 * level:g} % until {_percent(own.estimate)} of layers are lowered, by "
        f"{rival} until {_percent(others.estimate)}, {in_words(gain, 'points')} between them ({sweep.name}): "
        f"{why_enough}; {why_more}"
    )
    if verdict != HOLDS and (why := block_orders.untested(sweep, order, level)):
        verdict, reason = CANNOT_TELL, f"{reason}; but {why}, so orders are not put to the test"
    statement = (
        f"By {order} quality stays within {100 * level:g} % of the original until at least {100 * BY_SCORE[0]:g} % of "
        f"layers have lower bits, and longer than by {rival}."
    )
    return Verdict(_claim("Q1", rival), statement, verdict, *gain, "points", f"{reason}.", rows)


def q5(
    scores: pd.DataFrame, damage: pd.DataFrame, rows: pd.DataFrame, score: str = "LIM", rival: str = "random"
) -> Verdict:
    """Q5: the score orders layers usefully.

    `scores` has the columns model, score, block and value (an importance, higher = keep more); `damage` has model,
    block, window and value, what compressing that block alone costs, of one kind, higher = worse; both may have more
    models and scores than one. `rows` are the sweep of one setting, fixed beforehand, with the score as an order.

    The claim has two parts, each by `verdict.more_than_luck`, where any gain counts:

    - the score agrees with the damage: Spearman's rank correlation over blocks, with an interval over the windows of
      the damage; the luck is the share of random permutations that agree as well. It is the effect;
    - and its order costs less in the sweep than the rival: the mean loss over the sweep, paired over windows, with an
      interval over windows and draws; the luck is the share of the rival's draws that cost as little.

    With the rival "random, block 0 high", block 0 is left out of the correlation too. It holds where both parts do,
    and doesn't where one doesn't. In the verdict's rows a column `table` tells sweep, scores and damage apart.

    Raises ValueError as `read_orders` does, for a rival that is not random, and for scores or damage that do not cover
    the model's blocks once each or have no order.
    """
    sweep = _against_random(rows, score, rival)
    model = sweep.setting["model"]
    scores = scores[(scores["model"] == model) & (scores["score"] == score)]
    damage = damage[damage["model"] == model]
    value, harm = _by_block(scores, damage, score, sweep)
    correlations = [_agreement(value[first:], harm[first:]) for first in (0, 1)]
    without = rival != "random"
    correlation, chance = correlations[without]
    agrees, why_agrees = more_than_luck(correlation, chance, 0, "rank correlation")
    gain, luck = _gain(sweep, score, rival)
    useful, why_useful = more_than_luck(gain, luck, 0, "nats")
    blocks = ["all blocks", "all but block 0"]
    reason = (
        f"{score} and measured damage agree by {in_words(correlation, 'rank correlation')} over {blocks[without]}: "
        f"{why_agrees}; over {blocks[not without]} it is {in_words(correlations[not without][0], 'rank correlation')}; "
        f"in the sweep ({sweep.name}) its order saves {in_words(gain, 'nats')} on average against {rival}: "
        f"{why_useful}."
    )
    statement = f"{score} orders layers usefully: it agrees with measured damage and costs less than {rival}."
    scores, damage = scores[["model", "score", "block", "value"]], damage[["model", "block", "window", "value"]]
    used = {"sweep": rows, "scores": scores, "damage": damage}
    used = pd.concat([part.assign(table=name) for name, part in used.items()], ignore_index=True)
    return Verdict(
        _claim("Q5", rival), statement, all_of([agrees, useful]), *correlation, "rank correlation", reason, used
    )


def gains(rows: pd.DataFrame, order: str = "LIM", rival: str = "random") -> pd.DataFrame:
    """How much the order costs less than the rival, by technique: model, levels, quantizer, group, value, low, high, p.

    The value is the mean loss over the sweep of the rival minus that of the order, in nats per token, higher = the
    order is better; paired over windows, with a 95 % interval over windows and draws, at the numbers of lowered blocks
    that all techniques (quantizer and group) of a model and its levels have. `p` is corrected by Holm's method for the
    number of techniques; it is NaN, like the interval, where one of them has a single window or draw.

    Errors as for `read_orders`, and for a rival that is not random.
    """
    parts = []
    for _, part in rows.groupby(["model", "levels"], sort=False):
        techniques = part.groupby(["quantizer", "group"], sort=False)
        every = [_against_random(one, order, rival) for _, one in techniques]
        common = sorted(set.intersection(*(set(sweep.lowered) for sweep in every)))
        if len(common) < 2:
            raise ValueError(f"{', '.join(s.name for s in every)} have no two numbers of lowered blocks in common")
        every = [sweep.at(common) for sweep in every]
        alone = [stats.crossed_p_value(_saved(sweep, order, rival)) for sweep in every]
        p_values = stats.holm(alone) if np.isfinite(alone).all() else np.full(len(every), np.nan)
        parts += [
            {**sweep.setting, **_gain(sweep, order, rival)[0]._asdict(), "p": p}
            for sweep, p in zip(every, p_values, strict=True)
        ]
    return pd.DataFrame(parts)[["model", "levels", "quantizer", "group", "value", "low", "high", "p"]]


def q6(rows: pd.DataFrame, order: str = "LIM", rival: str = "random") -> Verdict:
    """Q6: what the order gains does not depend on the quantization technique.

    Rows of one model and its levels, by several techniques: quantizers, or group sizes of one. The effect is that of
    `gains`, in nats per token, positive = the order is better, on the technique on which it is least. The rule, with
    the corrected p-values of `gains`:

    - holds: on every technique the gain differs from 0 (p at most 5 %), with one sign;
    - doesn't hold: on two techniques it differs from 0, with opposite signs;
    - can't tell: else, or there are fewer than two techniques.

    It asks whether the order fares alike, not whether it knows something: that is Q5.

    Raises ValueError as `gains` does, and for rows of several models or levels.
    """
    if len(kinds := rows[["model", "levels"]].drop_duplicates()) != 1:
        raise ValueError(f"Q6 is on one model and its levels, but the rows have {len(kinds)} of them")
    found = gains(rows, order, rival)
    signs = np.sign(found["value"]) * (found["p"] <= RISK)
    if len(found) < 2:
        verdict = CANNOT_TELL
    elif {-1, 1} <= set(signs):
        verdict = DOES_NOT
    else:
        verdict = HOLDS if abs(signs.sum()) == len(found) else CANNOT_TELL
    least = found.loc[found["value"].idxmin()]
    effect = Estimate(least["value"], least["low"], least["high"])
    reason = (
        f"On average over the sweep {order} is better than {rival} on {(signs > 0).sum()} of "
        f"{counted(len(found), 'technique')}, worse on {(signs < 0).sum()} and neither on {(signs == 0).sum()}, after "
        f"Holm's correction; it gains least by {least['quantizer']}, group {least['group']}: "
        f"{in_words(effect, 'nats')}."
    )
    statement = f"What {order} gains over {rival} does not depend on the quantization technique."
    return Verdict(_claim("Q6", rival), statement, verdict, *effect, "nats", reason, rows)


def _against_random(rows: pd.DataFrame, order: str, rival: str) -> block_orders.Sweep:
    if rival not in RANDOM or order in RANDOM:
        raise ValueError(f"an order is compared with one of {', '.join(map(repr, RANDOM))}; {order!r} with {rival!r}?")
    sweep = block_orders.read_orders(rows, [order, rival])
    if (draws := len(sweep.loss[order])) > 1:
        raise ValueError(f"{order} has {draws} draws: an order that comes from a score has one")
    return sweep


def _saved(sweep: block_orders.Sweep, order: str, rival: str) -> np.ndarray:
    """Mean loss over the sweep by the rival minus that by the order: `[draws of the rival, windows]`."""
    return sweep.area(rival) - sweep.area(order)


def _gain(sweep: block_orders.Sweep, order: str, rival: str) -> tuple[Estimate, float]:
    """What the order saves, and the luck: the chance that an order without information saves as much."""
    by_draw = [-sweep.area(name).mean(axis=1) for name in (order, rival)]
    return stats.crossed_mean(_saved(sweep, order, rival)), block_orders.luck(by_draw[0][0], by_draw[1])


def _by_block(
    scores: pd.DataFrame, damage: pd.DataFrame, score: str, sweep: block_orders.Sweep
) -> tuple[np.ndarray, np.ndarray]:
    """The score `[L]` and the damage `[L, windows]`, both of the model of a sweep."""
    model, blocks = sweep.setting["model"], range(sweep.blocks)
    for name, part, keys in ((score, scores, ["block"]), ("damage", damage, ["block", "window"])):
        if part.duplicated(keys).any():
            raise ValueError(f"{name} of {model} has more than one row for a {' and '.join(keys)}")
        if sorted(part["block"].unique()) != list(blocks):
            raise ValueError(f"{name} of {model} must cover the blocks 0 to {len(blocks) - 1}, each of them")
    harm = damage.pivot(index="block", columns="window", values="value")
    if not np.isfinite(harm).all(axis=None):
        raise ValueError(f"damage of {model} must have a finite value for every block and window")
    return scores.sort_values("block")["value"].to_numpy(float), harm.to_numpy(float)


def _agreement(score: np.ndarray, harm: np.ndarray) -> tuple[Estimate, float]:
    """Rank correlation of a score with damage, its interval over windows, and the luck."""
    found = stats.rank_correlation(score, harm, over=("windows",))
    if np.isnan(found.value):
        raise ValueError("the score or the damage is the same for all blocks: that is no order")
    if harm.shape[1] < 2:
        found = Estimate(found.value, np.nan, np.nan)
    return found, stats.rank_p_value(score, harm.mean(axis=1))


def _at_least(share: Estimate, claimed: float) -> tuple[str, str]:
    if np.isnan(share.low):
        return CANNOT_TELL, "the data give no interval"
    if share.low >= claimed:
        return HOLDS, f"{100 * claimed:g} % is reached"
    if share.high < claimed:
        return DOES_NOT, f"{100 * claimed:g} % is not reached"
    return CANNOT_TELL, f"{100 * claimed:g} % may be reached or not"


def _percent(share: Estimate) -> str:
    value, low, high = (100 * number for number in share)
    return f"{value:.0f} %" if np.isnan(low) else f"{value:.0f} % (95 %: {low:.0f} to {high:.0f})"


def _claim(name: str, rival: str) -> str:
    return name if rival == "random" else f"{name} beyond block 0"
