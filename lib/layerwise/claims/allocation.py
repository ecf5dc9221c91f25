"""Ways to choose bits, compared at equal bytes: how much more they lose than one of them, over budgets."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats

LABELS = ["model", "quantizer", "cost", "draw"]
RESAMPLED = 2000  # times that windows are drawn anew


def kl_ratios(rows: pd.DataFrame, rival: str, seed: int = 0) -> pd.DataFrame:
    """By how much the KL of other ways to choose bits differs from that of `rival`, on average over budgets.

    Rows: model, quantizer, cost (which way it is), draw, budget, window, kl in nats. The result has a row per model,
    quantizer, cost and draw:

    - value, low, high: the geometric mean over budgets of KL divided by the rival's, minus 1, so that 0.1 is 10 % more
      and worse, with a 95 % interval that redraws windows, the same for all. Budgets weigh alike, however much is at
      stake;
    - budgets: at how many the two were compared;
    - better, worse: at how many of these it is better or worse than the rival beyond the 95 % interval of the
      difference by window.

    Where the two chose the same plan at every budget, value, low and high are 0.
    """
    found, rng = [], np.random.default_rng(seed)
    for (model, quantizer), part in rows.groupby(["model", "quantizer"], sort=False):
        own = part[part["cost"] == rival].pivot(index="budget", columns="window", values="kl")
        drawn = rng.integers(own.shape[1], size=(RESAMPLED, own.shape[1]))
        for (cost, draw), other in part[part["cost"] != rival].groupby(["cost", "draw"], sort=False):
            kl = other.pivot(index="budget", columns="window", values="kl")
            a, b = (each.loc[own.index.intersection(kl.index)].to_numpy() for each in (kl, own))
            if not len(a):
                continue
            value = _mean_log_ratio(a, b)
            resampled = [_mean_log_ratio(a[:, again], b[:, again]) for again in drawn]
            estimate = np.expm1(stats.bootstrap_interval(value, resampled, a.shape[1]))
            apart = [stats.mean(each) for each in a - b]
            about = dict(zip(LABELS, (model, quantizer, cost, draw), strict=True))
            found.append(
                about
                | dict(zip(("value", "low", "high"), map(float, estimate), strict=True))
                | {"budgets": len(a), "better": sum(each.high < 0 for each in apart)}
                | {"worse": sum(each.low > 0 for each in apart)}
            )
    return pd.DataFrame(found, columns=[*LABELS, "value", "low", "high", "budgets", "better", "worse"])


def told_ratios(ratios: pd.DataFrame) -> list[str]:
    """Rows of `kl_ratios` in words, such as "1.35 times (1.32 to 1.37) on smollm2-135m"."""
    return [
        f"{1 + row.value:.2f} times ({1 + row.low:.2f} to {1 + row.high:.2f}) on {row.model.rpartition('/')[2]}"
        for row in ratios.itertuples()
    ]


def _mean_log_ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Of KL `[budgets, windows]`."""
    return float(np.mean(np.log(a.mean(axis=1)) - np.log(b.mean(axis=1))))
