"""Plans against a rival on the same draws and windows: differences, their means, and these in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.stats import Estimate


def against(rows: pd.DataFrame, rival: str, same: Sequence[str], value: str = "loss") -> pd.DataFrame:
    """Rows of other plans, each with its `difference` in `value` from that of the plan `rival`, positive = more.

    Rows: plan, `value`, and the columns `same`, in which the two agree, such as model, draw and window. Raises
    ValueError where the rival has no row, or several, for what another plan has.
    """
    same = list(same)
    own = rows.loc[rows["plan"] == rival, [*same, value]]
    others = rows[rows["plan"] != rival]
    both = others.merge(own, on=same, suffixes=("", "_rival"))
    if own.duplicated(same).any() or len(both) < len(others):
        raise ValueError(f"the plan {rival!r} needs one row for each {', '.join(same)} of the other plans")
    return both.assign(difference=both[value] - both[f"{value}_rival"]).drop(columns=f"{value}_rival")


def changes(rows: pd.DataFrame, by: Sequence[str], value: str = "difference") -> pd.DataFrame:
    """Relative change of perplexity for each group of rows: the columns `by`, and value, low, high; -0.05 = 5 % lower.

    Rows: draw, window, the columns `by`, and `value`, a difference of losses in nats. The interval of 95 % covers other
    calibration draws and other windows; it is missing for a single draw. Raises ValueError where a draw lacks a window.
    """
    found = []
    for names, part in rows.groupby(list(by), sort=False, dropna=False):
        by_window = part.pivot(index="draw", columns="window", values=value)
        change = np.expm1(stats.crossed_mean(by_window.to_numpy()))
        found.append(dict(zip(by, names, strict=True)) | dict(zip(Estimate._fields, change, strict=True)))
    return pd.DataFrame(found, columns=[*by, *Estimate._fields])


def by_model(changes: pd.DataFrame) -> str:
    """A change on each model, in words: "−4.1 % (−6.2 to −2.0) on 6L, ...". Rows: model, value, low, high."""
    said = []
    for row in changes.itertuples():
        value, low, high = (f"{100 * number:+.1f}".replace("-", "−") for number in (row.value, row.low, row.high))
        interval = "" if np.isnan(row.low) else f" ({low} to {high})"
        said.append(f"{value} %{interval} on {row.model}")
    return ", ".join(said)


def percent(difference: Estimate) -> Estimate:
    """A difference of losses in nats as a change of perplexity in %."""
    return Estimate(*(100 * math.expm1(value) for value in difference))
