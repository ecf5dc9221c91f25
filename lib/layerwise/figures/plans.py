"""Plans and what they cost: widths by block, the grid of both shares, rivals of one budget, curves over budgets."""

from itertools import pairwise
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.ticker import NullFormatter

from layerwise.figures.common import COLOURS, GREY, legend, line, log_scale, looks_of, panels, thousands

_BETTER_IS_BLUE = "RdBu_r"  # ColorBrewer's, which colour-blind readers can tell apart


def plan_bars(rows: pd.DataFrame) -> list[Axes]:
    """Width that each block keeps, a panel per plan, what is cut hatched above it; the dashed line is the mean.

    Rows: plan, block, slice (share of the width that is cut).
    """
    plans = rows["plan"].unique()
    axes = panels(len(plans), 1.15)
    for ax, plan in zip(axes, plans, strict=True):
        lines = rows[rows["plan"] == plan]
        kept = 100 * (1 - lines["slice"])
        ax.bar(lines["block"], kept, width=0.8, color=COLOURS[0])
        ax.bar(lines["block"], 100 - kept, bottom=kept, width=0.8, fc="white", ec="#b8b8b8", hatch="////", lw=0)
        ax.axhline(kept.mean(), color="black", ls="--", lw=1)
        ax.set(title=plan, ylim=(0, 100), yticks=[0, 50, 100])
        ax.grid(axis="x", visible=False)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("block")
    axes[0].figure.supylabel("width kept, %", fontsize=10.5)
    return axes


def grid(rows: pd.DataFrame) -> list[Axes]:
    """The quality of dynamic against constant slicing by mean slice SP and slice base SB, a panel per model.

    Rows: model, mean, base, value, low, high; the value is a relative change, such as that of perplexity: -0.05 is 5 %
    better, and blue. A dot marks the cells whose interval excludes 0. Constant slicing, base = mean, is 0 by itself and
    need not be among the rows. Numbers stand in the cells where they have room; colours stop at what nine tenths of
    the cells stay below.
    """
    same = ["model", "mean", "base"]
    constant = rows[["model", "mean"]].assign(base=rows["mean"], value=0.0, low=0.0, high=0.0)
    rows = pd.concat([rows, constant]).drop_duplicates(same)
    models = rows["model"].unique()
    means, bases = (np.sort(rows[name].unique()) for name in ("mean", "base"))
    step = rows.groupby("mean")["base"].apply(lambda column: np.diff(np.sort(column.unique())).min(initial=1)).min()
    lines = 1 + round((bases[-1] - bases[0]) / step)
    numbered = len(means) <= 9 and lines <= 12
    axes = panels(len(models), 0.6 + (0.23 if numbered else 0.13) * lines)
    colours = ScalarMappable(CenteredNorm(0, 100 * rows["value"].abs().quantile(0.9) or 1.0), _BETTER_IS_BLUE)
    for ax, model in zip(axes, models, strict=True):
        for x, mean in enumerate(means):
            column = rows[(rows["model"] == model) & (rows["mean"] == mean)].sort_values("base")
            _grid_column(ax, x, column, min(step, 0.1), colours, numbered)
        ax.set(title=model, ylabel="base SB, %", xlim=(-0.5, len(means) - 0.5))
        ax.set_xticks(range(len(means)), [f"{100 * mean:g}" for mean in means])
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    axes[-1].set_xlabel("mean slice SP, %")
    bar = axes[0].figure.colorbar(colours, ax=axes, orientation="horizontal", extend="both", aspect=40, pad=0.02)
    bar.set_label("against constant slicing, % (blue: better)")
    bar.outline.set_visible(False)
    return axes


