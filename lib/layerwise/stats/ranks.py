"""Rank correlations of two orders of blocks, plain and beyond what a third thing, such as depth, says of both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from layerwise.stats.luck import Luck
from layerwise.stats.means import Estimate


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    over: Iterable[str] = ("blocks", "windows"),
    given: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Spearman's correlation of two orders of blocks, with a 95 % percentile bootstrap interval.

    Parameters
    ----------
    x, y
        Values per block `[L]`, or per block and window `[L, n]`, then averaged over windows; the two may have different
        windows (a score is measured on calibration text, damage on test text), drawn independently. Ties share their
        mean rank. Leave block 0 out by passing `x[1:]`, `y[1:]`.
    over
        What is drawn again, and so what the interval covers. "windows": how well this text pins down the correlation
        *of these blocks*; values `[L]` have no windows to draw. "blocks": how much it rests on single blocks, as if the
        blocks were a sample. They are not: they are all that the model has, and neighbours are alike. With fewer than
        ten blocks read it as a warning, not as a test.
    given
        What is known of each block, such as its depth, `[L]`, or several such things, `[k, L]`: the correlation is then
        the partial one, of what remains of the ranks of `x` and `y` after a linear fit on the ranks of these; NaN where
        nothing remains.
    draws, seed
        Of the bootstrap.

    Raises
    ------
    ValueError
        For fewer than 3 blocks and one more for each thing given, different ones in `x` and `y`, missing or infinite
        values, and an unknown `over`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for name, values in (("x", x), ("y", y)):
        if values.ndim not in (1, 2):
            raise ValueError(f"{name} must be [blocks] or [blocks, windows], but its shape is {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that are missing or infinite, which have no rank")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} blocks and y has {len(y)}: a correlation needs the same blocks in both")
    known = _known(given, len(x))
    if len(x) < 3 + len(known):
        beside = f" beside {len(known)} given" if len(known) else ""
        raise ValueError(
            f"a rank correlation of {len(x)} blocks{beside} says nothing: at least {3 + len(known)} are needed"
        )
    unknown = set(over) - {"blocks", "windows"}
    if not over or unknown:
        raise ValueError(f"over must name 'blocks', 'windows' or both, not {over!r}")

    rng = np.random.default_rng(seed)
    value = float(_spearman(_means(x)[None], _means(y)[None], known[None])[0])
    sampled = [_redrawn(v, draws, rng) if "windows" in over else np.tile(_means(v), (draws, 1)) for v in (x, y)]
    given_too = np.broadcast_to(known, (draws, *known.shape))
    if "blocks" in over:
        chosen = rng.integers(len(x), size=(draws, len(x)))
        sampled = [np.take_along_axis(v, chosen, axis=1) for v in sampled]
        given_too = known[:, chosen].swapaxes(0, 1)
    # A draw that took one block L times has no order at all; it is left out, it is not a correlation of 0.
    correlations = _spearman(sampled[0], sampled[1], given_too)
    correlations = correlations[np.isfinite(correlations)]
    if correlations.size == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(correlations, (0.025, 0.975))
    if "blocks" in over and high - low < 1e-9:  # all resamples agree wholly, which doesn't make the blocks a proof
        low, high = np.sort([_least_agreement(len(x)) * np.sign(value), value])
    return Estimate(value, float(low), float(high))


def _least_agreement(L: int) -> float:
    """Lower end of Fisher's 95 % interval of the largest rank correlation of `L` blocks that is below 1."""
    if L < 4:
        return -1.0
    next_best = 1 - 12 / (L * (L**2 - 1))  # two neighbours change places
    return float(np.tanh(np.arctanh(next_best) - 1.96 * np.sqrt(1.06 / (L - 3))))


def rank_luck(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None, times: int = 10_000, seed: int = 0) -> Luck:
    """How many of `times` random orders of the blocks agree with `y` `[L]` at least as well as `x` `[L]` does.

    Agreement is Spearman's correlation, partial where something is `given`.

    Parameters
    ----------
    x, y
        Values per block `[L]`, taken as they are; whether windows pin them down is what the interval of
        `rank_correlation` says.
    given
        As for `rank_correlation`; what remains of the ranks of `x` is then permuted (Freedman and Lane, Journal of
        Business & Economic Statistics 1983).
    times, seed
        Of the random orders.

    Raises
    ------
    ValueError
        Where x or y is constant, or nothing remains of it.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = _known(given, len(x))[None]
    ranks, others = (_remaining(v[None], known)[0] for v in (x, y))
    if not (ranks.any() and others.any()):
        raise ValueError("x or y has no order of its own: it is the same for all blocks, or follows from what is given")
    permuted = np.random.default_rng(seed).permuted(np.tile(ranks, (times, 1)), axis=1)
    permuted = _without(permuted, np.broadcast_to(known, (times, *known.shape[1:])))  # which chance may have put back
    norms = np.linalg.norm(permuted, axis=1) * np.linalg.norm(others)
    agreed = np.divide(permuted @ others, norms, out=np.full(times, -1.0), where=norms > 0)
    own = ranks @ others / (np.linalg.norm(ranks) * np.linalg.norm(others))
    return Luck(int((agreed >= own - 1e-9).sum()), times)


def _known(given: ArrayLike | None, L: int) -> np.ndarray:
    """What is given of each block, `[k, L]`; k is 0 where nothing is."""
    if given is None:
        return np.empty((0, L))
    known = np.atleast_2d(np.asarray(given, np.float64))
    if known.ndim != 2 or known.shape[1] != L or not np.isfinite(known).all():
        raise ValueError(f"given must be finite numbers [{L}] or [k, {L}], one for each block, not {known.shape}")
    return known


def _means(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 1 else values.mean(axis=1)


def _redrawn(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means over windows drawn with replacement: `[L, n] -> [draws, L]`; values `[L]` are repeated as they are."""
    if values.ndim == 1:
        return np.tile(values, (draws, 1))
    n = values.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)  # how often each window is taken, [draws, n]
    return counts @ values.T / n


def _spearman(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Correlation of the ranks, row by row: `[draws, L], [draws, L], [draws, k, L] -> [draws]`.

    NaN where a row is constant, or follows from what is known.
    """
    x, y = (_remaining(v, known) for v in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def _remaining(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What a linear fit on the ranks of what is known `[draws, k, L]` leaves of the ranks of `values` `[draws, L]`."""
    ranks = distributions.rankdata(values, axis=1)
    return _without(ranks - ranks.mean(axis=1, keepdims=True), known)


def _without(ranks: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Centred ranks `[draws, L]` without what the ranks of what is known explain."""
    left = ranks
    if known.shape[1]:
        beside = distributions.rankdata(known, axis=2)
        beside = (beside - beside.mean(axis=2, keepdims=True)).swapaxes(1, 2)  # [draws, L, k]
        left = ranks - (beside @ (np.linalg.pinv(beside) @ ranks[..., None]))[..., 0]
    small = 1e-9 * ranks.shape[1]  # ranks are of the order of L, what rounding leaves of them is not
    return np.where(np.abs(left).max(axis=1, keepdims=True) > small, left, 0.0)
