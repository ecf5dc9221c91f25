"""Q3: fewer bits against pruning at the same bytes (arXiv 2406.17415), and where the two cross."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import block_orders
from layerwise.claims.verdict import DOES_NOT, HOLDS, INCONCLUSIVE, RISK, Verdict, counted, in_words
from layerwise.stats import Estimate

EXTREME = 2  # bits: "unless at extreme quantization", as the abstract has it
NEAR = 1.25  # times the bytes of a plan: what is larger is no rival of it


def q3(rows: pd.DataFrame, bits: str = "uniform bits", least: float = EXTREME + 1) -> Verdict:
    """Q3: quantizing to lower bits beats pruning, unless at extreme (2-bit) quantization.

    Rows as for `crossing`. Every plan of the family `bits` with `least` to 8 average bits is set against pruning as
    `at_equal_bytes` does it. The effect is the loss of pruning minus that of the bits in nats per token, positive =
    bits are better, at the size where it is least.

    - holds: at each of these sizes bits are better, after Holm's correction for their number;
    - doesn't hold: at one of them bits are worse, after the correction;
    - inconclusive: else, or the data give no interval.

    At fewer bits the claim has an exception, `q3_exception`. Raises ValueError as
    `at_equal_bytes` does, and if no plan has that many bits.
    """
    every = at_equal_bytes(rows, bits)
    found = every[every["average_bits"].between(least, 8)]
    if found.empty:
        raise ValueError(f"no plan of {bits} has {least:g} to 8 average bits")
    judged = found.dropna(subset="value")
    if judged.empty:
        raise ValueError(f"no plan of {bits} has as few bytes as any plan of pruning: prune less")
    significant = np.zeros(len(judged), bool)
    if judged["p"].notna().all():
        significant = stats.holm(judged["p"]) <= RISK
    better, worse = (int((significant & (sign * judged["value"] > 0)).sum()) for sign in (1, -1))
    verdict = DOES_NOT if worse else HOLDS if better == len(found) else INCONCLUSIVE
    worst = judged.loc[judged["value"].idxmin()]
    effect = Estimate(worst["value"], worst["low"], worst["high"])
    unjudged = len(found) - len(judged)
    reason = (
        f"Of {counted(len(found), 'size')} from {found['average_bits'].min():g} to {found['average_bits'].max():g} "
        f"average bits, {bits} are better than the best pruning of as many bytes at {better} and worse at {worse}, "
        f"after Holm's correction; least at {worst['average_bits']:g} bits, by {in_words(effect, 'nats')} against "
        f"{worst['rival']}{f'; at {unjudged} nothing pruned is as large' if unjudged else ''}."
    )
    statement = f"At {least:g} bits and more, quantizing beats pruning at equal bytes."
    return Verdict("Q3", statement, verdict, *effect, "nats", reason, rows)


def q3_exception(rows: pd.DataFrame, bits: str = "uniform bits") -> Verdict:
    """The exception of Q3: at extreme quantization, of 2 bits, pruning beats it.

    Rows as for `crossing`. The plan of the family `bits` with at most 2 average bits, of several the smallest, is set
    against pruning of as many bytes, as `at_equal_bytes` does it. The effect is the loss of pruning minus that of the
    bits in nats per token, positive = bits are better: it holds where the whole interval is below 0, it doesn't where
    it is above. It is inconclusive where nothing pruned is as large. Raises ValueError as `at_equal_bytes` does, and
    without such a plan.
    """
    found = at_equal_bytes(rows, bits)
    found = found[found["average_bits"] <= EXTREME]
    if found.empty:
        raise ValueError(f"no plan of {bits} has at most {EXTREME} average bits")
    row = found.loc[found["bytes"].idxmin()]
    effect = Estimate(row["value"], row["low"], row["high"])
    at = f"At {row['average_bits']:g} bits"
    if np.isnan(effect.low):
        verdict, reason = INCONCLUSIVE, f"{at} the data give no interval, or nothing pruned is as large."
    else:
        verdict = HOLDS if effect.high < 0 else DOES_NOT if effect.low > 0 else INCONCLUSIVE
        reason = f"{at} the loss of {row['rival']} minus that of the bits is {in_words(effect, 'nats')}."
    statement = f"At {EXTREME} bits, pruning beats quantizing at equal bytes."
    return Verdict("Q3 at 2 bits", statement, verdict, *effect, "nats", reason, rows)


def at_equal_bytes(rows: pd.DataFrame, bits: str = "uniform bits") -> pd.DataFrame:
    """Each plan of the family `bits` against the best pruning of at least its bytes, the smallest first.

    Columns: model, average_bits, bytes, rival, value, low, high, p. The value is the loss of the rival minus that of
    the bits, positive = bits are better. Of each kind of pruning the next larger plan is taken, which favours pruning
    by the step between its sizes; a kind without a plan that is at most a quarter larger is no rival at that size. The
    rival is the kind that does best in one half of the windows, and is measured in the other; then the halves change
    places. The interval is over windows, and over calibration draws too where both sides have several, or one of them
    has. `p` is not corrected. Value and rival are missing where nothing pruned is as large.

    Raises ValueError for rows as `crossing` does, and for rows that lack the family `bits` or all pruning.
    """
    windows, rows = _read(rows)
    if bits not in set(rows["family"]):
        raise ValueError(f"no row is of the family {bits!r}; there is {', '.join(rows['family'].unique())}")
    if not rows["pruning"].any():
        raise ValueError("no row is pruning: there is nothing to set bits against")
    kinds = dict(list(rows[rows["pruning"]].groupby("family", sort=False)))
    found = []
    for (size, width), own in rows[rows["family"] == bits].groupby(["bytes", "average_bits"]):
        row = {"model": own["model"].iloc[0], "average_bits": width, "bytes": size}
        gains = {}
        for name, part in kinds.items():
            rival = part[part["bytes"].between(size, NEAR * size)].sort_values("bytes").drop_duplicates("draw")
            if set(rival["draw"]) == set(part["draw"]):
                gains[name] = _paired(rival, own, windows)
        names, gain = _held_out_best(gains) if gains else ([], np.full((1, 1), np.nan))
        estimate, p = _estimate(gain)
        found.append(row | {"rival": " and ".join(names) or None} | estimate._asdict() | {"p": p})
    return pd.DataFrame(found)


def _paired(rival: pd.DataFrame, own: pd.DataFrame, windows: list[str]) -> np.ndarray:
    """Losses of the rival minus one's own, `[draws, windows]`: draw by draw where both have the same ones."""
    a, b = (part.sort_values("draw")[windows].to_numpy(float) for part in (rival, own))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        b = b.mean(axis=0, keepdims=True)
    return a - b


