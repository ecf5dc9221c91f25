"""Sweeps: blocks are lowered to fewer bits one after the other, in some order, and what that says of the order.

An order that comes from a score is one; random orders are drawn. Intervals cover other windows, and other draws where
the order is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.stats import Estimate, Luck

CLOSE = 0.975  # of the dense model's quality: what counts as close to the original
RANDOM = ("random", "random, ends kept")  # orders that are drawn; the second lowers the last block and block 0 last
RAMPS = (
    "late first",
    "late first, last block kept",
    "early first",
    "early first, block 0 kept",
    "middle first",
)  # orders of `plans.by_position`, which measure nothing
SETTING = ["model", "quantizer", "group", "levels"]
TWO_WIDTHS = re.compile(r"\d+→\d+")
TIMES = 2000  # resamples of a bootstrap


class Shares(NamedTuple):
    """Shares of lowered blocks until quality leaves a level: of each draw `[draws]`, and their resampled means.

    `units` is the smaller of the numbers of windows and draws that were resampled.
    """

    by_draw: np.ndarray
    resampled: np.ndarray
    units: int

    @property
    def estimate(self) -> Estimate:
        """Mean over draws."""
        return stats.bootstrap_interval(self.by_draw.mean(), self.resampled, self.units)

    def minus(self, other: Shares) -> Estimate:
        """Difference of the means, on the same resampled windows."""
        difference = self.by_draw.mean() - other.by_draw.mean()
        return stats.bootstrap_interval(difference, self.resampled - other.resampled, min(self.units, other.units))


@dataclass(frozen=True)
class Sweep:
    """Losses minus the dense model's, in nats per token, of one setting: `[draws, K, windows]` for each order.

    `lowered` `[K]` says how many of the `blocks` have the lower width, or which step of a sweep over three widths it
    is; all orders have the same windows.
    """

    setting: dict[str, str]
    blocks: int
    lowered: np.ndarray
    loss: dict[str, np.ndarray]

    @cached_property
    def name(self) -> str:
        """Quantizer, group and levels in words."""
        return "{quantizer}, group {group}, {levels}".format(**self.setting)

    def at(self, lowered: Sequence[int] | np.ndarray) -> Sweep:
        """The same at some of the numbers of lowered blocks."""
        chosen = np.isin(self.lowered, lowered)
        loss = {order: values[:, chosen] for order, values in self.loss.items()}
        return Sweep(self.setting, self.blocks, self.lowered[chosen], loss)

    def area(self, order: str) -> np.ndarray:
        """Mean loss over the sweep, by the trapezoidal rule in `lowered`: `[draws, windows]`, lower = better."""
        gaps = np.diff(self.lowered)
        weights = (np.append(gaps, 0) + np.append(0, gaps)) / 2 / gaps.sum()
        return np.tensordot(self.loss[order], weights, axes=(1, 0))

    def shares(self, order: str, level: float) -> Shares:
        """At which share of lowered blocks the quality of an order first leaves `level`; see `share_left`.

        The resampled windows are the same for every order, the resampled draws are its own. Raises ValueError for a
        level outside (0, 1), and for a sweep over three widths or one without its ends, which has no such share.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be a share of the dense model's quality between 0 and 1, not {level!r}")
        if not TWO_WIDTHS.fullmatch(self.setting["levels"]):
            raise ValueError(f"{self.name}: a share of lowered blocks needs two widths, such as 4→2")
        if (self.lowered[0], self.lowered[-1]) != (0, self.blocks):
            raise ValueError(
                f"{self.name}: {order} was measured with {self.lowered[0]} to {self.lowered[-1]} of {self.blocks} "
                "blocks lowered; a share needs both ends, none and all"
            )
        share, loss = self.lowered / self.blocks, self.loss[order]
        draws, _, windows = loss.shape
        by_draw = share_left(share, loss.mean(axis=2), level)
        counts = np.random.default_rng(0).multinomial(windows, np.full(windows, 1 / windows), size=TIMES)
        resampled = share_left(share, np.tensordot(counts / windows, loss, axes=(1, 2)), level)
        if order not in RANDOM:
            return Shares(by_draw, resampled[:, 0], windows)
        counts = np.random.default_rng(1).multinomial(draws, np.full(draws, 1 / draws), size=TIMES)
        return Shares(by_draw, (counts * resampled).mean(axis=1), min(draws, windows))


