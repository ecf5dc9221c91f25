"""Paired differences over a grid of settings, and what may be said of the best of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims.verdict import RISK, counted
from layerwise.stats import Estimate


@dataclass(frozen=True)
class Grid:
    """Differences from the rival that it is paired with, lower = better, for `S` settings.

    `settings` has one row per setting, `values` is `[S, draws, units]`: every setting has the same calibration draws
    and the same units, which are windows or items.
    """

    settings: pd.DataFrame
    values: np.ndarray

    @property
    def enough(self) -> bool:
        """Whether there are the 2 draws and 2 units that an interval needs."""
        return min(self.values.shape[1:]) >= 2

    def p_values(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each setting's mean being 0, `[S]`: on its own, and after Holm's correction; NaN if not `enough`."""
        if not self.enough:
            return np.full(len(self.values), np.nan), np.full(len(self.values), np.nan)
        alone = [stats.crossed_p_value(one) for one in self.values]
        return np.array(alone), stats.holm(alone)

    def found(self) -> str:
        """In words: how many settings are better and worse than the rival, or what is missing to say so.

        With two or three draws even a large difference rarely survives the correction for tens of settings, so the
        counts before it are told, too; of these one in twenty is chance.
        """
        if not self.enough:
            _, draws, units = self.values.shape
            there = f"{counted(draws, 'calibration sample')} and {counted(units, 'unit')}"
            return f"{there} are too few, 2 of each are needed"
        means = self.values.mean(axis=(1, 2))
        better, worse = ([int((sign * means[p < RISK] > 0).sum()) for p in self.p_values()] for sign in (-1, 1))
        return (
            f"of {counted(len(means), 'setting')}, {better[0]} are better and {worse[0]} worse at 95 %, "
            f"{better[1]} and {worse[1]} after Holm's correction"
        )

    def held_out_best(self) -> tuple[Estimate, list[int]]:
        """Mean of the best setting, on data that took no part in choosing it; and the settings that were chosen.

        The best of many looks better than it is. So the values of a draw, in one half of the units, are taken at the
        setting that is best on the other draws in the other half of the units. Their mean is free of the winner's luck,
        and is that of the settings chosen. Choices are by half and draw; NaN and none where there is not `enough`.

        The parts are not quite independent, since each took part in choosing for others. In simulations without any
        effect 1 to 5 % of the intervals were below 0, and 8 % in the worst case: settings that share no noise, and five
        draws that are all the noise there is.
        """
        if not self.enough:
            return Estimate(np.nan, np.nan, np.nan), []
        _, draws, units = self.values.shape
        taken = np.empty((draws, units))
        chosen = []
        for half in (0, 1):
            own, other = np.arange(half, units, 2), np.arange(1 - half, units, 2)
            means = self.values[:, :, other].mean(axis=2)
            for draw in range(draws):
                best = int(np.delete(means, draw, axis=1).mean(axis=1).argmin())
                taken[draw, own] = self.values[best, draw, own]
                chosen.append(best)
        return stats.crossed_mean(taken), chosen

    def most_chosen(self, chosen: list[int]) -> tuple[pd.Series, int]:
        """The setting that was chosen most often, and how often."""
        ((index, times),) = Counter(chosen).most_common(1)
        return self.settings.loc[index], times


def read_grid(rows: pd.DataFrame, settings: list[str], units: list[str]) -> Grid:
    """Rows of one model, one per setting, draw and unit, each named by the columns given, with a `difference`.

    Raises ValueError for a column that is missing, rows of several models, and a difference that is missing, infinite
    or there twice.
    """
    axes = {"setting": settings, "draw": ["draw"], "unit": units}
    keys = sum(axes.values(), [])
    if missing := [name for name in ["model", *keys, "difference"] if name not in rows]:
        raise ValueError(f"the rows lack {', '.join(missing)}; needed are model, {', '.join(keys)} and difference")
    if len(models := rows["model"].unique()) != 1:
        raise ValueError(f"a verdict is on one model, but the rows are of {', '.join(map(str, models)) or 'none'}")
    if (again := rows.duplicated(keys)).any():
        raise ValueError(f"{_place(rows.iloc[np.argmax(again)], keys)} is there more than once")
    places = [rows.groupby(names).ngroup().to_numpy() for names in axes.values()]
    values = np.full([place.max() + 1 for place in places], np.nan)
    values[*places] = rows["difference"]
    if not np.isfinite(values).all():
        gap: dict[str, object] = {}
        first = np.argwhere(~np.isfinite(values))[0]
        for names, place, index in zip(axes.values(), places, first, strict=True):
            gap |= rows.iloc[np.argmax(place == index)][names].to_dict()
        raise ValueError(
            f"{_place(gap, keys)} has no finite difference: every setting needs the same draws, and each of them the "
            f"same {' and '.join(f'{unit}s' for unit in units)}"
        )
    return Grid(rows[settings].drop_duplicates().sort_values(settings, ignore_index=True), values)


def _place(of: Mapping[str, object] | pd.Series, keys: list[str]) -> str:
    return ", ".join(f"{name} {of[name]}" for name in keys)
