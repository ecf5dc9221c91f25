"""Means, intervals and rank correlations: the one place where numbers over windows become statements.

The unit of every interval is a *window* (one row of tokens), because windows are drawn independently and the tokens
within one are not. Nothing here knows a model; inputs are numpy arrays.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats as distributions


class Estimate(NamedTuple):
    """A value with its 95 % interval; `low` and `high` are NaN where the sample is too small to give one."""

    value: float
    low: float
    high: float


def standard_error(values) -> np.ndarray:
    """Standard error of the mean over the last axis, `[..., n] -> [...]`, NaN for n = 1 (one window has no spread)."""
    values = np.asarray(values, np.float64)
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(n)


def half_width(error, degrees: float, confidence: float = 0.95):
    """How far Student's t interval reaches to each side of a value with this standard error, number or array.

    `degrees` are the degrees of freedom of the error, one less than the independent values that it was estimated from;
    with fewer than one the reach is unknown, NaN. An error that is known exactly has infinitely many.
    """
    return distributions.t.ppf((1 + confidence) / 2, degrees) * error


def mean(values, confidence: float = 0.95) -> Estimate:
    """Mean of independent values `[n]` with Student's t interval; for differences, pass the paired differences."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected one value per window, an array [n] with n > 0, but got the shape {values.shape}")
    value = float(values.mean())
    if values.size < 2:
        return Estimate(value, float("nan"), float("nan"))
    reach = float(half_width(standard_error(values), values.size - 1, confidence))
    return Estimate(value, value - reach, value + reach)


def rank_correlation(x, y, over=("blocks", "windows"), draws: int = 2000, seed: int = 0) -> Estimate:
    """Spearman's correlation of two orders of blocks, with a 95 % percentile bootstrap interval.

    `x` and `y` are values per block `[L]`, or per block and window `[L, n]`, then averaged over windows; the two may
    have different windows (a score is measured on calibration text, damage on test text), drawn independently.
    Ties share their mean rank. Leave block 0 out by passing `x[1:]`, `y[1:]`.

    `over` says what is drawn again, and so what the interval covers:

    - "windows": how well this text pins down the correlation *of these blocks*. Values `[L]` have no windows to draw.
    - "blocks": how much the correlation rests on single blocks, as if the blocks were a sample. They are not: they are
      all that the model has, and neighbours are alike. With fewer than ten blocks read it as a warning, not as a test.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("x", x), ("y", y)):
        if values.ndim not in (1, 2):
            raise ValueError(f"{name} must be [blocks] or [blocks, windows], but its shape is {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are missing or infinite, which have no rank")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} blocks and y has {len(y)}: a correlation needs the same blocks in both")
    if len(x) < 3:
        raise ValueError(f"a rank correlation of {len(x)} blocks says nothing: at least 3 are needed")
    unknown = set(over) - {"blocks", "windows"}
    if not over or unknown:
        raise ValueError(f"over must name 'blocks', 'windows' or both, not {over!r}")

    rng = np.random.default_rng(seed)
    value = float(_spearman(_means(x)[None], _means(y)[None])[0])
    sampled = [_redrawn(v, draws, rng) if "windows" in over else np.tile(_means(v), (draws, 1)) for v in (x, y)]
    if "blocks" in over:
        chosen = rng.integers(len(x), size=(draws, len(x)))
        sampled = [np.take_along_axis(v, chosen, axis=1) for v in sampled]
    # A draw that took one block L times has no order at all; it is left out, it is not a correlation of 0.
    correlations = _spearman(*sampled)
    correlations = correlations[np.isfinite(correlations)]
    if correlations.size == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(correlations, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _means(values):
    return values if values.ndim == 1 else values.mean(axis=1)


def _redrawn(values, draws, rng):
    """Means over windows drawn with replacement: `[L, n] -> [draws, L]`; values `[L]` are repeated as they are."""
    if values.ndim == 1:
        return np.tile(values, (draws, 1))
    n = values.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)  # how often each window is taken, [draws, n]
    return counts @ values.T / n


def _spearman(x, y):
    """Correlation of the ranks, row by row: `[draws, L], [draws, L] -> [draws]`, NaN where a row is constant."""
    x, y = (distributions.rankdata(v, axis=1) for v in (x, y))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)
