"""Means over windows, draws and models with their intervals, and tests of these means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as distributions


class Estimate(NamedTuple):
    """A value with its 95 % interval; `low` and `high` are NaN where the sample is too small to give one."""

    value: float
    low: float
    high: float


def standard_error(values: ArrayLike) -> np.ndarray:
    """Standard error of the mean over the last axis, `[..., n] -> [...]`, NaN for n = 1 (one window has no spread)."""
    values = np.asarray(values, np.float64)
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(n)


def half_width(error: ArrayLike, degrees: float) -> np.ndarray | float:
    """How far Student's t 95 % interval reaches to each side of a value with this standard error, number or array.

    `degrees` are the degrees of freedom of the error, one less than the independent values that it was estimated from;
    with fewer than one the reach is unknown, NaN. An error that is known exactly has infinitely many.
    """
    return distributions.t.ppf(0.975, degrees) * error


def mean(values: ArrayLike) -> Estimate:
    """Mean of independent values `[n]` with Student's 95 % interval; for differences, pass the paired differences."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected one value per window, an array [n] with n > 0, but got the shape {values.shape}")
    value = float(values.mean())
    if values.size < 2:
        return Estimate(value, float("nan"), float("nan"))
    reach = float(half_width(standard_error(values), values.size - 1))
    return Estimate(value, value - reach, value + reach)


def p_value(values: ArrayLike) -> float:
    """Two-sided p-value of the mean of independent values `[n]` being 0, by Student's t; NaN for a single value."""
    values = np.asarray(values, np.float64)
    value, error = values.mean(), float(standard_error(values))
    if not error > 0:
        return float("nan") if np.isnan(error) else float(value == 0)
    return float(2 * distributions.t.sf(abs(value) / error, len(values) - 1))