def rivals(
    rows: pd.DataFrame, against: str = "constant slicing", unit: str = "%", better: Literal["left", "right"] = "left"
) -> list[Axes]:
    """Plans of one budget `against` one of them, which is the dashed line, a panel per model.

    Rows: model, plan, value, low, high, drawn times 100 in `unit`: "%" of a relative change, -0.05 = 5 % lower, or
    "points" of accuracy, -0.05 = 5 points lower. `better` is the side that the label calls better. A plan with several
    rows in a model (its draws) is drawn as a dot per draw, and as a grey band from the best to the worst of them. With
    a column kind, every plan has a line per kind, told apart by colour. What would squeeze all others onto the line is
    an arrow at the edge, with its value in words.
    """
    models, plans = rows["model"].unique(), rows["plan"].unique()
    group = "kind" if "kind" in rows else "model"
    kinds = list(rows["kind"].unique()) if group == "kind" else []
    axes = panels(len(models), 0.4 + (0.24 + 0.16 * len(kinds)) * len(plans))
    looks = looks_of(rows.loc[~rows.duplicated(["model", "plan", group], keep=False), group])
    limit = 600 * rows.groupby(["model", "plan"])["value"].median().abs().median()
    limit = limit if 0 < limit < 100 * rows["value"].max() else np.inf
    for ax, model in zip(axes, models, strict=True):
        ax.axvline(0, color="black", ls="--", lw=1)
        for (plan, kind), lines in rows[rows["model"] == model].groupby(["plan", group], sort=False):
            y = list(plans).index(plan)
            if kinds:
                y += 0.75 * ((kinds.index(kind) + 0.5) / len(kinds) - 0.5)
            _rival(ax, y, lines, looks.get(kind), limit, unit)
        ax.set_yticks(range(len(plans)), plans)
        ax.set_ylim(len(plans) - 0.4, -0.6)
        ax.set_title(model)
        ax.grid(axis="y", visible=False)
    if np.isfinite(limit):
        axes[0].set_xlim(right=limit)
    axes[-1].set_xlabel(f"against {against}, {unit} ({better}: better)")
    if kinds:
        legend(axes[0], looks)
    return axes


def curves(rows: pd.DataFrame, xlabel: str, ylabel: str, log_x: bool = False) -> list[Axes]:
    """A quality over a budget, a panel per model, a line per plan with its intervals.

    Rows: model, plan, x, value, low, high, all drawn as they are, in the units that the labels name. A plan with
    several rows at one x (its draws) is drawn as a grey band from the lowest to the highest, with its median. Values
    that are positive and more than fivefold apart get a log scale; `log_x` is for token counts.
    """
    models = rows["model"].unique()
    axes = panels(len(models), 2.3)
    drawn = rows.groupby("plan", sort=False)[["model", "x"]].apply(lambda lines: lines.duplicated().any())
    looks = looks_of(drawn.index[~drawn])
    for ax, model in zip(axes, models, strict=True):
        for plan, lines in rows[rows["model"] == model].groupby("plan", sort=False):
            if not drawn[plan]:
                lines = lines.sort_values("x")
                line(ax, lines["x"], lines, looks[plan], plan)
                continue
            by_x = lines.groupby("x")["value"]
            ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color="#dcdcdc", lw=0)
            ax.plot(by_x.median(), color=GREY, lw=1)
        ax.set(title=model, ylabel=ylabel)
        if rows["value"].min() > 0 and rows["value"].max() > 5 * rows["value"].min():
            log_scale(ax)
    if log_x:
        axes[-1].set_xscale("log")
        axes[-1].xaxis.set_major_formatter(thousands)
        axes[-1].xaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel(xlabel)
    legend(axes[0], looks, [plt.Rectangle((0, 0), 1, 1, color="#dcdcdc", label=plan) for plan in drawn.index[drawn]])
    return axes