def share_left(share: np.ndarray, loss: np.ndarray, level: float) -> np.ndarray:
    """The share at which quality first leaves `level`, by linear interpolation: `[K], [..., K] -> [...]`.

    Quality is the dense model's perplexity divided by the plan's, exp(-loss). It is 0 where quality is below the level
    from the start, and 1 where it never is.
    """
    quality = np.exp(-loss)
    outside = quality < level
    after = outside.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(quality, at[..., None], -1)[..., 0] for at in (before, after))
    part = np.divide(high - level, high - low, out=np.zeros(high.shape), where=high > low)
    found = share[before] + part * (share[after] - share[before])
    return np.where(outside.any(axis=-1), found, 1.0)


def read_orders(rows: pd.DataFrame, orders: list[str]) -> Sweep:
    """Rows of one setting, one per plan, at the numbers of lowered blocks that all of these orders have.

    Columns: model, quantizer, group, levels, order, draw, lowered, blocks, and w0, w1, …: the plan's loss minus the
    dense model's in nats per token, in each test window. With two widths, none and all lowered is one plan whatever
    the order: where an order lacks it, another's row serves.

    Raises ValueError for rows that lack a column, an order or a value, repeat a plan, are of several settings, or have
    draws of one order at different numbers of lowered blocks.
    """
    windows = windows_of(rows, [*SETTING, "order", "draw", "lowered", "blocks"])
    for name in [*SETTING, "blocks"]:
        if len(found := rows[name].unique()) != 1:
            raise ValueError(f"a sweep is of one {name}, but the rows have {', '.join(map(str, found)) or 'none'}")
    setting, blocks = {name: str(rows[name].iloc[0]) for name in SETTING}, int(rows["blocks"].iloc[0])
    if absent := [order for order in orders if order not in set(rows["order"])]:
        raise ValueError(f"no row has the order {absent[0]!r}; there is {', '.join(rows['order'].unique())}")
    check_plans(rows, ["order", "draw", "lowered"], windows)
    if TWO_WIDTHS.fullmatch(setting["levels"]):
        if not rows["lowered"].between(0, blocks).all():
            raise ValueError(f"the lowered blocks must be 0 to {blocks}, not {rows['lowered'].max():g}")
        rows = _with_ends(rows, blocks)
    parts = {order: rows[rows["order"] == order].sort_values(["draw", "lowered"]) for order in orders}
    lowered = {order: _of_every_draw(part, order) for order, part in parts.items()}
    loss = {
        order: part[windows].to_numpy(float).reshape(-1, len(lowered[order]), len(windows))
        for order, part in parts.items()
    }
    common = np.array(sorted(set.intersection(*map(set, lowered.values()))))
    if len(common) < 2:
        raise ValueError(f"{' and '.join(orders)} have {len(common)} numbers of lowered blocks in common, 2 are needed")
    return Sweep(setting, blocks, common, {o: loss[o][:, np.isin(lowered[o], common)] for o in orders})


def windows_of(rows: pd.DataFrame, needed: list[str]) -> list[str]:
    """Names of the columns w0, w1, … of test windows; raises ValueError if there are none, or a `needed` one lacks."""
    windows = [name for name in rows if re.fullmatch(r"w\d+", str(name))]
    if missing := [name for name in needed if name not in rows] + ["w0"] * (not windows):
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are {', '.join(needed)} and w0, w1, …")
    return windows


def check_plans(rows: pd.DataFrame, keys: list[str], windows: list[str]) -> None:
    """Raise ValueError, naming its `keys`, for a plan that is there twice or lacks a finite loss in a window."""
    for bad, what in (
        (rows.duplicated(keys), "is there more than once"),
        (~np.isfinite(rows[windows]).all(axis=1), "lacks a finite loss in some window"),
    ):
        if bad.any():
            raise ValueError(f"{', '.join(f'{name} {rows.loc[bad, name].iloc[0]}' for name in keys)} {what}")