def crossed_mean(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of `values` `[draws, windows]`, each draw measured on the same windows; the interval covers both.

    That is: what other calibration draws and other windows would have given, not only other windows. Three draws say
    little about draws, so the interval is wide where draws differ.

    A value is the mean + an effect of its draw + one of its window + noise. The means over windows are independent over
    draws and have a t interval; the windows' own effects, that is their spread beyond noise, have another; the squares
    of the two reaches are added ("MOVER"; Zou and Donner, Statistics in Medicine 2008). In simulations with 2 to 10
    draws it covered 94 to 99 %, whatever the shares of draws, windows and noise; the usual way, Satterthwaite's degrees
    of freedom, fell to 90 % with 2 draws and to 92 % with 3.

    Parameters
    ----------
    values
        `[draws, windows]`. Windows have one length and weigh alike.
    confidence
        Of the interval.

    Returns
    -------
    value, low, high
        Low and high are NaN for a single draw or a single window, whose spread is unknown.

    Raises
    ------
    ValueError
        For missing or infinite values and for another shape.
    """
    value, *errors = _crossed(values)
    reach = _crossed_reach(errors, 1 - confidence)
    return Estimate(value, value - reach, value + reach)


def over_models(
    values: ArrayLike, low: ArrayLike, high: ArrayLike, possible: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Mean of one quantity of several trained models, each with the 95 % interval of its evaluation.

    Parameters
    ----------
    values, low, high
        `[n]` each, one for each model.
    possible
        Student's t of two models reaches far: the interval is cut at the least and the most that is possible.

    Returns
    -------
    value, low, high
        The interval covers other models of that kind and other evaluation text, which the models share: the squares of
        Student's reach over models and of the models' mean reach to that side are added, as in `crossed_mean`. The part
        of the evaluation's noise that is a model's own is in the spread between models too, so the interval errs on the
        wide side, the more so the more models there are. A single model keeps its own interval, which says nothing of
        others. Low and high are NaN where a model's are.

    Raises
    ------
    ValueError
        For no model, or another shape.
    """
    value, below, _ = mean(values)
    values, low, high = (np.asarray(each, np.float64) for each in (values, low, high))
    if len(values) == 1:
        return Estimate(value, *np.clip([low[0], high[0]], *possible).tolist())
    # a percentile interval need not hold its value: there it has no reach to that side
    down, up = (float(np.maximum(reach, 0).mean()) for reach in (values - low, high - values))
    reach = np.hypot(value - below, [down, up]) * [-1, 1]
    return Estimate(value, *np.clip(value + reach, *possible).tolist())


def another(values: ArrayLike) -> Estimate:
    """Mean of independent values `[n]`, and where one more of their kind lies in 95 % of cases: a prediction interval.

    Student's t, for normal values: give correlations on Fisher's scale, by arctanh. What lies outside is unlikely to be
    one more of them. Low and high are NaN for a single value. Raises ValueError for no value, or another shape.
    """
    value, low, _ = mean(values)
    reach = (value - low) * np.sqrt(np.size(values) + 1)  # t s / sqrt(n) -> t s sqrt(1 + 1 / n)
    return Estimate(value, value - reach, value + reach)


def crossed_p_value(values: ArrayLike) -> float:
    """Two-sided p-value of the mean of `values` `[draws, windows]` being 0: below 0.05 where `crossed_mean` excludes 0.

    NaN for a single draw or a single window.
    """
    value, *errors = _crossed(values)
    if min(np.shape(values)) < 2:
        return float("nan")
    if value == 0:
        return 1.0

    def beyond(log_p: float) -> float:
        return _crossed_reach(errors, np.exp(log_p)) - abs(value)

    smallest = np.log(1e-100)
    if beyond(smallest) < 0:  # as good as no spread at all
        return 0.0
    return float(np.exp(optimize.brentq(beyond, smallest, 0.0)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values `[n]`: those below 0.05 are the ones to reject, with at most 5 % risk of any false one.

    The k-th smallest is multiplied by n - k + 1 and raised to at least the one before, with 1 as the limit (Holm 1979).
    It asks nothing of how the tests depend on each other.
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values must be an array [n] of numbers from 0 to 1, not {p_values}")
    order = np.argsort(p_values)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1)


def bootstrap_interval(value: float, resampled: Sequence[float] | np.ndarray, units: int) -> Estimate:
    """A value with the 95 % percentile interval of its bootstrap, expanded for few units.

    Plain percentiles are too narrow, as a normal interval with n in place of n - 1 would be: with 5 units they cover
    85 % in place of 95 %. The percentiles taken here are those that give Student's t interval where the bootstrap is
    normal (Hesterberg, The American Statistician 2015).

    Parameters
    ----------
    value
        Of all units, in any unit of measurement, which the interval has too.
    resampled
        `[times]`, the same of units that were drawn with replacement; some may be infinite.
    units
        How many were resampled, of two kinds the fewer; with fewer than 2, low and high are NaN.
    """
    if units < 2:
        return Estimate(float(value), float("nan"), float("nan"))
    reach = half_width(np.sqrt(units / (units - 1)), units - 1)
    # Where some are infinite there is nothing between them: a value that was drawn, not one in between.
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(resampled).all() else "nearest"
    low, high = np.quantile(resampled, distributions.norm.cdf([-reach, reach]), method=method)
    return Estimate(float(value), float(low), float(high))


def _crossed(values: ArrayLike) -> tuple[float, tuple[float, int], tuple[float, int]]:
    """Mean of values `[draws, windows]`, and the (standard error, degrees) that each of the two axes adds to it."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected values [draws, windows] with at least one of each, but the shape is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("every draw needs a finite value for every window, but some are missing or infinite")
    value = float(values.mean())
    if min(values.shape) < 2:
        return value, (np.nan, 1), (np.nan, 1)
    # The means over the longer axis have less noise in them. Their spread, noise included, is one part; what the
    # means over the shorter axis spread beyond noise is the other, so that the noise counts once.
    values = values if values.shape[0] <= values.shape[1] else values.T
    few, many = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    noise = ((values - rows[:, None] - columns + value) ** 2).sum() / ((few - 1) * (many - 1)) / values.size
    own = max(columns.var(ddof=1) / many - noise, 0)
    return value, (rows.std(ddof=1) / np.sqrt(few), few - 1), (np.sqrt(own), many - 1)


def _crossed_reach(errors: Iterable[tuple[float, int]], risk: float) -> float:
    # The quantile that `half_width` takes from scipy.stats, without its checks: a p-value asks for some fifty of them.
    return float(np.hypot(*(-special.stdtrit(degrees, risk / 2) * error for error, degrees in errors)))