def over_bytes(rows: pd.DataFrame, y: Literal["quality", "kl", "accuracy"] = "quality", dense=None) -> list[Axes]:
    """What families of plans keep at so many bytes, a panel per model, a line per family.

    Rows: one per plan and draw: model, family, step (its number in the family), bytes, and of what is drawn the value
    with its interval: loss, loss_low and loss_high minus the dense model's, drawn as quality, exp(-loss); kl; or
    value, low and high in points of accuracy minus the dense model's. Draws of calibration text are averaged; those of
    a family that is called random are a band. `dense` has the dense model's bytes by model, which adds its point.
    """
    names, label, best = {
        "quality": (["loss", "loss_high", "loss_low"], "quality", 1),
        "kl": (["kl", "kl_low", "kl_high"], "KL, nats", 0),
        "accuracy": (["value", "low", "high"], "points of accuracy", 0),
    }[y]
    values = rows[names].to_numpy(float)
    values = np.exp(-values) if y == "quality" else values
    x = rows.groupby(["model", "family", "step"])["bytes"].transform("mean") / 1e6  # a band needs one x
    drawn = rows[["model", "step"]].assign(plan=rows["family"], x=x, value=values[:, 0])
    drawn["low"], drawn["high"] = values[:, 1], values[:, 2]
    is_band = drawn["plan"].str.contains("random")
    drawn["line"] = np.where(is_band, np.arange(len(drawn)), -1)
    keys = ["model", "plan", "step", "line"]
    lines = drawn.groupby(keys, sort=False).mean().reset_index()
    point = {"plan": "dense", "value": best, "low": best, "high": best}
    points = [point | {"model": model, "x": size / 1e6} for model, size in (dense or {}).items()]
    axes = curves(pd.concat([lines, pd.DataFrame(points)]), "megabytes as stored", label)
    for ax in axes if y == "quality" else ():
        ax.set_yscale("linear")  # on a log scale 0.9 and 1 look alike
        ax.set_ylim(0, 1.05)
    return axes


def _rival(ax, y, lines, look, limit, unit):
    """One plan: its interval, or its draws and their band; beyond the limit an arrow."""
    values = 100 * lines["value"]
    inside = values <= limit
    if len(lines) > 1:
        ax.axvspan(values.min(), min(values.max(), limit), color="#e8e8e8", zorder=0)
        ax.plot(values[inside], [y] * inside.sum(), ls="", marker="o", markersize=3.5, color=GREY, alpha=0.7)
    for row in lines[inside].itertuples() if len(lines) == 1 else ():
        colour, marker = look
        ax.plot([100 * row.low, min(100 * row.high, limit)], [y, y], color=colour, lw=2.5, alpha=0.5)
        ax.plot(100 * row.value, y, marker=marker, color=colour)
    if not inside.all():
        ax.plot(limit, y, marker=">", color=GREY, markersize=7, clip_on=False)
        place = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        ax.annotate(f"{values.max():+.0f} {unit}", (limit, y), **place, fontsize=8, color=GREY)


def _grid_column(ax, x, cells, step, colours, numbered):
    """Cells of one mean slice at their bases; each reaches half-way to the next, so that steps may differ."""
    bases = 100 * cells["base"].to_numpy()
    between = (bases[1:] + bases[:-1]) / 2
    edges = np.concatenate([bases[:1] - 50 * step, between, bases[-1:] + 50 * step])
    for row, (low, high) in zip(cells.itertuples(), pairwise(edges), strict=True):
        value, middle = 100 * row.value, (low + high) / 2
        ax.bar(x, high - low, 1, low, color=colours.to_rgba(value), edgecolor="white", lw=1)
        ink = "white" if abs(value) > 0.6 * colours.norm.vmax else "black"
        if numbered:
            text = f"{value:+.1f}" if 0 < abs(value) < 10 else f"{value:+.0f}" if value else "0"
            place = {"ha": "center", "va": "center_baseline", "fontsize": 9}
            ax.text(x, middle, text.replace("-", "−"), **place, color=ink)
        if row.low > 0 or row.high < 0:
            ax.plot(x + (0.42 if numbered else 0), middle, marker="o", markersize=3, color=ink)
