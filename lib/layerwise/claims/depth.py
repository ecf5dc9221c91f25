"""Q4: models of more layers tolerate compression better (arXiv 2406.17415)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims.block_orders import CLOSE, TIMES, check_plans, share_left, windows_of
from layerwise.claims.verdict import DOES_NOT, HOLDS, INCONCLUSIVE, Verdict, a_gain, counted, in_words
from layerwise.stats import Estimate

LEAST = 2.0  # points of layers for each doubling of the depth: a gain that counts


def tolerated(rows: pd.DataFrame, level: float = CLOSE) -> pd.DataFrame:
    """The share of layers, or of the width, that can be compressed until quality leaves `level`; higher = better.

    Rows, one per plan: model, kind (of compression), draw, share (of what is compressed, in [0, 1]), and w0, w1, …: the
    plan's loss minus the dense model's in nats per token, in each test window. Other columns that are the same in all
    rows of a model, such as its blocks, are kept.

    One row per model and kind: value with its 95 % interval, low and high, a bootstrap over windows and, where there
    are several, over draws, whose mean it is. Quality is the dense model's perplexity divided by the plan's; it is
    interpolated linearly in the share. `censored` says that in some draw quality is outside the level at the smallest
    share, or never leaves it: the value is then the smallest, or the largest, share that was measured. It also
    says that the mean over draws is outside at the first step from there: the value is then a part of what was
    measured, such as a block.

    Raises ValueError for a level outside (0, 1), and for rows that lack a column or a finite loss, repeat a plan, have
    a share outside [0, 1], or draws with different shares.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be a share of the dense model's quality between 0 and 1, not {level!r}")
    keys = ["model", "kind", "draw", "share"]
    windows = windows_of(rows, keys)
    if rows[keys].isna().any(axis=None) or not rows["share"].between(0, 1).all():
        raise ValueError("every row needs a model, a kind, a draw, and a share from 0 to 1")
    others = rows.columns.difference([*keys, *windows], sort=False)
    kept = [name for name in others if (rows.groupby("model")[name].nunique(dropna=False) == 1).all()]
    found = []
    for (model, kind), part in rows.groupby(["model", "kind"], sort=False):
        own = [name for name in windows if part[name].notna().any()]  # other models may have been read in more
        if not own:
            raise ValueError(f"{model}, {kind} has no loss in any window")
        check_plans(part, keys, own)
        draws = [draw.sort_values("share") for _, draw in part.groupby("draw")]
        share = draws[0]["share"].to_numpy()
        if any(list(draw["share"]) != list(share) for draw in draws):
            raise ValueError(f"{model}, {kind}: every draw needs the same shares")
        loss = np.stack([draw[own].to_numpy(float) for draw in draws])  # [draws, shares, n]
        n, each = len(own), loss.mean(axis=2)
        limit = -np.log(level)
        censored = (each[:, 0] > limit).any() or (each <= limit).all(axis=1).any() or (each[:, 1:2].mean() > limit)
        value = share_left(share, each, level).clip(share[0], share[-1]).mean()
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=TIMES)
        resampled = share_left(share, np.tensordot(counts / n, loss, axes=(1, 2)), level).clip(share[0], share[-1])
        units = n
        if len(draws) > 1:
            of = len(draws)
            resampled *= np.random.default_rng(1).multinomial(of, np.full(of, 1 / of), size=TIMES)
            units = min(n, of)
        estimate = stats.bootstrap_interval(value, resampled.mean(axis=1), units)
        about = part[kept].iloc[0].to_dict()
        found.append({"model": model, "kind": kind, **about, **estimate._asdict(), "censored": bool(censored)})
    return pd.DataFrame(found)


def q4(rows: pd.DataFrame) -> Verdict:
    """Q4: larger models with more layers tolerate it better than smaller ones with fewer, by their share of layers.

    Rows, one per trained model of one family: model, blocks (its number), and value, the share of layers in [0, 1]
    that can be compressed until quality leaves a level, with its interval, low and high, and whether it is censored, as
    `tolerated` gives them. All are of one kind of compression, which the statement names if a column kind does, and of
    one level.

    The effect is the slope of that share over log2(blocks) by least squares: points of layers for each doubling of the
    depth, positive = deeper models tolerate more. Its interval covers training seeds and what the line doesn't fit, by
    Student's t over models, and evaluation, by the models' own intervals; the squares of the two reaches are added.
    Models read the same windows, so the errors of one depth are taken to be one error, and those of two depths to be
    independent: usually the wider way, since what moves all depths alike doesn't move the slope.

    The rule is `verdict.a_gain`: 2 points are the least that counts. It is inconclusive with fewer than two depths, two
    models of each depth, or two windows, or where a share is censored. The verdict is on this family alone.

    Raises ValueError for rows that lack a column, a value in [0, 1], or have a model twice.
    """
    _check(rows)
    statement = f"In this family, with more layers a larger share of the model tolerates compression{_kind(rows)}."
    share = 100 * rows[["value", "low", "high"]]
    return _judged("Q4", statement, rows, share, "points", LEAST, "the share that is tolerated")


