"""Q6: whether what an order of blocks gains depends on the quantization technique (arXiv 2406.17415)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import block_orders
from layerwise.claims.verdict import DOES_NOT, HOLDS, INCONCLUSIVE, Verdict, in_words, more_than_luck, turned
from layerwise.stats import Estimate

ALIKE = 50.0  # % of the largest gain that the smallest one is: techniques agree


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
        every = _techniques(part, order, rival)
        alone = [stats.crossed_p_value(block_orders.saved(sweep, order, rival)) for sweep in every]
        p_values = stats.holm(alone) if np.isfinite(alone).all() else np.full(len(every), np.nan)
        parts += [
            {**sweep.setting, **block_orders.saving(sweep, order, rival)[0]._asdict(), "p": p}
            for sweep, p in zip(every, p_values, strict=True)
        ]
    return pd.DataFrame(parts)[["model", "levels", "quantizer", "group", "value", "low", "high", "p"]]


def q6(rows: pd.DataFrame, order: str = "LIM", rival: str = "random") -> Verdict:
    """Q6: what the order gains does not depend on the quantization technique.

    Rows of one model and its levels, by several techniques: quantizers, or group sizes of one. Luck is that of all
    random orders of a technique; for the effect those count that all techniques have. What the order gains by a
    technique is taken as a share of what random orders lose by it, since techniques lose unlike amounts. The effect is
    the smallest of these shares in % of the largest, 100 = alike on all of them, with a bootstrap over windows and
    draws. The rule:

    - holds: on every technique there is a gain that is no luck (`verdict.more_than_luck`), and the interval of the
      effect is above 50 %: the techniques agree by more than that the sign is one;
    - doesn't hold: on one technique there is such a gain, on another such a loss; or all gain, and the whole interval
      of the effect is below 50 %;
    - inconclusive: else, as where nothing is gained by any, or there are fewer than two techniques.

    A random order in place of the score's is called so in at most 5 % of cases, since it would have to be lucky on
    every technique.

    Raises ValueError as `gains` does, for rows of several models or levels, and for techniques that have no draw in
    common.
    """
    if len(kinds := rows[["model", "levels"]].drop_duplicates()) != 1:
        raise ValueError(f"Q6 is on one model and its levels, but the rows have {len(kinds)} of them")
    every = _techniques(rows, order, rival)
    savings = [block_orders.saving(sweep, order, rival) for sweep in every]
    gaining = [more_than_luck(*saving, 0, "nats")[0] == HOLDS for saving in savings]
    losing = [more_than_luck(turned(gain), luck.opposite, 0, "nats")[0] == HOLDS for gain, luck in savings]
    least_lucky = max((luck for _, luck in savings), key=lambda luck: luck.p)
    effect = _alike(_techniques(_of_common_draws(rows, rival), order, rival), order, rival)
    if len(every) < 2:
        verdict, why = INCONCLUSIVE, "there is one technique"
    elif any(gaining) and any(losing):
        verdict, why = DOES_NOT, f"it gains on {sum(gaining)} of {len(every)} techniques and loses on {sum(losing)}"
    elif not all(gaining):
        why = f"on {sum(gaining)} of {len(every)} techniques it gains, on {sum(losing)} it loses, by more than luck"
        verdict = INCONCLUSIVE
    elif effect.high < ALIKE:
        verdict, why = DOES_NOT, "on one technique it gains less than half of what it does on another"
    elif effect.low > ALIKE:
        verdict, why = HOLDS, "on every technique it gains, by more than half of the most"
    else:
        verdict, why = INCONCLUSIVE, "on every technique it gains, but by how much of the most isn't clear"
    worst = min(range(len(every)), key=lambda i: savings[i][0].value)
    compared = (
        f"Of what {rival} loses over the sweep, {order} saves on the technique where it saves least "
        f"{in_words(effect, '%')} of what it does where it saves most"
    )
    if np.isnan(effect.value):
        compared = f"{order} saves nothing of what {rival} loses over the sweep"
    reason = (
        f"{compared}: {why}; in nats it gains least by "
        f"{every[worst].setting['quantizer']}, group {every[worst].setting['group']}: "
        f"{in_words(savings[worst][0], 'nats')}."
    )
    statement = f"What {order} gains over {rival} does not depend on the quantization technique."
    return Verdict(block_orders.named("Q6", rival), statement, verdict, *effect, "%", reason, rows, least_lucky)


def _of_common_draws(rows: pd.DataFrame, rival: str) -> pd.DataFrame:
    """Without the draws of the rival that some technique lacks."""
    of_rival = rows["order"] == rival
    techniques = rows[of_rival].groupby(["quantizer", "group"], sort=False)["draw"].agg(set)
    common = set.intersection(*techniques) if len(techniques) else set()
    if len(techniques) and not common:
        raise ValueError(f"the techniques have no draw of {rival} in common")
    return rows[~of_rival | rows["draw"].isin(common)]


def _techniques(rows: pd.DataFrame, order: str, rival: str) -> list[block_orders.Sweep]:
    """A sweep per technique of one model and its levels, at the numbers of lowered blocks that all have."""
    every = [
        block_orders.against_random(one, order, rival) for _, one in rows.groupby(["quantizer", "group"], sort=False)
    ]
    common = sorted(set.intersection(*(set(sweep.lowered) for sweep in every)))
    if len(common) < 2:
        raise ValueError(f"{', '.join(s.name for s in every)} have no two numbers of lowered blocks in common")
    return [sweep.at(common) for sweep in every]


def _alike(sweeps: list[block_orders.Sweep], order: str, rival: str) -> Estimate:
    """The smallest gain in % of the largest, each as a share of what the rival loses, over techniques."""
    own, drawn = (np.stack([sweep.area(name) for sweep in sweeps]) for name in (order, rival))
    _, draws, windows = drawn.shape
    if drawn.mean(axis=(1, 2)).min() <= 0 or (own.mean(axis=(1, 2)) >= drawn.mean(axis=(1, 2))).all():
        return Estimate(np.nan, np.nan, np.nan)  # nothing is lost at random, or nothing is gained by the order
    times = block_orders.TIMES
    by_window = np.random.default_rng(0).multinomial(windows, np.full(windows, 1 / windows), size=times) / windows
    by_draw = np.random.default_rng(1).multinomial(draws, np.full(draws, 1 / draws), size=times) / draws
    lost = np.einsum("tdw,nd,nw->nt", drawn, by_draw, by_window)
    shares = 1 - (own[:, 0] @ by_window.T).T / lost
    value = 1 - own.mean(axis=(1, 2)) / drawn.mean(axis=(1, 2))
    resampled = 100 * shares.min(axis=1) / shares.max(axis=1)
    return stats.bootstrap_interval(100 * value.min() / value.max(), resampled, min(draws, windows))