def _held_out_best(gains: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """The kinds that leave bits the least gain in each half of the windows, each measured in the other half."""
    draws = max(len(gain) for gain in gains.values())
    shape = (draws, next(iter(gains.values())).shape[1])
    wide = {
        name: np.broadcast_to(gain if len(gain) == draws else gain.mean(axis=0), shape) for name, gain in gains.items()
    }
    found = np.empty(shape)
    chosen = []
    for half in (0, 1):
        others = slice(1 - half if shape[1] > 1 else 0, None, 2)  # a single window has no other half
        means = {name: gain[:, others].mean() for name, gain in wide.items()}
        best = min(means, key=means.__getitem__)
        found[:, half::2] = wide[best][:, half::2]
        chosen.append(best)
    return list(dict.fromkeys(chosen)), found


def _estimate(gain: np.ndarray) -> tuple[Estimate, float]:
    if len(gain) > 1 and (gain != gain[:1]).any():
        return stats.crossed_mean(gain), stats.crossed_p_value(gain)
    return stats.mean(gain[0]), stats.p_value(gain[0])


def crossing(rows: pd.DataFrame, a: str, b: str) -> Estimate:
    """The size in bytes above which family `a` has a lower loss than family `b`, with a 95 % interval over windows.

    Both are interpolated linearly in bytes between their plans, over the sizes that both have; draws are averaged. Loss
    is convex in bytes, so the family with fewer plans looks worse between them than it is. From the largest size
    downwards, it is the first at which `b` becomes as good. 0 says that `a` is better at every size that both have,
    infinity that it isn't at the largest. Sizes at which both lose the same in every window, as families with a plan in
    common do, are left out; NaN says that they are all such.

    Rows: of one model, one per plan and draw: model, family, pruning (whether it is), draw, bytes, average_bits
    (missing where there are none), and w0, w1, …: the plan's loss minus the dense model's in nats per token, in each
    test window. Further columns are not read.

    Raises ValueError for rows that lack a column or a finite loss, repeat a plan, or are of several models, and for
    families that are not there or have no sizes in common.
    """
    windows, rows = _read(rows)
    parts = [rows[rows["family"] == name] for name in (a, b)]
    for name, part in zip((a, b), parts, strict=True):
        if part.empty:
            raise ValueError(f"no row is of the family {name!r}; there is {', '.join(rows['family'].unique())}")
    low, high = _common_sizes(*parts)
    if low >= high:
        raise ValueError(f"{a} and {b} have no sizes in common")
    sizes = np.unique(np.append(pd.concat(parts)["bytes"], (low, high)))
    sizes = sizes[(low <= sizes) & (sizes <= high)]
    of_a, of_b = (np.array([_between(part, size, windows).mean(axis=0) for size in sizes]) for part in parts)
    differ = ~np.isclose(of_a, of_b, rtol=0, atol=1e-9).all(axis=1)  # means of equal draws differ in their last digit
    if not differ.any():
        return Estimate(np.nan, np.nan, np.nan)
    sizes, gain = sizes[differ], (of_b - of_a)[differ]  # [sizes, windows]
    n = gain.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=block_orders.TIMES)
    value, *resampled = _stops(sizes, np.vstack([gain.mean(axis=1), (counts / n) @ gain.T]))
    return stats.bootstrap_interval(value, resampled, n)