def best_by_position(choice: pd.DataFrame, level: float | None = None) -> str:
    """The order of `plans.by_position` that costs least over the sweep, or lasts longest within a `level` of quality.

    `choice` are rows as for `read_orders`, of one setting, measured on calibration text, which doesn't judge, with all
    of `RAMPS`. Raises ValueError where one is missing, or as `read_orders` does.
    """
    if absent := [order for order in RAMPS if order not in set(choice["order"])]:
        raise ValueError(
            f"the rows that choose between score-free baselines lack {', '.join(absent)}: a score is compared with the "
            "best of them, measured on calibration text"
        )
    sweep = read_orders(choice, list(RAMPS))
    lasts = {order: sweep.shares(order, level).estimate.value if level else 0.0 for order in RAMPS}
    return min(RAMPS, key=lambda order: (-lasts[order], sweep.area(order).mean()))


def untested(sweep: Sweep, order: str, level: float) -> str:
    """What keeps the sweep from putting orders to the test at this level, in words; empty if nothing does.

    The quality must surely be within the level with all blocks high, and surely outside with all of them low.
    """
    limit = -math.log(level)
    high, low = (stats.mean(sweep.loss[order][0, end]) for end in (0, -1))
    if not high.high <= limit:
        return f"with all blocks at the higher width quality is {_quality(high)}, not surely within {100 * level:g} %"
    if not low.low > limit:
        return f"with all blocks at the lower width quality is {_quality(low)}, not surely below {100 * level:g} %"
    return ""


def against_random(rows: pd.DataFrame, order: str, rival: str, *others: str) -> Sweep:
    """The sweep of an order that comes from a score, of a rival of `RANDOM`, and of others; errors as `read_orders`."""
    if rival not in RANDOM or order in RANDOM:
        raise ValueError(f"an order is compared with one of {', '.join(map(repr, RANDOM))}; {order!r} with {rival!r}?")
    sweep = read_orders(rows, [order, rival, *others])
    if (draws := len(sweep.loss[order])) > 1:
        raise ValueError(f"{order} has {draws} draws: an order that comes from a score has one")
    return sweep


def saved(sweep: Sweep, order: str, rival: str) -> np.ndarray:
    """Mean loss over the sweep by the rival minus that by the order: `[draws of the rival, windows]`."""
    return sweep.area(rival) - sweep.area(order)


def saving(sweep: Sweep, order: str, rival: str) -> tuple[Estimate, Luck]:
    """What the order saves, and the luck: how many orders without information save as much."""
    by_draw = [-sweep.area(name).mean(axis=1) for name in (order, rival)]
    return stats.crossed_mean(saved(sweep, order, rival)), stats.luck(by_draw[0][0], by_draw[1])


def named(name: str, rival: str) -> str:
    """What a claim is called against this rival."""
    return name if rival == "random" else f"{name} beyond the ends"


def _quality(loss: Estimate) -> str:
    value, low, high = (100 * math.exp(-number) for number in (loss.value, loss.high, loss.low))
    return f"{value:.1f} %" if math.isnan(low) else f"{value:.1f} % (95 %: {low:.1f} to {high:.1f})"


def _with_ends(rows: pd.DataFrame, blocks: int) -> pd.DataFrame:
    """With the plans of none and all lowered in every order and draw."""
    ends = rows[rows["lowered"].isin([0, blocks])].drop_duplicates("lowered").drop(columns=["order", "draw"])
    everywhere = rows[["order", "draw"]].drop_duplicates().merge(ends, how="cross")
    return pd.concat([rows, everywhere]).drop_duplicates(["order", "draw", "lowered"])


def _of_every_draw(part: pd.DataFrame, order: str) -> np.ndarray:
    """The numbers of lowered blocks that every draw of an order has."""
    by_draw = part.groupby("draw")["lowered"].apply(tuple)
    for draw, lowered in by_draw.items():
        if lowered != by_draw.iloc[0]:
            different = sorted(set(lowered) ^ set(by_draw.iloc[0]))
            raise ValueError(
                f"draws {by_draw.index[0]} and {draw} of {order} differ in having {different[0]} blocks lowered: every "
                "draw of an order needs the same plans"
            )
    return np.array(by_draw.iloc[0])
