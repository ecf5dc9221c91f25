"""Q1 and Q5: fewer bits for the blocks that a score calls unimportant (arXiv 2406.17415).

All take the rows of `read_orders`, one per plan. The rivals are random orders, "random" or "random, ends kept", and
what measures nothing but where a block sits: of `block_orders.RAMPS` the one that is best on calibration text, in rows
of their own (`choice`). Further columns are not read.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import block_orders
from layerwise.claims.block_orders import CLOSE
from layerwise.claims.verdict import (
    DOES_NOT,
    HOLDS,
    INCONCLUSIVE,
    NATS,
    Part,
    Verdict,
    a_gain,
    all_of,
    in_words,
    more_than_luck,
)
from layerwise.stats import Estimate

# Shares of layers in lower bits until which quality stays close to the original, as the abstract has them.
BY_SCORE, AT_RANDOM = (0.25, 0.5), (0.05, 0.1)
LEAST = 5  # points of layers: a gain that counts; the abstract's own ranges tell no less apart


def share_within(rows: pd.DataFrame, order: str, level: float = CLOSE) -> Estimate:
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


def shares(rows: pd.DataFrame, level: float = CLOSE) -> pd.DataFrame:
    """`share_within` of every order in every setting: model, quantizer, group, levels, order, value, low, high."""
    found = []
    for setting, part in rows.groupby(block_orders.SETTING, sort=False):
        for order in part["order"].unique():
            share = share_within(part, order, level)._asdict()
            found.append({**dict(zip(block_orders.SETTING, setting, strict=True)), "order": order, **share})
    return pd.DataFrame(found)


def q1(
    rows: pd.DataFrame, choice: pd.DataFrame, level: float = CLOSE, order: str = "LIM", rival: str = "random"
) -> Verdict:
    """Q1: by the score's order quality stays close to the original until 25 to 50 % of layers have lower bits.

    Rows of one setting; `choice` as for `block_orders.best_by_position`. The effect is `share_within` of the order
    minus that of the rival, in points of layers, positive = the order is better, on the same resampled windows and at
    the numbers of lowered blocks that both have. The claim has three parts:

    - by the order at least 25 % of layers can have fewer bits: it holds where the interval of the share is not below
      that, it doesn't where the whole interval is below;
    - more than by the rival: `verdict.more_than_luck`; the least gain that counts is 5 points of layers;
    - and more than by the best order that measures nothing: `verdict.a_gain`, with the same least gain.

    It holds where all do. It doesn't hold where one doesn't, if the sweep puts orders to the test at all: quality must
    be within the level with no layer at fewer bits, and outside with all of them, each with its whole interval.
    Otherwise all orders have the same share, and it is inconclusive.

    Raises ValueError as `share_within` and `best_by_position` do, and for a rival that is not random.
    """
    ramp = block_orders.best_by_position(choice, level)
    sweep = block_orders.against_random(rows, order, rival, ramp)
    own, others, plain = (sweep.shares(name, level) for name in (order, rival, ramp))
    gain, beyond = (Estimate(*(100 * number for number in own.minus(each))) for each in (others, plain))
    luck = stats.luck(own.by_draw[0], others.by_draw)
    enough, why_enough = _at_least(own.estimate, BY_SCORE[0])
    more, why_more = more_than_luck(gain, luck, LEAST, "points")
    knows, why_knows = a_gain(beyond, LEAST, "points")
    verdict = all_of([enough, more, knows])
    reason = (
        f"By {order} quality stays within {100 * level:g} % until {_percent(own.estimate)} of layers have fewer bits "
        f"({sweep.name}): {why_enough}; by {rival} until {_percent(others.estimate)}, {in_words(gain, 'points')} "
        f"between them: {why_more}; by {ramp}, which measures nothing, until {_percent(plain.estimate)}, "
        f"{in_words(beyond, 'points')}: {why_knows}"
    )
    if verdict != HOLDS and (why := block_orders.untested(sweep, order, level)):
        verdict, reason = INCONCLUSIVE, f"{reason}; but {why}, so orders are not put to the test"
    statement = (
        f"By {order} quality stays within {100 * level:g} % of the original until at least {100 * BY_SCORE[0]:g} % of "
        f"layers have fewer bits, and longer than by {rival} and by the best ramp over depth."
    )
    parts = (
        Part(Estimate(*(100 * (number - BY_SCORE[0]) for number in own.estimate)), 0, "points"),
        Part(gain, LEAST, "points"),
        Part(beyond, LEAST, "points"),
    )
    name = block_orders.named("Q1", rival)
    return Verdict(name, statement, verdict, *gain, "points", f"{reason}.", rows, luck, parts)


def q1_at_random(rows: pd.DataFrame, level: float = CLOSE, rival: str = "random") -> Verdict:
    """The other half of Q1: without an ordering, quality stays close only until 5 to 10 % of layers have lower bits.

    Rows of one setting. The effect is `share_within` of the rival, the mean over random orders, in % of layers. It
    holds where the whole interval is at most 10 %, it doesn't where it is above; else, and where the sweep doesn't put
    orders to the test (see `q1`), it is inconclusive. Raises ValueError as `share_within` does.
    """
    sweep = block_orders.read_orders(rows, [rival])
    share = sweep.shares(rival, level).estimate
    most = AT_RANDOM[1]
    if np.isnan(share.low) or share.low <= most < share.high:
        verdict, why = (
            INCONCLUSIVE,
            "the data give no interval" if np.isnan(share.low) else f"{100 * most:g} % is inside",
        )
    elif share.high <= most:
        verdict, why = HOLDS, f"that is at most {100 * most:g} %"
    else:
        verdict, why = DOES_NOT, f"that is more than {100 * most:g} %"
    reason = (
        f"By {rival} quality stays within {100 * level:g} % until {_percent(share)} of layers have fewer bits "
        f"({sweep.name}): {why}"
    )
    if untested := block_orders.untested(sweep, rival, level):
        verdict, reason = INCONCLUSIVE, f"{reason}; but {untested}, so orders are not put to the test"
    statement = f"In random order quality stays within {100 * level:g} % only until {100 * most:g} % of layers at most."
    effect = Estimate(*(100 * number for number in share))
    return Verdict("Q1 at random", statement, verdict, *effect, "%", f"{reason}.", rows)


def q5(
    scores: pd.DataFrame,
    damage: pd.DataFrame,
    rows: pd.DataFrame,
    choice: pd.DataFrame,
    score: str = "LIM",
    rival: str = "random",
) -> Verdict:
    """Q5: the score orders layers usefully.

    `scores` has the columns model, score, block and value (an importance, higher = keep more); `damage` has model,
    block, window and value, what compressing that block alone costs, of one kind, higher = worse; both may have more
    models and scores than one. `rows` are the sweep of one setting, fixed beforehand, with the score as an order;
    `choice` as for `block_orders.best_by_position`.

    The claim has three parts; a gain of loss counts from 0.01 nats, 1 % of perplexity:

    - the score agrees with the damage: Spearman's rank correlation over blocks, with a bootstrap over blocks and
      windows, by `verdict.more_than_luck`; the luck is that of random permutations. It is the effect;
    - its order costs less in the sweep than the rival: the mean loss over the sweep, paired over windows, with an
      interval over windows and draws, by `verdict.more_than_luck`; the luck is that of the rival's draws;
    - and less than the best order that measures nothing, paired over windows, by `verdict.a_gain`.

    It holds where all do, and doesn't where one doesn't. In the verdict's rows a column `table` tells sweep, scores and
    damage apart; its luck is the worse of both.

    Raises ValueError as `read_orders` and `best_by_position` do, for a rival that is not random, and for scores or
    damage that do not cover the model's blocks once each or have no order.
    """
    ramp = block_orders.best_by_position(choice)
    sweep = block_orders.against_random(rows, score, rival, ramp)
    model = sweep.setting["model"]
    scores = scores[(scores["model"] == model) & (scores["score"] == score)]
    damage = damage[damage["model"] == model]
    value, harm = _by_block(scores, damage, score, sweep)
    correlation = stats.rank_correlation(value, harm)
    if np.isnan(correlation.value):
        raise ValueError("the score or the damage is the same for all blocks: that is no order")
    if harm.shape[1] < 2:
        correlation = Estimate(correlation.value, np.nan, np.nan)
    permuted = stats.rank_luck(value, harm.mean(axis=1))
    agrees, why_agrees = more_than_luck(correlation, permuted, 0, "rank correlation")
    gain, luck = block_orders.saving(sweep, score, rival)
    useful, why_useful = more_than_luck(gain, luck, NATS, "nats")
    beyond = stats.mean(block_orders.saved(sweep, score, ramp)[0])
    knows, why_knows = a_gain(beyond, NATS, "nats")
    reason = (
        f"{score} and measured damage agree by {in_words(correlation, 'rank correlation')} over blocks: {why_agrees}; "
        f"in the sweep ({sweep.name}) its order saves {in_words(gain, 'nats')} on average against {rival}: "
        f"{why_useful}; and {in_words(beyond, 'nats')} against {ramp}, which measures nothing: {why_knows}."
    )
    statement = (
        f"{score} orders layers usefully: it agrees with measured damage and costs less than {rival} and than the best "
        "ramp over depth."
    )
    scores, damage = scores[["model", "score", "block", "value"]], damage[["model", "block", "window", "value"]]
    used = {"sweep": rows, "scores": scores, "damage": damage}
    used = pd.concat([part.assign(table=name) for name, part in used.items()], ignore_index=True)
    verdict = all_of([agrees, useful, knows])
    parts = (Part(correlation, 0, "rank correlation"), Part(gain, NATS, "nats"), Part(beyond, NATS, "nats"))
    worse = max(permuted, luck, key=lambda each: each.p)
    name = block_orders.named("Q5", rival)
    return Verdict(name, statement, verdict, *correlation, "rank correlation", reason, used, worse, parts)


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


def _at_least(share: Estimate, claimed: float) -> tuple[str, str]:
    if np.isnan(share.low):
        return INCONCLUSIVE, "the data give no interval"
    if share.low >= claimed:
        return HOLDS, f"{100 * claimed:g} % is reached"
    if share.high < claimed:
        return DOES_NOT, f"{100 * claimed:g} % is not reached"
    return INCONCLUSIVE, f"{100 * claimed:g} % may be reached or not"


def _percent(share: Estimate) -> str:
    value, low, high = (100 * number for number in share)
    return f"{value:.0f} %" if np.isnan(low) else f"{value:.0f} % (95 %: {low:.0f} to {high:.0f})"
