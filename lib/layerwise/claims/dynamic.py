"""Q2: layer importance added to a quantizer that is dynamic by itself (arXiv 2406.17415)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims.differences import percent
from layerwise.claims.verdict import Part, Verdict, in_words, more_than_luck, turned


def q2(rows: pd.DataFrame, plan: str, uniform: str = "uniform", random: str = "random") -> Verdict:
    """Q2: adding layer importance to an inherently dynamic technique improves it.

    Rows of one model, all plans of the same bytes: plan, draw (of calibration text), sample (of a random plan; 0 for
    others), window, and loss, the mean loss of that test window in nats per token. `plan` is the one by importance,
    `uniform` treats all blocks alike, and `random` gives the same bits and outliers to blocks by chance.

    The effect is the change of perplexity by importance against uniform, in %, negative = importance is better, paired
    over draws and windows, with an interval over both. The rule is `verdict.more_than_luck`: any gain counts, and the
    luck is that of random plans on the first draw. On several models together it is `verdict.on_family`.

    Raises ValueError for rows that lack a column, a plan or a value, are of several models, or have draws or windows
    that differ between plans.
    """
    needed = ["model", "plan", "draw", "sample", "window", "loss"]
    if missing := [name for name in needed if name not in rows]:
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are {', '.join(needed)}")
    if len(models := rows["model"].unique()) != 1:
        raise ValueError(f"Q2 is on one model, but the rows are of {', '.join(map(str, models)) or 'none'}")
    if absent := [name for name in (plan, uniform, random) if name not in set(rows["plan"])]:
        raise ValueError(f"no row has the plan {absent[0]!r}; there is {', '.join(rows['plan'].unique())}")
    own, even = (_losses(rows[rows["plan"] == name], "draw") for name in (plan, uniform))
    if not (own.index.equals(even.index) and own.columns.equals(even.columns)):
        raise ValueError(f"{plan} and {uniform} must have the same draws and windows")
    change = percent(stats.crossed_mean((own - even).to_numpy()))
    first = rows[rows["draw"] == rows["draw"].min()]
    by_chance = _losses(first[first["plan"] == random], "sample")
    if not by_chance.columns.equals(own.columns):
        raise ValueError(f"{random} must have the windows of {plan} on the first draw")
    chance = stats.luck(-own.iloc[0].mean(), -by_chance.mean(axis=1).to_numpy())
    verdict, why = more_than_luck(turned(change), chance, 0, "%")
    return Verdict(
        "Q2",
        "Adding layer importance to an inherently dynamic quantization technique improves it.",
        verdict,
        *change,
        "%",
        f"At equal bytes {plan} changes perplexity by {in_words(change, '%')} against {uniform}: {why}.",
        rows,
        chance,
        (Part(turned(change), 0, "%"),),
    )


def _losses(rows: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Losses of one plan, a line per `unit` ("draw" or "sample") and a column per window."""
    if rows.duplicated([unit, "window"]).any():
        raise ValueError(f"{rows['plan'].iloc[0]} has more than one row for a {unit} and window")
    found = rows.pivot(index=unit, columns="window", values="loss")
    if not np.isfinite(found).all(axis=None):
        raise ValueError(f"{rows['plan'].iloc[0]} must have a finite loss for every {unit} and window")
    return found
