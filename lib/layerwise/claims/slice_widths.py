"""S1 and S2: dynamic against constant slicing at the same mean slice (arXiv 2411.03513)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from layerwise import stats
from layerwise.claims import grid
from layerwise.claims.differences import against, percent
from layerwise.claims.grid import Grid
from layerwise.claims.position import DRAWS, TWICE
from layerwise.claims.verdict import INCONCLUSIVE, Verdict, as_much_as, counted, in_words, no_worse, turned
from layerwise.stats import Estimate

_S1 = "Dynamic slicing keeps or improves on constant slicing of the same size."
DRAWS_ON_TASKS = 10  # of calibration text, since items answer with yes and no alone


def against_constant(rows: pd.DataFrame, value: str = "loss", units: tuple[str, ...] = ("window",)) -> pd.DataFrame:
    """Rows of other plans, each with its `difference` from constant slicing of the same model, mean, draw and units.

    Rows: model, plan, mean, draw, the columns `units`, and `value`. What the claims on slicing take: of losses by
    window, or of `correct` answers by task and item. Raises ValueError as `differences.against` does.
    """
    return against(rows, "constant", ["model", "mean", "draw", *units], value)


def s1(rows: pd.DataFrame, margin: float = 1.0) -> Verdict:
    """S1: dynamic slicing keeps or improves on constant slicing of the same size.

    Rows, of one model: mean (the budget SP), base (SB), draw, window, loss, the dynamic slices' minus the dense model's
    in nats per token of that window, and difference, their loss minus that of the constant slices, both calibrated on
    that draw; positive = dynamic is worse. Every setting (mean, base) needs the same draws and windows. Rows with base
    = mean are constant slices against themselves and are left out, and so are means at which constant slices have more
    than twice the dense perplexity: both models are wrecked there. Sizes are equal by width or in bytes, as the rows
    are.

    The effect is the change of perplexity in %, negative = dynamic is better: the mean over the bases of each budget,
    then over budgets, so that nothing is chosen. For one base, fixed beforehand, pass its rows alone. The rule is
    `verdict.no_worse`, with `margin` in % of perplexity. It is inconclusive with fewer than 5 calibration samples.

    Raises ValueError for rows that lack a column or a value, repeat one, are of several models, or have no base below
    their mean.
    """
    cells, left_out = _intact(rows)
    if cells is None:
        return _wrecked("S1", _S1, rows)
    bases = cells.settings.groupby("mean")["base"].transform("size")
    weights = 1 / (bases * cells.settings["mean"].nunique())
    change = percent(stats.crossed_mean(np.tensordot(weights, cells.values, axes=1)))
    verdict, why = _of_draws(no_worse(turned(change), margin, "%"), cells, DRAWS)
    averaged = f"Averaged over settings, dynamic slicing changes perplexity by {in_words(change, '%')}"
    return Verdict("S1", _S1, verdict, *change, "%", f"{averaged}: {why}; {cells.found()}{left_out}.", rows)


def s1_tasks(rows: pd.DataFrame, claimed: float = 5.0) -> Verdict:
    """S1 on tasks: in several settings dynamic slicing performs up to 5 % better than constant slicing.

    Rows as for `s1`, but with task and item in place of window, and no loss; difference is 1 where only the dynamic
    slices answer an item correctly, -1 where only the constant ones do, else 0. So positive = dynamic is
    better, and items, not windows, are the units of the interval.

    The effect is the gain in points of accuracy over all items, positive = dynamic is better, at the best setting as
    `Grid.held_out_best` has it. The rule is `verdict.as_much_as`. The abstract does not say what the 5 % are of:
    points of accuracy ask for more than % of an accuracy do. It is inconclusive with fewer than 10 calibration
    samples. Errors as for `s1`.
    """
    cells = _cells(rows, ["task", "item"])
    cells = replace(cells, values=-100 * cells.values)
    best, chosen = cells.held_out_best()
    gain = turned(best)
    verdict, why = _of_draws(as_much_as(gain, claimed, "points"), cells, DRAWS_ON_TASKS)
    statement = f"In several settings dynamic slicing performs up to {claimed:g} % better than constant slicing."
    reason = _at_best(cells, chosen, f"dynamic slicing gains {in_words(gain, 'points')} of accuracy: {why}")
    return Verdict("S1 on tasks", statement, verdict, *gain, "points", reason, rows)


def s2(rows: pd.DataFrame, claimed: float = 7.0) -> Verdict:
    """S2: perplexity falls by as much as 7 % against constant slicing.

    Rows and errors as for `s1`. The effect is the change of perplexity in %, negative = dynamic is better, at the best
    setting as `Grid.held_out_best` has it. The rule is `verdict.as_much_as`.
    """
    statement = f"Perplexity falls by as much as {claimed:g} % against constant slicing."
    cells, left_out = _intact(rows)
    if cells is None:
        return _wrecked("S2", statement, rows)
    best, chosen = cells.held_out_best()
    change = percent(best)
    verdict, why = _of_draws(as_much_as(turned(change), claimed, "%"), cells, DRAWS)
    reason = _at_best(cells, chosen, f"dynamic slicing changes perplexity by {in_words(change, '%')}: {why}", left_out)
    return Verdict("S2", statement, verdict, *change, "%", reason, rows)


def settings(rows: pd.DataFrame) -> pd.DataFrame:
    """Each setting on its own, for a figure: model, mean, base, value, low, high, p.

    Rows and errors as for `s1`, but of any number of models. The value is the relative change of perplexity against
    constant slicing, -0.05 = 5 % lower = better, with its 95 % interval; `p` is corrected by Holm's method for the
    number of settings of that model.
    """
    parts = []
    for model, part in rows.groupby("model", sort=False):
        cells = _cells(part, ["window"])
        changes = np.expm1([stats.crossed_mean(one) for one in cells.values])
        estimates = pd.DataFrame(changes, columns=Estimate._fields).assign(p=cells.p_values()[1])
        parts.append(pd.concat([cells.settings, estimates], axis=1))
        parts[-1].insert(0, "model", model)
    return pd.concat(parts, ignore_index=True)


def _cells(rows: pd.DataFrame, units: list[str]) -> Grid:
    if {"mean", "base"} <= set(rows):
        dynamic = rows["mean"] - rows["base"] > 1e-9
        if not dynamic.any():
            raise ValueError("no row has a base below its mean: there are no dynamic slices to judge")
        rows = rows[dynamic]
    return grid.read_grid(rows, ["mean", "base"], units)


def _intact(rows: pd.DataFrame) -> tuple[Grid | None, str]:
    """The settings at whose mean constant slices at most double perplexity, and in words how many others there are."""
    if missing := [name for name in ("mean", "base", "loss", "difference") if name not in rows]:
        raise ValueError(
            f"the rows lack {', '.join(missing)}; needed are model, mean, base, draw, window, loss, difference"
        )
    constant = (rows["loss"] - rows["difference"]).groupby(rows["mean"]).mean()
    intact = rows[rows["mean"].isin(constant.index[constant <= TWICE])]
    whole = _cells(rows, ["window"])
    if not (intact["mean"] - intact["base"] > 1e-9).any():
        return None, ""
    cells = _cells(intact, ["window"])
    left = len(whole.settings) - len(cells.settings)
    more = f"; {counted(left, 'setting')} at which constant slices more than double perplexity left out" if left else ""
    return cells, more


def _wrecked(claim: str, statement: str, rows: pd.DataFrame) -> Verdict:
    reason = "At every mean constant slicing more than doubles perplexity, so there is nothing to judge."
    return Verdict(claim, statement, INCONCLUSIVE, np.nan, np.nan, np.nan, "%", reason, rows)


def _of_draws(found: tuple[str, str], cells: Grid, needed: int) -> tuple[str, str]:
    """A verdict and why, or that it isn't decided here, for want of calibration samples."""
    draws = cells.values.shape[1]
    if draws >= needed:
        return found
    return INCONCLUSIVE, f"not decided here, by {counted(draws, 'calibration sample')} where {needed} are needed"


def _at_best(cells: Grid, chosen: list[int], what: str, left_out: str = "") -> str:
    if not chosen:
        return f"No setting can be chosen on some of the data and measured on the rest: {cells.found()}."
    setting, times = cells.most_chosen(chosen)
    name = f"SP {100 * setting['mean']:g} %, SB {100 * setting['base']:g} %, in {times} of {len(chosen)} choices"
    return f"At the setting that is best on other data ({name}), {what}; {cells.found()}{left_out}."