def q4_by_blocks(rows: pd.DataFrame) -> Verdict:
    """Q4 by the number of blocks that must stay as they are, which a share hides: a tenth of 24 is more than of 6.

    Rows and errors as for `q4`. The effect is how many more blocks can't be compressed for each doubling of the depth,
    negative = deeper models need fewer. It holds where the whole interval is below 0, it doesn't where it is above; it
    is inconclusive else, and where `q4` is.
    """
    _check(rows)
    statement = f"In this family, with more layers fewer blocks must stay as they are{_kind(rows)}."
    left = pd.DataFrame({"value": 1 - rows["value"], "low": 1 - rows["high"], "high": 1 - rows["low"]})
    left = left.mul(rows["blocks"], axis=0)
    return _judged("Q4 by blocks", statement, rows, left, "blocks", 0.0, "the number of blocks that must stay", sign=-1)


def _check(rows: pd.DataFrame) -> None:
    needed = ["model", "blocks", "value", "low", "high", "censored"]
    if missing := [name for name in needed if name not in rows]:
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are {', '.join(needed)}")
    if rows["model"].duplicated().any():
        raise ValueError("there is a model more than once: give rows of one compression and order")
    if not rows["value"].between(0, 1).all():
        raise ValueError("value must be a share of layers, from 0 to 1")


def _kind(rows: pd.DataFrame) -> str:
    kinds = rows["kind"].unique() if "kind" in rows else []
    return f" ({kinds[0]})" if len(kinds) == 1 else ""


def _judged(
    claim: str, statement: str, rows: pd.DataFrame, y: pd.DataFrame, unit: str, least: float, what: str, sign: int = 1
) -> Verdict:
    """The verdict on how `y` (value, low, high) goes with depth; `sign` is -1 where the claim is that it falls."""
    counts = rows.groupby("blocks").size()
    per = "%" if unit == "points" else ""
    means = ", ".join(
        f"{blocks:g} blocks: {mean:.{0 if per else 1}f}{' ' * bool(per)}{per}"
        for blocks, mean in y["value"].groupby(rows["blocks"]).mean().items()
    )
    if len(counts) < 2:
        nothing = (np.nan, np.nan, np.nan)
        return Verdict(claim, statement, INCONCLUSIVE, *nothing, unit, f"There is one depth: {means}.", rows)
    slope = _slope(rows["blocks"].to_numpy(float), y, enough=counts.min() >= 2)
    if rows["censored"].any():
        verdict, why = INCONCLUSIVE, "some models leave the level before the first step, or never"
    elif counts.min() < 2:
        verdict, why = INCONCLUSIVE, "one model of a depth says nothing of what training again would give"
    elif np.isnan(slope.low):
        verdict, why = INCONCLUSIVE, "one window says nothing of what another text would give"
    elif sign > 0:
        verdict, why = a_gain(slope, least, unit)
    elif slope.high < 0 or slope.low > 0:
        verdict, why = (HOLDS, "that is below 0") if slope.high < 0 else (DOES_NOT, "that is above 0")
    else:
        verdict, why = INCONCLUSIVE, "0 is possible"
    reason = (
        f"With each doubling of the depth {what} changes by {in_words(slope, unit)} "
        f"({means}; {counted(len(rows), 'model')}): {why}."
    )
    return Verdict(claim, statement, verdict, *slope, unit, reason, rows)


def _slope(blocks: np.ndarray, values: pd.DataFrame, enough: bool) -> Estimate:
    """`values` per doubling by least squares; with an interval if there are `enough` models to tell a spread."""
    x, y = np.log2(blocks), values["value"].to_numpy(float)
    centred = x - x.mean()
    weights = centred / (centred**2).sum()
    slope = float(weights @ y)
    if not enough:
        return Estimate(slope, np.nan, np.nan)
    degrees = len(x) - 2
    residuals = y - y.mean() - slope * centred
    models = stats.half_width(np.sqrt((residuals**2).sum() / degrees) * np.linalg.norm(weights), degrees)
    # how far each share may be off to either side, [models, 2]
    ends = np.maximum(values[["low", "high"]].to_numpy(float) * [-1, 1] + y[:, None] * [1, -1], 0)
    ends = np.where(weights[:, None] < 0, ends[:, ::-1], ends) * weights[:, None]
    low, high = np.linalg.norm([ends[x == depth].sum(axis=0) for depth in np.unique(x)], axis=0)
    return Estimate(slope, slope - float(np.hypot(models, low)), slope + float(np.hypot(models, high)))