def _common_sizes(*parts: pd.DataFrame) -> tuple[float, float]:
    """The smallest and the largest size that every draw of every part reaches; they are the wrong way round if none."""
    ends = [part.groupby("draw")["bytes"].agg(["min", "max"]) for part in parts]
    return max(each["min"].max() for each in ends), min(each["max"].min() for each in ends)


def crossings(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """`crossing` of pairs of families on each model: model, better, rival, and in bytes value, low, high.

    Pairs that a model lacks, or that have no sizes in common there, are left out.
    """
    found = []
    for model, part in rows.groupby("model", sort=False):
        parts = dict(list(part.groupby("family")))
        for better, rival in pairs:
            if {better, rival} <= set(parts) and np.less(*_common_sizes(parts[better], parts[rival])):
                estimate = crossing(part, better, rival)
                found.append({"model": model, "better": better, "rival": rival} | estimate._asdict())
    return pd.DataFrame(found, columns=["model", "better", "rival", *Estimate._fields])


def best_that_fits(rows: pd.DataFrame, size: float) -> dict[str, Any]:
    """The plan of one model that loses least of those that store at most `size` bytes, each at its first draw.

    Chosen on half of the windows and measured on the other half: `family`, `amount`, `bytes`, and the loss minus the
    dense model's in nats per token as `value`, `low`, `high`. Empty where nothing fits. Rows as for `crossing`, with
    `amount`, the plan in words.
    """
    windows = block_orders.windows_of(rows, ["family", "amount", "draw", "bytes"])
    fits = rows[(rows["bytes"] <= size) & (rows["draw"] == 0)]
    if fits.empty:
        return {}
    best = fits.loc[fits[windows[::2]].mean(axis=1).idxmin()]
    measured = stats.mean(best[windows[1::2]].to_numpy(float))
    return best[["family", "amount", "bytes"]].to_dict() | measured._asdict()


def random_ahead(rows: pd.DataFrame, family: str, random: str) -> str:
    """In a clause, how many draws of the family `random` lose less than the mean of `family`: "3 of 10 on 6L, ...".

    Rows as for `crossing`, with the loss: of each model the one plan of both families that is told of.
    """
    phrases = []
    for model, part in rows.groupby("model", sort=False):
        drawn, own = (part.loc[part["family"] == name, "loss"] for name in (random, family))
        if len(drawn) and len(own):
            phrases.append(f"{(drawn < own.mean()).sum()} of {len(drawn)} on {model}")
    return ", ".join(phrases) or "not measured"


def _between(part: pd.DataFrame, size: float, windows: list[str]) -> np.ndarray:
    """Losses of a kind of pruning at a size, linear in bytes between its plans: `[draws, windows]`."""
    curves = []
    for _, draw in part.groupby("draw"):
        draw = draw.sort_values("bytes")
        values = draw[windows].to_numpy(float)
        curves.append([np.interp(size, draw["bytes"], column) for column in values.T])
    return np.array(curves)


def _stops(sizes: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Where each of some gains `[n, sizes]` first stops being positive, from the largest size downwards, `[n]`."""
    worse = gains <= 0
    last = len(sizes) - 1 - worse[:, ::-1].argmax(axis=1)  # of those that are worse anywhere
    below, above = last, np.minimum(last + 1, len(sizes) - 1)
    each = np.arange(len(gains))
    start, end = gains[each, below], gains[each, above]
    share = np.divide(-start, end - start, out=np.zeros(len(gains)), where=end > start)
    found = sizes[below] + share * (sizes[above] - sizes[below])
    found = np.where(last == len(sizes) - 1, np.inf, found)
    return np.where(worse.any(axis=1), found, 0.0)


def _read(rows: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """Names of the windows, and the rows once they are known to be of one model and complete."""
    windows = block_orders.windows_of(rows, ["model", "family", "pruning", "draw", "bytes", "average_bits"])
    if len(models := rows["model"].unique()) != 1:
        raise ValueError(f"Q3 is on one model, but the rows are of {', '.join(map(str, models)) or 'none'}")
    block_orders.check_plans(rows, ["family", "draw", "bytes"], windows)
    return windows, rows.assign(pruning=rows["pruning"].astype(bool))
